"""Fill masks: Enrobe against transformers, float32, two threads, W1 (512 short texts, a mask each).

    python bench/fill_vs_transformers.py [--rounds 3] [--texts 512]

Contenders: enrobe (`Model.fill`); `pipeline("fill-mask")` with batch_size 32 and with 1, as users
write it; and the same model by hand, at its best: texts sorted by length, the head at masks only.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import BASE, roberta_folder, scratch, serve, take_turns, workload_1, write_report

THREADS = 2
os.environ["OMP_NUM_THREADS"] = str(THREADS)
os.environ["HF_HUB_OFFLINE"] = "1"

NAMES = ("enrobe", "pipeline_32", "pipeline_1", "sorted_masks_only")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--only", nargs="*", default=NAMES, choices=NAMES)
    parser.add_argument("--worker")
    parser.add_argument("--folder")
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, Path(options.folder))
        return
    from enrobe.text.tokenizer import Tokenizer

    folder = scratch("roberta-base")
    roberta_folder(folder, **BASE)
    tokenizer = Tokenizer.from_folder(folder, "roberta")
    texts = workload_1(tokenizer, count=options.texts)
    (folder / "texts.json").write_text(json.dumps(texts))
    tokens = sum(len(row) for row in tokenizer.encode(texts))
    found = take_turns(
        Path(__file__), {n: ["--folder", str(folder)] for n in options.only}, options.rounds
    )
    for facts in found.values():
        facts["texts_per_s"] = round(len(texts) / facts["median_s"], 1)
        facts["tokens_per_s"] = round(tokens / facts["median_s"])
    answers = {facts.pop("first_words") for facts in found.values()}
    report: dict[str, Any] = {"texts": len(texts), "tokens": tokens, "threads": THREADS}
    report |= {"same_answers": len(answers) == 1, "contenders": found}
    if "enrobe" in found:
        own = found["enrobe"]["median_s"]
        report["times_faster"] = {
            name: round(facts["median_s"] / own, 2)
            for name, facts in found.items()
            if name != "enrobe"
        }
    write_report("fill_vs_transformers", report)


Fill = Callable[[list[str]], list[int]]


def worker(name: str, folder: Path) -> None:
    texts = json.loads((folder / "texts.json").read_text())
    make = {"enrobe": enrobe_fill, "sorted_masks_only": sorted_fill}.get(name)
    fill = make(folder) if make else pipeline_fill(folder, int(name.rpartition("_")[2]))
    serve(
        lambda: fill(texts),
        lambda: fill(texts[:64]),
        lambda: {"first_words": json.dumps(fill(texts[:32]))},
    )


def enrobe_fill(folder: Path) -> Fill:
    import enrobe

    model = enrobe.load(folder)
    return lambda texts: [f.masks[0].candidates[0].token_ids[0] for f in model.fill(texts)]


def pipeline_fill(folder: Path, size: int) -> Fill:
    import torch
    from transformers import logging, pipeline

    logging.set_verbosity_error()
    torch.set_num_threads(THREADS)
    fill = pipeline("fill-mask", model=str(folder))
    return lambda texts: [found[0]["token"] for found in fill(texts, batch_size=size)]


def sorted_fill(folder: Path) -> Fill:
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer, logging

    logging.set_verbosity_error()
    torch.set_num_threads(THREADS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()

    def fill(texts: list[str]) -> list[int]:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        best: dict[int, int] = {}
        with torch.inference_mode():
            for start in range(0, len(order), 32):
                part = order[start : start + 32]
                batch = tokenizer([texts[i] for i in part], padding=True, return_tensors="pt")
                hidden = model.roberta(**batch).last_hidden_state
                logits = model.lm_head(hidden[batch["input_ids"] == tokenizer.mask_token_id])
                top = logits.softmax(-1).topk(5)
                best.update(zip(part, top.indices[:, 0].tolist(), strict=True))
        return [best[i] for i in range(len(texts))]

    return fill


if __name__ == "__main__":
    main()
