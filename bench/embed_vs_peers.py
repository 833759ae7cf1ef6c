"""Mean-pooled vectors, float32, two threads: Enrobe against its peers on W1, W2 and single texts.

    pip install ./native sentence-transformers ctranslate2 openvino
    python bench/embed_vs_peers.py prepare      # a model, in everyone's form, and texts
    python bench/embed_vs_peers.py w1           # then w1-padded, w1-sorted, w2, single
    python bench/embed_vs_peers.py report

W1: 512 texts with log-normal lengths in arrival order. W2: 32 texts of 128 tokens. Then one text of
16 and of 128 tokens a call: p50 and p99. The model has RoBERTa-base's sizes and random weights.

Contenders: enrobe (`Model.embed`), in the engine that it chooses and in ONNX Runtime; transformers,
32 texts a batch in arrival order, and sorted, 1,024 tokens a batch; `encode` of
sentence-transformers; ONNX Runtime with padding, its graph fused by its own optimizer, sorted,
1,024 tokens a batch (on W1 also 32 texts a batch); the encoder of CTranslate2, sorted, 2,048
tokens a batch; OpenVINO in float32, sorted, 512 tokens a batch, several requests at once. Each
reads strings, and all vectors must agree. One that is not installed is left out, and the report
says so.

Beside them `products` measures the machine's limit: nothing but the model's matrix products, 1,024
tokens at a time, by the quickest library here. A share is the operations that the real tokens need,
over the time taken, over that rate.

Enrobe and ONNX Runtime take every core they see: with more than two, run it under `taskset`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    BASE,
    ROOT,
    exact_texts,
    machine,
    roberta_folder,
    scratch,
    serve,
    take_turns_at,
    workload_1,
    write_report,
)

THREADS = 2
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(THREADS)
os.environ["HF_HUB_OFFLINE"] = "1"

SIZES = {"base": BASE, "tiny": {"layers": 2, "hidden": 64, "heads": 4, "wide": 256}}
NEEDS = {
    "enrobe": "enrobe",
    "enrobe_onnx": "enrobe",
    "transformers": "transformers",
    "transformers_sorted": "transformers",
    "sentence_transformers": "sentence_transformers",
    "onnxruntime": "onnxruntime.transformers",
    "onnxruntime_32": "onnxruntime.transformers",
    "ctranslate2": "ctranslate2",
    "openvino": "openvino",
}
ALL = (
    "enrobe",
    "enrobe_onnx",
    "transformers",
    "sentence_transformers",
    "onnxruntime",
    "ctranslate2",
    "openvino",
)
LIMIT = "products"
# Calls in a row with one text, before the next contender's turn.
BURST = 10
BLOCK = 1024
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Piece:
    """What is measured in one call: who, at which work, in how many rounds."""

    who: tuple[str, ...]
    works: Mapping[str, int]


PIECES = {
    "w1": Piece(("enrobe", "enrobe_onnx", "onnxruntime", "ctranslate2", "openvino"), {"w1": 4}),
    # Several times slower than these; one round shows it.
    "w1-padded": Piece(("enrobe", "transformers", "sentence_transformers"), {"w1": 1}),
    "w1-sorted": Piece(("enrobe", "onnxruntime_32", "transformers_sorted"), {"w1": 2}),
    "w2": Piece(ALL, {"w2": 5}),
    "single": Piece(ALL, {"one_16": 20, "one_128": 12}),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("prepare", *PIECES, "report"), nargs="?")
    parser.add_argument("--size", default="base", choices=SIZES, help="tiny: a trial, not kept")
    parser.add_argument("--worker")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    folder = ROOT / f".cache/bench/embed-{options.size}"
    if options.worker:
        worker(options.worker, options.folder)
    elif options.part == "prepare":
        prepare(scratch(folder.name), SIZES[options.size])
    elif options.part == "report":
        report(folder, SIZES[options.size])
    else:
        measure(options.part, folder, SIZES[options.size])


def measure(part: str, folder: Path, size: dict[str, int]) -> None:
    """One piece, kept beside the models for the report."""
    lengths = json.loads((folder / "works.json").read_text())["lengths"]
    piece = PIECES[part]
    names = [name for name in piece.who if find_spec(NEEDS[name])]
    arguments = {name: ["--folder", str(folder)] for name in (*names, LIMIT)}
    rounds = {work: (count, float("inf")) for work, count in piece.works.items()}
    found = take_turns_at(rounds, Path(__file__), arguments, aside=[LIMIT])
    facts = compare(found, {work: lengths[work] for work in piece.works}, size, folder)
    facts["left_out"] = {name: "not installed" for name in piece.who if name not in names}
    (folder / f"found-{part}.json").write_text(json.dumps(facts))
    print(json.dumps(facts, indent=2))


def report(folder: Path, size: dict[str, int]) -> None:
    """All pieces as one file."""
    lengths = json.loads((folder / "works.json").read_text())["lengths"]
    others = (n.replace("_", "-") for n in NEEDS if n.startswith(("sent", "ctr", "open")))
    names = ("enrobe", *others)
    facts = {
        "size": size,
        "threads": THREADS,
        "texts": {work: len(rows) for work, rows in lengths.items()},
        "tokens": {work: sum(rows) for work, rows in lengths.items()},
        "versions": machine()["versions"] | {name: version(name) for name in names},
        "pieces": {
            part: json.loads((folder / f"found-{part}.json").read_text()) for part in PIECES
        },
    }
    if size == BASE:
        write_report("embed_vs_peers", facts)
    else:
        print(json.dumps(facts, indent=2))


# --- before and after ---------------------------------------------------------------------------


def prepare(folder: Path, size: dict[str, int]) -> None:
    """Write the model, the contenders' forms of it, and the texts with their lengths in tokens."""
    from enrobe.text.tokenizer import Tokenizer

    roberta_folder(folder, **size)
    modules = ("Transformer", ""), ("Pooling", "1_Pooling")
    kind = "sentence_transformers.models."
    entries = [
        {"idx": n, "name": str(n), "path": path, "type": kind + name}
        for n, (name, path) in enumerate(modules)
    ]
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": size["hidden"], "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 512}))
    # CTranslate2's converter asks for this, which transformers 5 no longer writes.
    config = json.loads((folder / "config.json").read_text())
    config["position_embedding_type"] = "absolute"
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_folder(folder, "roberta")
    works = {
        "w1": workload_1(tokenizer, masks=False),
        "w2": exact_texts(tokenizer, tokens=128, count=32),
        "one_16": exact_texts(tokenizer, tokens=16, count=1),
        "one_128": exact_texts(tokenizer, tokens=128, count=1, seed=1),
    }
    lengths = {w: [len(row) for row in tokenizer.encode(texts)] for w, texts in works.items()}
    for name in ("onnxruntime", "ctranslate2"):
        if find_spec(NEEDS[name]):
            line = [sys.executable, __file__, "--worker", f"convert_{name}"]
            subprocess.run([*line, "--folder", str(folder)], check=True)
    (folder / "works.json").write_text(json.dumps({"texts": works, "lengths": lengths}))


