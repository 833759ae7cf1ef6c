"""Tatoeba by language, and a bridge for an English model: what `enrobe align` brings.

    python bench/languages.py E5_FOLDER MINILM_FOLDER [--work DIR]

Vectors of every distinct sentence are made once, by `embed_files`, and kept in the work folder: a
run that is killed goes on. multilingual-e5-small reads "query: " before every sentence. Accuracy is
that of `enrobe evaluate --task bitext`, the alignment that of recipes/align.toml, by the functions
that these run.
"""

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
from common import ROOT, SHARED, write_report

from enrobe.evaluate.alignment import mean_alignment, score_alignment
from enrobe.evaluate.similarity import distinct, search_pairs
from enrobe.tasks.bulk import embed_files
from enrobe.tasks.pooling import normalize
from enrobe.train.align_pairs import Pairs, split
from enrobe.train.procrustes import procrustes

TATOEBA = SHARED / "data/tatoeba/test.jsonl.gz"
HELDOUT = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description="Tatoeba by language, and an alignment.")
    parser.add_argument("e5", type=Path)
    parser.add_argument("minilm", type=Path)
    parser.add_argument("--work", type=Path, default=ROOT / ".cache/bench/languages")
    call = parser.parse_args()
    with gzip.open(TATOEBA, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    e5 = vectors(call.e5, "query", {row[key]: 0 for row in rows for key in ("source", "eng")}, call)
    minilm = vectors(call.minilm, None, {row["eng"]: 0 for row in rows}, call)
    write_report("languages", {"tatoeba": tatoeba(rows, e5), "align": align(rows, e5, minilm)})


def vectors(
    model: Path, prompt: str | None, texts: dict[str, int], call: argparse.Namespace
) -> dict[str, np.ndarray]:
    call.work.mkdir(parents=True, exist_ok=True)
    lines, out = (call.work / f"{model.name}{end}" for end in (".jsonl", ".npy"))
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    embed_files(lines, out, model=model, prompt=prompt, resume=True)
    return dict(zip(texts, np.load(out, mmap_mode="r"), strict=True))


def tatoeba(rows: list[dict[str, str]], e5: dict[str, np.ndarray]) -> dict[str, object]:
    """Accuracy from the language to English and back, each language among its own pairs."""
    languages = {}
    for name in dict.fromkeys(row["lang"] for row in rows):
        texts, places = distinct([(r["source"], r["eng"]) for r in rows if r["lang"] == name])
        found = np.stack([e5[text] for text in texts])
        there = search_pairs(found, places, "cosine").first.mean()
        back = search_pairs(found, places[:, ::-1], "cosine").first.mean()
        languages[name] = {
            "pairs": len(places),
            "to_english": round(float(there), 4),
            "from_english": round(float(back), 4),
        }
    means = {
        key: round(float(np.mean([one[key] for one in languages.values()])), 4)
        for key in ("to_english", "from_english")
    }
    return {"model": "multilingual-e5-small, 4-bit weights", "mean": means, "languages": languages}


def align(
    rows: list[dict[str, str]], e5: dict[str, np.ndarray], minilm: dict[str, np.ndarray]
) -> dict[str, object]:
    """MiniLM's English sentences into e5's space, learned from half of them."""
    pairs = Pairs([(r["eng"], r["source"]) for r in rows], [r["lang"] for r in rows])
    learned, heldout = split(pairs, HELDOUT, 1)
    sides = []
    for some in (learned, heldout):
        english = np.stack([minilm[a] for a, _ in some.texts])
        sides.append((english, np.stack([e5[b] for _, b in some.texts])))
    rotation = procrustes(*sides[0])
    english, other = sides[1]
    found = score_alignment(
        heldout.texts, heldout.languages, english, rotation(normalize(english)), other
    )
    mean = mean_alignment(found)
    assert mean.before is not None
    return {
        "learned_from": len(learned.texts),
        "measured_on": len(heldout.texts),
        "times": round(mean.after.accuracy / mean.before.accuracy, 1),
        "mean": mean.to_dict(),
        "languages": {name: one.to_dict() for name, one in found.items()},
    }


if __name__ == "__main__":
    main()
