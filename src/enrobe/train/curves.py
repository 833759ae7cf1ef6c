"""A run's log as a picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from enrobe.errors import MissingExtraError


def draw(logs: Sequence[Path], picture: Path) -> None:
    """Draw the training and held-out loss of one run, or of several that follow each other.

    Args:
        logs: log.jsonl files; each one's steps are counted on from the last of those before it.
        picture: the PNG file to write.

    Raises:
        MissingExtraError: without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "train", "a picture of a run") from None
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
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
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
    figure.savefig(picture, dpi=120)