def compare(
    found: dict[str, Any], lengths: dict[str, list[int]], size: dict[str, int], folder: Path
) -> dict[str, Any]:
    """Rates, ratios and shares of the limit, or milliseconds a call; and whether vectors agree."""
    limit = found.pop(LIMIT)
    own = found["enrobe"]
    out: dict[str, Any] = {"limit": {"library": limit["library"]}}
    for work, rows in lengths.items():
        table: dict[str, Any] = {}
        calls = {name: facts["calls_ms"].get(work) for name, facts in found.items()}
        limit_rate = limit["gflop"] / limit[work]["median_s"] if work in ("w1", "w2") else None
        if limit_rate:
            out["limit"][f"gflop_per_s_{work}"] = round(limit_rate)
        for name, facts in found.items():
            table[name] = {"peak_mb": facts["peak_mb"]}
            if limit_rate:
                spent = facts[work]["median_s"]
                share = operations(size, rows) / 1e9 / spent / limit_rate
                table[name] |= facts[work] | {
                    "tokens_per_s": round(sum(rows) / spent),
                    "share_of_limit": round(share, 3),
                    "enrobe_is_faster_by": round(spent / own[work]["median_s"], 2),
                }
            else:
                p50, p99 = np.percentile(calls[name], (50, 99)).tolist()
                table[name] |= {"p50_ms": round(p50, 1), "p99_ms": round(p99, 1)}
                table[name]["calls"] = len(calls[name])
        out[work] = table
    vectors = {name: np.load(folder / f"{name}.npz") for name in found}
    differ = {
        name: max(float(np.abs(arrays[w] - vectors["enrobe"][w]).max()) for w in lengths)
        for name, arrays in vectors.items()
        if name != "enrobe"
    }
    return out | {
        "same_vectors": max(differ.values()) <= TOLERANCE,
        "largest_difference": {name: float(f"{value:.1e}") for name, value in differ.items()},
    }


