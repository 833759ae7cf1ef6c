"""A model as a graph that other programs run: made, run at once, compared, and only then kept.

Legend: B rows, S places, N texts.
"""

import re
import shlex
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from enrobe import checkpoint
from enrobe.atomic import new_folder
from enrobe.checkpoint import Checkpoint
from enrobe.engines.base import Array, Request
from enrobe.engines.onnx import OnnxEngine
from enrobe.engines.plain_graph import Static, build_plain
from enrobe.errors import MissingExtraError, ModelError, RefusedError, TextError
from enrobe.sentence_folder import MODULES, copy_sentence_files, read_sentence_settings
from enrobe.tasks.model import Model
from enrobe.tasks.pooling import Pooling, follow
from enrobe.text.ragged import Ids, Ragged
from enrobe.text.tokenizer import Tokenizer

GraphFormat = Literal["onnx", "openvino", "tensorrt"]
Values = Mapping[str, npt.NDArray[Any]]

TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2
"""The `largest` error."""
INT8_TOLERANCE = 0.5
"""The most `noise`, of the worst text: what a task loses by it, `enrobe evaluate` says."""
_LARGEST_FILE = 1_500_000_000
# Bytes of one protobuf, whose limit is 2 GiB: beyond it weights stand in a file beside the graph.
TEXTS = (
    "The river is long.",
    "Ada Lovelace wrote the first program in 1843, for a machine that was never built.",
    "Der Zug nach München fährt heute nicht; bitte nehmen Sie den Bus.",
    "La bibliothèque ferme à dix-huit heures. ¿Dónde está la estación?",
    "今天的天气很好。",
    "a",
    "",
    "It was the best of times, it was the worst of times, it was the age of wisdom. " * 6,
)
"""What a graph is tried on: short and long, several scripts, one without a word."""


def export_graph(
    read: Checkpoint, output: Path, format: GraphFormat, static: Static | None = None
) -> Path:
    """Write a model's graph with its tokenizer, if it says what the model says.

    Args:
        read: the model, with all of its heads.
        output: a new folder.
        format: "onnx": model.onnx; "openvino": openvino_model.xml and .bin; "tensorrt": model.onnx
            with products in float16 and all types explicit, and build.sh, which builds the engine
            where TensorRT is.
        static: the matrices that are int8 in the graph; of "onnx" and "openvino".

    Raises:
        RefusedError: the graph's answers are further from the model's than they may be.
        ModelError: what the folder says of its vectors has no place in a graph.
        MissingExtraError: "openvino" without OpenVINO.
    """
    half = format == "tensorrt"
    sentence = None
    if (read.folder / MODULES).is_file():
        sentence = read_sentence_settings(read.folder)
        if not sentence.include_prompt:
            raise ModelError(f"{read.folder}: its pooling leaves prompts out; a graph cannot")
    graph = build_plain(read.config, read.heads, read.tensors, sentence, half=half, static=static)
    with new_folder(output) as work:
        path = work / "model.onnx"
        large = graph.ByteSize() > _LARGEST_FILE
        onnx.save_model(graph, path, save_as_external_data=large, location="model.onnx.data")
        del graph
        run = onnx_runner(path)
        if format == "openvino":
            to_openvino(path, work / "openvino_model.xml")
            for old in work.glob("model.onnx*"):
                old.unlink()
            run = openvino_runner(work / "openvino_model.xml")
        if static is not None:
            verify(read, run, INT8_TOLERANCE, error=noise)
        else:
            verify(read, run, HALF_TOLERANCE if half else TOLERANCE)
        for name in ("config.json", *checkpoint.TOKENIZER_FILES):
            if (read.folder / name).is_file():
                shutil.copyfile(read.folder / name, work / name)
        copy_sentence_files(read.folder, work)
        if half:
            (work / "build.sh").write_text(tensorrt_command(read), "utf-8")
    return output


def largest(found: Array, right: Array) -> float:
    """The largest error, as a share of the largest number (of 1 at least)."""
    return float(np.abs(found - right).max()) / max(1.0, float(np.abs(right).max()))


def noise(found: Array, right: Array) -> float:
    """The root mean square of the error, as a share of the answer's."""
    return float(np.sqrt(np.square(found - right).mean() / max(np.square(right).mean(), 1e-30)))


def verify(
    read: Checkpoint,
    run: Callable[[Values], Values],
    tolerance: float,
    *,
    error: Callable[[Array, Array], float] = largest,
) -> float:
    """Compare a graph's answers with the float32 model's; the largest `error` of any.

    Each text alone, and all of them padded.

    Raises:
        RefusedError: an answer is further than `tolerance`.
    """
    tokenizer = Tokenizer.from_folder(read.folder, read.config.family, read.config.vocab_size)
    given = tokenizer.encode(TEXTS, limit=read.config.max_tokens)
    rows = [row.ids for row in given if not isinstance(row, TextError) and len(row.ids)]
    expected = _expected(read, rows, tokenizer)
    worst, where = 0.0, ""
    for group in [*([i] for i in range(len(rows))), list(range(len(rows)))]:
        found = run(padded([rows[i] for i in group], read.config.pad_id))
        for name, values in found.items():
            for place, i in enumerate(group):
                right = expected[name][i]
                mine = values[place]
                if right.shape != mine.shape:
                    mine = mine[: len(rows[i])]
                apart = error(mine, right)
                if not apart <= worst:
                    worst, where = apart, name
    if not worst <= tolerance:
        raise RefusedError(
            f"{where} of the graph is {worst:.2g} away from the model's; allowed: {tolerance:.0e}, "
            "nothing was written"
        )
    return worst


