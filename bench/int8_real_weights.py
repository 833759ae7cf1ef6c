"""int8 of real weights by Enrobe and its peers: how near their vectors are to float32's.

    python scripts/fetch_weights.py .cache/weights
    pip install ./native ctranslate2 openvino
    python bench/int8_real_weights.py [--model .cache/weights/minilm] [--work DIR]

all-MiniLM-L6-v2's mean vectors of 600 SNLI sentences, the cosine after the float32 vectors' mean
is taken off both. Each rounds as it does by default; who calibrates sees 64 other sentences, and
`enrobe quantize` 400.
"""

import argparse
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, SHARED, write_report
from int8_vs_peers import calibrate, centred, dynamic, export_encoder

import enrobe
from enrobe.compress.export import export
from enrobe.text.tokenizer import Tokenizer

Call = Callable[[Any, Any], Any]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=ROOT / ".cache/weights/minilm")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache/bench/int8-real")
    call = parser.parse_args()
    call.work.mkdir(parents=True, exist_ok=True)
    texts = sentences()
    seen, test = texts[:400], texts[2000:2600]
    tokenizer = Tokenizer.from_folder(call.model, "bert")
    prepare(call.model, call.work, tokenizer, seen)
    rows = [row.ids for row in tokenizer.encode(test)]
    exact = mean_vectors(rows, onnx(call.work / "plain/model.onnx"))
    peers = {
        "onnxruntime_dynamic": onnx(call.work / "dynamic.onnx"),
        "openvino_calibrated": openvino(call.work / "static.onnx"),
        "ctranslate2": ctranslate2(call.work / "ctranslate2"),
    }
    found = {name: centred(exact, mean_vectors(rows, peer)) for name, peer in peers.items()}
    for engine in ("native", "onnx"):
        model = enrobe.load(call.work / "int8", engine=engine)  # type: ignore[arg-type]
        own = model.embed(test, pool="mean", normalize=False)
        found[f"enrobe_{engine}"] = centred(exact, own)
    write_report("int8_real_weights", {"model": call.model.name, "centred_cosine": found})


def sentences() -> list[str]:
    with gzip.open(SHARED / "data/snli_dev/all.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    columns = [key for key, value in rows[0].items() if isinstance(value, str)]
    given = (row[key] for row in rows for key in columns)
    return list(dict.fromkeys(text for text in given if len(text) > 20))


def prepare(model: Path, work: Path, tokenizer: Tokenizer, seen: list[str]) -> None:
    """Everyone's int8 form of the model, once."""
    import ctranslate2

    if not (work / "int8").exists():
        pairs = zip(seen[0::2], seen[1::2], strict=True)
        (work / "seen.jsonl").write_text(
            "".join(json.dumps({"a": a, "b": b}) + "\n" for a, b in pairs)
        )
        asked: dict[str, Any] = {"task": "bitext", "text": ("a", "b"), "max_drop": 0.99}
        enrobe.quantize(model, work / "int8", evaluate=work / "seen.jsonl", **asked)
    plain = work / "plain/model.onnx"
    if not plain.exists():
        export_encoder(model, plain.parent, export)
    if not (work / "dynamic.onnx").exists():
        dynamic(plain, work / "dynamic.onnx")
    if not (work / "static.onnx").exists():
        calibrate(plain, work / "static.onnx", tokenizer, seen)
    if not (work / "ctranslate2").exists():
        converter = ctranslate2.converters.TransformersConverter(str(model))
        converter.convert(str(work / "ctranslate2"), quantization="int8")


def feed(ids: Any, mask: Any) -> dict[str, Any]:
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def mean_vectors(rows: list[Any], call: Call) -> Any:
    """Mean vectors (N, H), 16 rows of like lengths at a time, padded."""
    order = sorted(range(len(rows)), key=lambda n: -len(rows[n]))
    out: list[Any] = [None] * len(rows)
    for start in range(0, len(order), 16):
        part = order[start : start + 16]
        ids = np.zeros((len(part), len(rows[part[0]])), np.int64)
        mask = np.zeros_like(ids)
        for place, n in enumerate(part):
            ids[place, : len(rows[n])], mask[place, : len(rows[n])] = rows[n], 1
        hidden = call(ids, mask)
        for place, n in enumerate(part):
            out[n] = hidden[place, : len(rows[n])].mean(0)
    return np.stack(out)


def onnx(path: Path) -> Call:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    wanted = {value.name for value in session.get_inputs()}
    return lambda ids, mask: session.run(
        None, {name: value for name, value in feed(ids, mask).items() if name in wanted}
    )[0]


def openvino(path: Path) -> Call:
    import openvino as ov

    core = ov.Core()
    compiled = core.compile_model(core.read_model(str(path)), "CPU")
    wanted = {value.any_name for value in compiled.inputs}
    return lambda ids, mask: compiled(
        {name: value for name, value in feed(ids, mask).items() if name in wanted}
    )[0]


def ctranslate2(folder: Path) -> Call:
    import ctranslate2 as ct2

    encoder = ct2.Encoder(str(folder), compute_type="int8")

    def call(ids: Any, mask: Any) -> Any:
        rows = [row[: int(inside.sum())].tolist() for row, inside in zip(ids, mask, strict=True)]
        return np.array(encoder.forward_batch(rows).last_hidden_state)

    return call


if __name__ == "__main__":
    main()