def operations(size: dict[str, int], lengths: list[int]) -> float:
    """Floating-point operations of an encoder on rows of these lengths: its matrix products."""
    h, wide = size["hidden"], size["wide"]
    linear = 2 * (4 * h * h + 2 * h * wide) * sum(lengths)
    attention = 4 * h * sum(n * n for n in lengths)
    return float(size["layers"] * (linear + attention))


# --- workers ------------------------------------------------------------------------------------

Array = np.ndarray[Any, np.dtype[np.float32]]
Embed = Callable[[list[str]], Array]


def worker(name: str, folder: Path) -> None:
    if name.startswith("convert_"):
        {"onnxruntime": convert_onnx, "ctranslate2": convert_ctranslate2}[name[8:]](folder)
        return
    if name == LIMIT:
        products(folder)
        return
    works = json.loads((folder / "works.json").read_text())["texts"]
    embed = {
        "enrobe": enrobe_embed,
        "enrobe_onnx": lambda folder: enrobe_embed(folder, "onnx"),
        "transformers": transformers_embed,
        "transformers_sorted": lambda folder: transformers_embed(folder, budget=1024),
        "sentence_transformers": sentence_embed,
        "onnxruntime": onnx_embed,
        "onnxruntime_32": lambda folder: onnx_embed(folder, count=32),
        "ctranslate2": ctranslate2_embed,
        "openvino": lambda folder: openvino_embed(
            folder, "plain.onnx", INFERENCE_PRECISION_HINT="f32"
        ),
    }[name](folder)
    calls: dict[str, list[float]] = {"one_16": [], "one_128": []}
    vectors: dict[str, Array] = {}

    def run(work: str) -> None:
        vectors[work] = embed(works[work])
        if work in calls:
            calls[work] += burst(lambda: embed(works[work]))

    def facts() -> dict[str, Any]:
        np.savez(folder / f"{name}.npz", **vectors)
        return {"calls_ms": calls}

    serve(
        {work: lambda work=work: run(work) for work in works},
        lambda: [embed(works["w1"][:16]), *(embed(works[work]) for work in calls)],
        facts,
    )


def burst(call: Callable[[], object]) -> list[float]:
    """Milliseconds of each of some calls in a row, once whoever ran before is at rest."""
    time.sleep(0.05)
    taken = []
    for number in range(BURST + 1):
        start = time.perf_counter()
        call()
        if number:
            taken.append((time.perf_counter() - start) * 1000)
    return taken


def enrobe_embed(folder: Path, engine: Any = "auto") -> Embed:
    import enrobe

    return enrobe.load(folder, engine=engine).embed