def padded(rows: Sequence[Ids], pad: int) -> dict[str, npt.NDArray[np.int64]]:
    """Rows as a graph takes them, padded on the right. Shapes: (B, S)."""
    shape = (len(rows), max(map(len, rows)))
    feed = {"input_ids": np.full(shape, pad, np.int64)}
    feed["attention_mask"] = np.zeros(shape, np.int64)
    feed["token_type_ids"] = np.zeros(shape, np.int64)
    for place, row in enumerate(rows):
        feed["input_ids"][place, : len(row)] = row
        feed["attention_mask"][place, : len(row)] = 1
    return feed


def _expected(
    read: Checkpoint, rows: Sequence[Ids], tokenizer: Tokenizer
) -> dict[str, list[Array]]:
    """What the float32 model says of every row, by the names of a graph's outputs."""
    engine = OnnxEngine(read)
    batch = Ragged.from_rows(rows)
    last = read.config.num_layers
    request = Request(layers=(last,), heads=tuple(read.heads))
    out = engine.run(batch, request, np.arange(len(batch.ids), dtype=np.int64))

    def cut(values: Array) -> list[Array]:
        return [values[a:b] for a, b in zip(batch.offsets, batch.offsets[1:], strict=False)]

    expected = {"last_hidden_state": cut(out.hidden[last])}
    for name, head in read.heads.items():
        prefix, values = f"{name}." if len(read.heads) > 1 else "", out.heads[name]
        if head.kind == "answer":
            for i, end in enumerate(("start", "end")):
                expected[f"{prefix}{end}_logits"] = cut(values[:, i])
        else:
            expected[f"{prefix}logits"] = [*values] if head.is_sequence else cut(values)
    if (read.folder / MODULES).is_file():
        model = Model(engine, tokenizer, read.folder)
        expected["sentence_embedding"] = _embedded(model, rows)
    return expected


def _embedded(model: Model, rows: Sequence[Ids]) -> list[Array]:
    settings, width = model.sentence, model.config.hidden_size
    pooling = Pooling(len(rows), width, settings.pool)
    last = model.config.num_layers
    for i, row in enumerate(rows):
        states_TH = model.engine.run(Ragged.from_rows([row]), Request(layers=(last,))).hidden[last]
        pooling.add(i, states_TH, states_TH[0])
    return [*follow(pooling.finish(), settings)]


def onnx_runner(path: Path) -> Callable[[Values], Values]:
    """A function that runs a graph in ONNX Runtime."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = [value.name for value in session.get_inputs()]
    names = [value.name for value in session.get_outputs()]

    def run(feed: Values) -> Values:
        values = session.run(None, {name: feed[name] for name in inputs})
        return dict(zip(names, values, strict=True))

    return run


def to_openvino(graph: Path, xml: Path) -> None:
    """Turn an ONNX file into OpenVINO's form, weights in float32.

    Raises:
        MissingExtraError: without OpenVINO.
    """
    openvino = imported_openvino()
    openvino.save_model(openvino.convert_model(str(graph)), str(xml), compress_to_fp16=False)


def openvino_runner(xml: Path) -> Callable[[Values], Values]:
    """A function that runs a graph in OpenVINO, in float32 also where a processor would rather not.

    Raises:
        MissingExtraError: without OpenVINO.
    """
    openvino = imported_openvino()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(xml), "CPU", settings)
    inputs = [value.any_name for value in compiled.inputs]

    def run(feed: Values) -> Values:
        found = compiled({name: feed[name] for name in inputs})
        return {_public(value.get_names()): found[value] for value in compiled.outputs}

    return run


def _public(names: Collection[str]) -> str:
    """The name that we gave an output, where a node inside the graph has it, too."""
    return next(name for name in names if not re.fullmatch(r"[A-Z]\w*_\d+", name))


def imported_openvino() -> Any:
    """The openvino package, or MissingExtraError."""
    try:
        import openvino
    except ModuleNotFoundError as error:
        if error.name != "openvino":
            raise
        raise MissingExtraError("OpenVINO", "openvino", "this") from None
    return openvino


def tensorrt_command(read: Checkpoint) -> str:
    """A script that builds the engine with TensorRT's own tool."""
    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] if read.config.type_vocab_size > 1 else []

    def shapes(rows: int, places: int) -> str:
        return ",".join(f"{name}:{rows}x{places}" for name in names)

    longest = read.config.max_tokens
    command = [
        "trtexec",
        "--onnx=model.onnx",
        "--stronglyTyped",
        f"--minShapes={shapes(1, 1)}",
        f"--optShapes={shapes(16, min(128, longest))}",
        f"--maxShapes={shapes(64, longest)}",
        "--saveEngine=model.plan",
    ]
    return "#!/bin/sh\n# Builds the engine of this folder's graph; TensorRT 10 or later.\n" + (
        f"exec {shlex.join(command)}\n"
    )
