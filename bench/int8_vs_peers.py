"""int8, two threads: Enrobe against its peers on W1 and W2; speed, memory, nearness to float32.

    pip install ./native ctranslate2 openvino
    python bench/embed_vs_peers.py prepare      # the model and the texts
    python bench/int8_vs_peers.py prepare       # everyone's int8 form of it
    python bench/int8_vs_peers.py measure

The model has RoBERTa-base's sizes and random weights, the texts are those of embed_vs_peers: 512 of
log-normal lengths, 32 of 128 tokens, one of 16 and of 128 (p50 and p99 of a call); and 8 of 512.

Contenders: enrobe (`enrobe quantize`) in its own engine and in ONNX Runtime; ONNX Runtime's own
dynamic quantization (int8 weights a channel, one scale a batch for activations) of the graph that
its optimizer fused, and of the plain one; CTranslate2, compute_type int8; OpenVINO on a graph with
calibrated scales (Q/DQ), several requests at once. Each reads strings, sorts and batches as it is
quickest with.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, exact_texts, serve, take_turns_at, workload_1, write_report
from embed_vs_peers import (
    THREADS,
    burst,
    ctranslate2_embed,
    enrobe_embed,
    onnx_embed,
    openvino_embed,
)

WHO = ("enrobe", "enrobe_onnx", "onnxruntime_fused", "onnxruntime_plain", "ctranslate2", "openvino")
ROUNDS = {"w1": 3, "w2": 11, "eight_512": 5, "one_16": 12, "one_128": 10}
CALIBRATED = 64


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("prepare", "measure"), nargs="?")
    parser.add_argument("--size", default="base")
    parser.add_argument("--worker")
    options = parser.parse_args()
    folder = ROOT / f".cache/bench/embed-{options.size}"
    if options.worker:
        worker(options.worker, folder)
    elif options.part == "prepare":
        prepare(folder)
    else:
        measure(folder, keep=options.size == "base")


def prepare(folder: Path) -> None:
    import enrobe
    from enrobe.compress.export import export
    from enrobe.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(folder, "roberta")
    # Other texts than those that are measured.
    texts = workload_1(tokenizer, masks=False, count=400, seed=1)
    seen = folder / "seen.jsonl"
    pairs = zip(texts[0::2], texts[1::2], strict=True)
    seen.write_text("".join(json.dumps({"a": a, "b": b}) + "\n" for a, b in pairs))
    if not (folder / "int8").exists():
        more = {"task": "bitext", "text": ("a", "b"), "max_drop": 0.99}
        enrobe.quantize(folder, folder / "int8", evaluate=seen, **more)
    plain = folder / "plain/model.onnx"
    if not plain.exists():
        # Vectors of tokens are wanted, no head.
        export_encoder(folder, plain.parent, export)
    for name, path in (("plain", plain), ("fused", folder / "fused.onnx")):
        target = folder / f"{name}.int8.onnx"
        if not target.exists():
            dynamic(path, target)
    if not (folder / "static.int8.onnx").exists():
        calibrate(plain, folder / "static.int8.onnx", tokenizer, texts)
    works = json.loads((folder / "works.json").read_text())
    works["texts"]["eight_512"] = exact_texts(tokenizer, tokens=512, count=8)
    works["lengths"]["eight_512"] = [512] * 8
    (folder / "works-int8.json").write_text(json.dumps(works))


def export_encoder(folder: Path, target: Path, export: Callable[..., Any]) -> None:
    from enrobe import checkpoint

    read = checkpoint.read(folder)
    with tempfile.TemporaryDirectory() as scratch:
        body = Path(scratch) / "encoder"
        tensors = {n: v for n, v in read.tensors.items() if not n.startswith("heads.")}
        checkpoint.write(
            body, config=read.config, heads={}, tensors=tensors, tokenizer_folder=folder
        )
        export(body, target, format="onnx")


def dynamic(path: Path, target: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Of fused operators' outputs its shape inference knows no type.
    more = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    quantize_dynamic(
        path, target, per_channel=True, weight_type=QuantType.QInt8, extra_options=more
    )


def calibrate(plain: Path, target: Path, tokenizer: Any, texts: list[str]) -> None:
    import onnxruntime
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    wanted = {value.name for value in onnxruntime.InferenceSession(plain).get_inputs()}

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = iter(tokenizer.encode(texts[:CALIBRATED]))

        def get_next(self) -> Any:
            row = next(self.rows, None)
            if row is None:
                return None
            ids = row.ids[None]
            zeros, ones = np.zeros_like(ids), np.ones_like(ids)
            feed = {"input_ids": ids, "attention_mask": ones, "token_type_ids": zeros}
            return {name: feed[name] for name in wanted}

    quantize_static(
        plain,
        target,
        Rows(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"],
        extra_options={"MatMulConstBOnly": True},
    )


def measure(folder: Path, *, keep: bool) -> None:
    given = json.loads((folder / "works-int8.json").read_text())
    size = ["--size", folder.name.removeprefix("embed-")]
    rounds = {work: (count, float("inf")) for work, count in ROUNDS.items()}
    arguments = {name: size for name in (*WHO, "float32")}
    found = take_turns_at(rounds, Path(__file__), arguments, aside=["float32"])
    exact = np.load(folder / "int8-float32.npz")
    report: dict[str, Any] = {"threads": THREADS}
    for name, facts in found.items():
        own = np.load(folder / f"int8-{name}.npz")
        report[name] = {"peak_mb": facts["peak_mb"]}
        for work in ("w1", "w2", "eight_512"):
            tokens = sum(given["lengths"][work])
            report[name][work] = {
                **facts[work],
                "tokens_per_s": round(tokens / facts[work]["median_s"]),
                "centred_cosine": centred(exact[work], own[work]),
            }
        for work in ("one_16", "one_128"):
            p50, p99 = np.percentile(facts["calls_ms"][work], (50, 99)).tolist()
            report[name][work] = {"p50_ms": round(p50, 1), "p99_ms": round(p99, 1)}
    for name in WHO[1:]:
        report[name]["enrobe_is_faster_by"] = {
            work: round(found[name][work]["median_s"] / found["enrobe"][work]["median_s"], 2)
            for work in ("w1", "w2", "eight_512")
        }
    if keep:
        write_report("int8_vs_peers", report)
    else:
        print(json.dumps(report, indent=2))


def centred(exact: Any, found: Any) -> float:
    a, b = exact - exact.mean(0), found - exact.mean(0)
    return round(
        float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()), 5
    )


# --- workers ------------------------------------------------------------------------------------


def worker(name: str, folder: Path) -> None:
    works = json.loads((folder / "works-int8.json").read_text())["texts"]
    embed = {
        "enrobe": lambda: enrobe_embed(folder / "int8", "native"),
        "enrobe_onnx": lambda: enrobe_embed(folder / "int8", "onnx"),
        "float32": lambda: enrobe_embed(folder, "onnx"),
        "onnxruntime_fused": lambda: onnx_embed(folder, "fused.int8.onnx"),
        "onnxruntime_plain": lambda: onnx_embed(folder, "plain.int8.onnx"),
        "ctranslate2": lambda: ctranslate2_embed(folder, "int8", budget=1024),
        "openvino": lambda: openvino_embed(folder, "static.int8.onnx"),
    }[name]()
    calls: dict[str, list[float]] = {"one_16": [], "one_128": []}
    vectors: dict[str, Any] = {}

    def run(work: str) -> None:
        vectors[work] = embed(works[work])
        if work in calls:
            calls[work] += burst(lambda: embed(works[work]))

    def facts() -> dict[str, Any]:
        np.savez(folder / f"int8-{name}.npz", **vectors)
        return {"calls_ms": calls}

    serve(
        {work: lambda work=work: run(work) for work in works},
        lambda: [embed(works["w1"][:16]), *(embed(works[work]) for work in calls)],
        facts,
    )


if __name__ == "__main__":
    sys.exit(main())