def transformers_embed(folder: Path, *, budget: int | None = None) -> Embed:
    import torch

    tokenizer, model = _reference(folder)

    @torch.inference_mode()
    def encode(rows: list[list[int]]) -> Array:
        batch = {name: torch.from_numpy(values) for name, values in block(rows).items()}
        return model(**batch).last_hidden_state.numpy()

    if budget:
        return sorted_embed(folder, encode, budget=budget)

    @torch.inference_mode()
    def embed(texts: list[str]) -> Array:
        out = []
        for start in range(0, len(texts), 32):
            batch = tokenizer(texts[start : start + 32], padding=True, return_tensors="pt")
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"][:, :, None]
            out.append((hidden * mask).sum(1) / mask.sum(1))
        return torch.cat(out).numpy()

    return embed


def sentence_embed(folder: Path) -> Embed:
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(THREADS)
    more = {"add_pooling_layer": False}
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs=more)
    return lambda texts: model.encode(texts, show_progress_bar=False)


def onnx_embed(
    folder: Path, graph: str = "fused.onnx", *, budget: int = 1024, count: int | None = None
) -> Embed:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = ort.InferenceSession(folder / graph, options, providers=["CPUExecutionProvider"])
    return sorted_embed(
        folder, lambda rows: session.run(None, block(rows))[0], budget=budget, count=count
    )


def ctranslate2_embed(folder: Path, kind: str = "float32", *, budget: int = 2048) -> Embed:
    import ctranslate2

    encoder = ctranslate2.Encoder(
        str(folder / "ctranslate2"), compute_type=kind, intra_threads=THREADS, inter_threads=1
    )

    def encode(rows: list[list[int]]) -> Array:
        return np.array(encoder.forward_batch(rows).last_hidden_state)

    return sorted_embed(folder, encode, budget=budget)


def openvino_embed(folder: Path, graph: str, *, budget: int = 512, **properties: Any) -> Embed:
    """Several requests at once, where one waits for nobody; a text alone goes the quickest way."""
    import openvino

    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": THREADS, **properties})
    model = core.read_model(str(folder / graph))
    throughput = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"})
    latency = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    tokenizer = _tokenizer(folder)

    def embed(texts: list[str]) -> Array:
        rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        if len(rows) == 1:
            return latency(block(rows))[0].mean(1)
        order = sorted(range(len(rows)), key=lambda n: -len(rows[n]))
        out: list[Any] = [None] * len(rows)
        queue = openvino.AsyncInferQueue(throughput)

        def keep(request: Any, part: list[int]) -> None:
            hidden = request.get_output_tensor(0).data
            for place, n in enumerate(part):
                out[n] = hidden[place, : len(rows[n])].mean(0)

        queue.set_callback(keep)
        while order:
            many = max(1, budget // len(rows[order[0]]))
            part, order = order[:many], order[many:]
            queue.start_async(block([rows[n] for n in part]), part)
        queue.wait_all()
        return np.stack(out)

    return embed


def block(rows: list[list[int]]) -> dict[str, Any]:
    """Padded inputs."""
    ids = np.ones((len(rows), max(map(len, rows))), np.int64)  # 1 is <pad>
    for n, row in enumerate(rows):
        ids[n, : len(row)] = row
    return {"input_ids": ids, "attention_mask": (ids != 1).astype(np.int64)}


def _tokenizer(folder: Path) -> Any:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def sorted_embed(
    folder: Path,
    encode: Callable[[list[list[int]]], Array],
    *,
    budget: int,
    count: int | None = None,
) -> Embed:
    """Texts sorted by length, `count` a batch or at most `budget` tokens with its padding."""
    tokenizer = _tokenizer(folder)

    def embed(texts: list[str]) -> Array:
        rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        order = sorted(range(len(rows)), key=lambda n: -len(rows[n]))
        out: list[Array | None] = [None] * len(rows)
        while order:
            many = count or max(1, budget // len(rows[order[0]]))
            part, order = order[:many], order[many:]
            for n, hidden in zip(part, encode([rows[n] for n in part]), strict=True):
                out[n] = hidden[: len(rows[n])].mean(0)
        return np.stack(out)

    return embed


def _reference(folder: Path, **more: Any) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModel, AutoTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(THREADS)
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False, **more).eval()
    return AutoTokenizer.from_pretrained(folder), model


def convert_onnx(folder: Path) -> None:
    """The reference model as a padded graph, fused by ONNX Runtime's optimizer for transformers."""
    import torch
    from onnxruntime.transformers import optimizer

    warnings.simplefilter("ignore")
    # The optimizer knows attention by its plain form.
    tokenizer, model = _reference(folder, attn_implementation="eager")

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, mask: Any) -> Any:
            return self.model(input_ids=ids, attention_mask=mask).last_hidden_state

    batch = tokenizer(["A text.", "A text that is longer."], padding=True, return_tensors="pt")
    names = ["input_ids", "attention_mask"]
    torch.onnx.export(
        Plain().eval(),
        tuple(batch[name] for name in names),
        str(folder / "plain.onnx"),
        input_names=names,
        output_names=["hidden"],
        dynamic_axes={name: {0: "texts", 1: "tokens"} for name in (*names, "hidden")},
        opset_version=17,
        dynamo=False,
    )
    config = model.config
    fused = optimizer.optimize_model(
        str(folder / "plain.onnx"),
        model_type="bert",
        num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size,
    )
    counts = fused.get_fused_operator_statistics()
    assert counts["Attention"] == counts["BiasGelu"] == config.num_hidden_layers, counts
    fused.save_model_to_file(str(folder / "fused.onnx"))


