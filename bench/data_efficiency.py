"""How many labelled rows and epochs a task needs: mr and banking77, 1%, 10% and all of the rows.

    python scripts/fetch_weights.py .cache/weights
    python bench/data_efficiency.py [--sets mr banking77]     # goes on where a call ended
    python bench/data_efficiency.py --report

all-MiniLM-L6-v2's encoder, rows drawn at random by seed (three seeds of 1% and 10%, one of all), 32
rows a batch, a rate of 3e-4 that stays where it is after 20 steps of warm-up, so that one run tells
of 1, 2 and 5 epochs. Measured on each set's test file, which nothing is chosen by.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

from common import ROOT, SHARED, finetuned, jsonl, kept, write_jsonl, write_report

MODEL = ROOT / ".cache/weights/minilm"
FOUND = ROOT / ".cache/bench/data-efficiency"
TEXT = {"mr": "sentence", "banking77": "text"}
SHARES = {0.01: 3, 0.1: 3, 1.0: 1}
# and how many seeds
EPOCHS = (1, 2, 5)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", nargs="*", default=list(TEXT), choices=TEXT)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if options.report:
        report()
        return
    for share, seeds in SHARES.items():
        for name in options.sets:
            for seed in range(1, seeds + 1):
                found = kept(
                    place(name, share, seed), what(name, share), partial(run, name, share, seed)
                )
                print(f"{name} {share:.0%} seed {seed}: {found['accuracy']}", file=sys.stderr)


def place(name: str, share: float, seed: int) -> Path:
    return FOUND / f"{name}-{share}-{seed}.json"


def what(name: str, share: float) -> dict[str, Any]:
    """All that a run's scores rest on, but its seed."""
    recipe = {"epochs": EPOCHS[-1], "batch_rows": 32, "lr": 3e-4, "warmup": 20}
    return {"set": name, "share": share, "train": {**recipe, "schedule": "constant"}}


def run(name: str, share: float, seed: int) -> dict[str, Any]:
    """Accuracy after each of EPOCHS."""
    folder = FOUND / f"run-{name}-{share}-{seed}"
    rows, test = (
        [{"text": row[TEXT[name]], "label": f"class {row['label']}"} for row in jsonl(path)]
        for path in (
            SHARED / f"data/{name}/train.jsonl.gz",
            next((SHARED / f"data/{name}").glob("test.jsonl*")),
        )
    )
    labels = sorted({row["label"] for row in rows})
    random.Random(seed).shuffle(rows)
    rows = rows[: round(len(rows) * share)]
    task = {
        "kind": "classify",
        "train": str(write_jsonl(folder / "train.jsonl", rows)),
        "dev": str(write_jsonl(folder / "test.jsonl", test)),
        "text": "text",
        "label": "label",
        "labels": labels,
    }
    train = {**what(name, share)["train"], "save_every": 100, "evaluate_every": 1.0}
    values = {"model": str(MODEL), "seed": seed, "tasks": {name: task}, "train": train}
    finetuned(folder / "run", values)
    lines = map(json.loads, (folder / "run/log.jsonl").read_text().splitlines())
    after = [line["evaluation"][name]["accuracy"] for line in lines if "evaluation" in line]
    shutil.rmtree(folder)
    # An epoch of a few rows is no whole number of steps: one more after the last of them.
    assert len(after) - EPOCHS[-1] in (0, 1)
    accuracy = [*(after[n - 1] for n in EPOCHS[:-1]), after[-1]]
    return {"rows": len(rows), "tested": len(test), "accuracy": accuracy}


def report() -> None:
    cases: list[dict[str, Any]] = []
    for name in TEXT:
        for share, seeds in SHARES.items():
            runs = [json.loads(place(name, share, n).read_text()) for n in range(1, seeds + 1)]
            columns = list(zip(*(one["accuracy"] for one in runs), strict=True))
            cases.append(
                {
                    **runs[0]["what"],
                    "rows": runs[0]["rows"],
                    "tested": runs[0]["tested"],
                    "seeds": seeds,
                    "epochs": EPOCHS,
                    "accuracy": [round(statistics.mean(column), 4) for column in columns],
                    "least": [round(min(column), 4) for column in columns],
                    "most": [round(max(column), 4) for column in columns],
                }
            )
    write_report("data_efficiency", {"model": MODEL.name, "cases": cases})
    draw(cases, ROOT / "docs/data-efficiency.png")


def draw(cases: list[dict[str, Any]], path: Path) -> None:
    """A panel a set: accuracy by rows, a line for each number of epochs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(TEXT), figsize=(9, 3.6), sharey=True)
    for panel, name in zip(panels, TEXT, strict=True):
        own = [case for case in cases if case["set"] == name]
        for index, epochs in enumerate(EPOCHS):
            values, least, most = (
                [100 * case[key][index] for case in own] for key in ("accuracy", "least", "most")
            )
            bars = [
                [a - b for a, b in zip(values, least, strict=True)],
                [b - a for a, b in zip(values, most, strict=True)],
            ]
            panel.errorbar(
                [case["rows"] for case in own],
                values,
                bars,
                marker="o",
                capsize=3,
                label=f"{epochs} epoch{'s' * (epochs > 1)}",
            )
        panel.set(xscale="log", xlabel="labelled rows", title=name)
        panel.set_xticks([case["rows"] for case in own], [f"{case['rows']:,}" for case in own])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy on test, %")
    panels[-1].legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
