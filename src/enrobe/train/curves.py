"""A run's log as a picture."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from enrobe.evaluate.pictures import figure, plain_name, save


def draw(logs: Sequence[Path], picture: Path) -> None:
    """Draw the training and held-out loss of one run, or of several that follow each other.

    Args:
        logs: log.jsonl files; each one's steps are counted on from the last of those before it.
        picture: the PNG file to write.

    Raises:
        MissingExtraError: without matplotlib.
    """
    made = figure(7, 4, "a picture of a run")
    trained: list[tuple[int, float]] = []
    heldout: dict[str, list[tuple[int, float]]] = {}
    start = 0
    for log in logs:
        records = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
        for record in records:
            step = start + record["step"]
            if "loss" in record:
                trained.append((step, record["loss"]))
            for name, measures in record.get("evaluation", {}).items():
                heldout.setdefault(name, []).append((step, measures["loss"]))
        start = max((start + record["step"] for record in records), default=start)
    axes: Any = made.add_subplot()
    if trained:
        steps, losses = zip(*trained, strict=True)
        axes.plot(steps, losses, color="tab:blue", linewidth=0.8, label="training")
    axes.set_prop_cycle(color=["tab:orange", "tab:green", "tab:red", "tab:purple"])
    for name, points in heldout.items():
        axes.plot(*zip(*points, strict=True), "o-", markersize=3, label=f"held-out: {name}")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a masked token)")
    axes.grid(alpha=0.3)
    if trained or heldout:
        axes.legend()
    save(made, picture)


def draw_scores(log: Path, metrics: Mapping[str, str], best_step: int, picture: Path) -> None:
    """Draw a fine-tuning run: its loss, and each task's metric on the dev rows.

    Args:
        log: the run's log.jsonl.
        metrics: of each task the one to show.
        best_step: whose model was kept.
        picture: the PNG file to write.

    Raises:
        MissingExtraError: without matplotlib.
    """
    made = figure(9, 3.8, "a picture of a run")
    left: Any
    right: Any
    left, right = made.subplots(1, 2)
    records = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    trained = [record for record in records if "loss" in record]
    steps = [record["step"] for record in trained]
    left.plot(steps, [record["loss"] for record in trained], color="0.3", label="all")
    if len(metrics) > 1:
        for name in metrics:
            losses = [record.get(f"{name}_loss", math.nan) for record in trained]
            left.plot(steps, losses, linewidth=0.9, label=plain_name(name))
        left.legend()
    left.set_ylabel("training loss")
    left.set_ylim(bottom=0)
    measured = [record for record in records if "evaluation" in record]
    for name, metric in metrics.items():
        points = [
            (record["step"], record["evaluation"][name][metric])
            for record in measured
            if metric in record["evaluation"].get(name, {})
        ]
        if points:
            label = plain_name(f"{name}: {metric.replace('_', ' ')}")
            right.plot(*zip(*points, strict=True), "o-", markersize=4, label=label)
    right.axvline(best_step, color="0.6", linestyle=":", label="best step")
    right.set_ylabel("on the dev rows")
    right.legend()
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    save(made, picture)