def convert_ctranslate2(folder: Path) -> None:
    from ctranslate2.converters import TransformersConverter
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    TransformersConverter(str(folder)).convert(str(folder / "ctranslate2"))


# --- the machine's limit ------------------------------------------------------------------------


Products = Callable[[list[Array]], object]


def products(folder: Path) -> None:
    """The model's matrix products and nothing else; a run is four blocks of 1,024 tokens."""
    config = json.loads((folder / "config.json").read_text())
    h, wide, layers = (config[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    rng = np.random.default_rng(0)
    pairs = ((h, 3 * h), (h, h), (h, wide), (wide, h))
    weights = [rng.standard_normal(pair, dtype=np.float32) for pair in pairs]
    inputs = [rng.standard_normal((BLOCK, pair[0]), dtype=np.float32) for pair in pairs]
    known = {"torch": torch_products(weights), "onnxruntime": onnx_products(weights)}
    spent: dict[str, float] = {}

    def seconds(name: str, times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            known[name](inputs)
        return time.perf_counter() - start

    def warm() -> None:
        spent.update({name: min(seconds(name, 1) for _ in range(8)) for name in known})

    def run() -> None:
        seconds(min(spent, key=spent.__getitem__), 4 * layers)

    gflop = 4 * layers * 2 * BLOCK * sum(a * b for a, b in pairs) / 1e9
    rest = {work: lambda: None for work in ("one_16", "one_128")}
    serve(
        {"w1": run, "w2": run, **rest},
        warm,
        lambda: {"gflop": gflop, "library": min(spent, key=spent.__getitem__)},
    )


def torch_products(weights: list[Array]) -> Products:
    import torch

    torch.set_num_threads(THREADS)
    held = [torch.from_numpy(w) for w in weights]
    return lambda inputs: [torch.from_numpy(x) @ w for x, w in zip(inputs, held, strict=True)]


def onnx_products(weights: list[Array]) -> Products:
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    kind = TensorProto.FLOAT
    names = [str(n) for n in range(len(weights))]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [f"x{n}", f"w{n}"], [f"y{n}"]) for n in names],
        "products",
        [helper.make_tensor_value_info(f"x{n}", kind, [None, len(weights[int(n)])]) for n in names],
        [helper.make_tensor_value_info(f"y{n}", kind, None) for n in names],
        [numpy_helper.from_array(weights[int(n)], f"w{n}") for n in names],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), options)
    return lambda inputs: session.run(None, {f"x{n}": inputs[int(n)] for n in names})


if __name__ == "__main__":
    main()
