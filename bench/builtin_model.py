"""What the built-in model knows: perplexity, BLiMP, and everyday sentences with a word missing.

    python bench/builtin_model.py [MODEL] [--pairs 200]

Perplexity is measured on held-out encyclopaedia text (text-enwiki valid, never trained on) in rows
of 512 tokens, 15% of the tokens chosen, 80/10/10; beside it stands that of the unigram model of the
training text, with the same vocabulary on the same targets. BLiMP: the share of pairs in which the
grammatical sentence has the higher pseudo-log-likelihood, by `Model.score`.
"""

import argparse
import gzip
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, SHARED, write_report

DATA = SHARED / "data"
# Sentence and the words that are right, written before any model was asked.
CLOZE = (
    ("Paris is the capital of <mask>.", {"France"}),
    ("She drank a cup of <mask>.", {"tea", "coffee", "water", "milk"}),
    ("The sun rises in the <mask>.", {"east", "morning", "sky"}),
    ("He opened the <mask> and walked into the room.", {"door"}),
    ("The opposite of hot is <mask>.", {"cold"}),
    ("Dogs and <mask> are popular pets.", {"cats"}),
    ("There are seven days in a <mask>.", {"week"}),
    ("The king and the <mask> lived in the castle.", {"queen"}),
    ("She was born in 1950 and <mask> in 2010.", {"died"}),
    ("The river flows into the <mask>.", {"sea", "ocean", "lake", "river"}),
    ("Two plus two equals <mask>.", {"four"}),
    ("He is the father of two <mask>.", {"children", "sons", "daughters", "boys", "girls"}),
    ("Water is made of hydrogen and <mask>.", {"oxygen"}),
    ("They won the World <mask> in 1998.", {"Cup", "Championship", "Series", "Title"}),
    ("He wrote a <mask> about his life.", {"book", "novel", "story", "poem", "song"}),
    ("The film was directed <mask> Steven Spielberg.", {"by"}),
    ("London is the largest city in <mask>.", {"England", "Europe", "Britain"}),
    ("He was elected <mask> of the United States.", {"President", "president"}),
    ("The Second World <mask> ended in 1945.", {"War"}),
    ("She can speak English, French and <mask>.", {"German", "Spanish", "Italian", "Russian"}),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?")
    parser.add_argument("--pairs", type=int, default=200, help="BLiMP pairs a paradigm, at most")
    parser.add_argument("--rows", type=int, default=400)
    options = parser.parse_args()
    import enrobe
    from enrobe import hub

    folder = hub.resolve(options.model)
    model = enrobe.load(folder)
    report = {"model": options.model or folder.name, **describe(folder)}
    report |= {"cloze": cloze(model), "heldout": heldout(folder, options.rows)}
    report["blimp"] = blimp(model, options.pairs)
    write_report("builtin_model", report)


def describe(folder: Path) -> dict[str, Any]:
    from enrobe.tasks.info import info

    facts = info(folder)
    return {key: facts[key] for key in ("parameters",) if key in facts}


def cloze(model: Any) -> dict[str, Any]:
    found = {}
    right = 0
    for text, words in CLOZE:
        (fill,) = model.fill(text, top_k=5)
        top = [candidate.word for candidate in fill.masks[0].candidates]
        found[text] = top
        right += bool(words & set(top))
    return {"right_in_top_5": right, "of": len(CLOZE), "top_5": found}


def heldout(folder: Path, rows: int) -> dict[str, Any]:
    import torch

    from enrobe import checkpoint
    from enrobe.data.corpus import build
    from enrobe.data.masking import Masker, MaskingConfig
    from enrobe.data.packing import FullSentences
    from enrobe.engines.base import Request
    from enrobe.engines.torch import TorchEngine
    from enrobe.text.ragged import Ragged
    from enrobe.text.tokenizer import Tokenizer

    read = checkpoint.read(folder)
    tokenizer = Tokenizer.from_folder(folder, read.config.family, read.config.vocab_size)
    cache = ROOT / ".cache/bench/builtin-corpus"
    valid = build(cache / "valid", [DATA / "text-enwiki/valid.txt.xz"], tokenizer)
    names = ("text-enwiki", "text-simplewiki", "text-books-en", "text-speeches")
    counts = np.ones(read.config.vocab_size)
    for name, weight in zip(names, (4, 3, 1, 0.2), strict=True):
        files = sorted((DATA / name).glob("train-*.txt.xz"))[:3]
        corpus = build(cache / name, files, tokenizer)
        size = read.config.vocab_size
        some = sum(np.bincount(shard.tokens, minlength=size) for shard in corpus.shards)
        # Each source in its share of the training rows.
        counts += some * (weight * 1e7 / some.sum())
    unigram = np.log(counts / counts.sum())
    packed = FullSentences(valid, tokenizer, length=min(512, read.config.max_tokens))
    masker = Masker(MaskingConfig(rate=0.15), tokenizer, seed=1)
    engine = TorchEngine(read)
    total = lone = right = 0.0
    number = 0
    for start in range(0, min(rows, len(packed)), 8):
        picked = range(start, min(start + 8, rows, len(packed)))
        batch = Ragged.from_rows([packed.row(i) for i in picked])
        masked = masker(batch, list(picked), 0)
        logits = engine.run(
            Ragged(masked.ids, batch.offsets, batch.types),
            Request(heads=("mlm",)),
            masked.positions,
        ).heads["mlm"]
        values = torch.log_softmax(torch.from_numpy(logits), 1).numpy()
        total -= float(values[np.arange(len(values)), masked.targets].sum())
        right += float((values.argmax(1) == masked.targets).sum())
        lone -= float(unigram[masked.targets].sum())
        number += len(values)
    return {
        "targets": number,
        "perplexity": round(math.exp(total / number), 2),
        "accuracy": round(right / number, 4),
        "unigram_perplexity": round(math.exp(lone / number), 2),
        "share_of_unigram": round(math.exp((total - lone) / number), 4),
    }


def blimp(model: Any, pairs: int) -> dict[str, Any]:
    by_paradigm: dict[str, list[Any]] = {}
    with gzip.open(DATA / "blimp/test.jsonl.gz", "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            by_paradigm.setdefault(row["uid"], []).append(row)
    shares, count = {}, 0
    for name, rows in sorted(by_paradigm.items()):
        some = rows[:pairs]
        good = model.score([row["good"] for row in some])
        bad = model.score([row["bad"] for row in some])
        wins = [a.log_likelihood > b.log_likelihood for a, b in zip(good, bad, strict=True)]
        shares[name] = statistics.mean(wins)
        count += len(wins)
    return {
        "pairs": count,
        "accuracy": round(statistics.mean(shares.values()), 4),
        "by_paradigm": {name: round(share, 3) for name, share in shares.items()},
    }


if __name__ == "__main__":
    main()
