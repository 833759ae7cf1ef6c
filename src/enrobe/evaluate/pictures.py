"""Pictures of scores: which labels are taken for which, and is a probability what it says."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from enrobe.errors import MissingExtraError
from enrobe.evaluate.metrics import Bin

# As many labels as have room for their counts, and as have room at all.
_WITH_COUNTS = 20
MOST_LABELS = 80
_LONGEST_NAME = 30


def figure(width: float, height: float, what: str) -> Any:
    """An empty figure, drawn without a screen; sizes in inches.

    Raises:
        MissingExtraError: without matplotlib; `what` says for what it is needed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingExtraError("matplotlib", "train", what) from None
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def save(made: Any, picture: Path) -> None:
    """Write a figure as a PNG file."""
    with warnings.catch_warnings():
        # A label in a script that the font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph")
        made.savefig(picture, dpi=120)


def plain_name(text: str, longest: int = _LONGEST_NAME) -> str:
    """A user's word as a picture shows it: on one line, not too long, without formulas."""
    text = " ".join(text.split())
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return text.replace("$", r"\$")


def draw_confusion(
    labels: Sequence[str], counts_CC: npt.NDArray[np.int64], title: str, picture: Path
) -> None:
    """Rows that have a label (down) and what was said of them (across), as shares of the row.

    Of more than MOST_LABELS labels those with the most mistakes are shown.
    """
    if len(labels) > MOST_LABELS:
        wrong = counts_CC.sum(axis=0) + counts_CC.sum(axis=1) - 2 * np.diag(counts_CC)
        kept = np.sort(np.argsort(-wrong, kind="stable")[:MOST_LABELS])
        title = f"{title}: the {MOST_LABELS} of {len(labels)} labels with the most mistakes"
        labels = [labels[n] for n in kept]
        counts_CC = counts_CC[np.ix_(kept, kept)]
    few = len(labels) <= _WITH_COUNTS
    names = [plain_name(label, _LONGEST_NAME if few else 50) for label in labels]
    side = len(labels) * (0.42 if few else 0.19)
    room = 0.9 + max(map(len, names)) * (0.085 if few else 0.068)
    side = max(side, 2.2)
    made = figure(side + room + 0.8, side + room + 0.4, "a picture of the scores")
    axes: Any = made.add_subplot()
    sums_C1 = counts_CC.sum(axis=1, keepdims=True)
    shares_CC = counts_CC / np.maximum(sums_C1, 1)
    # The square root, so that a few rows in a hundred are seen where no count says so.
    shown_CC = shares_CC if few else np.sqrt(shares_CC)
    image = axes.imshow(shown_CC, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    size = 9 if few else 7
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.4)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("said", fontsize=10 if few else 13)
    axes.set_ylabel("label", fontsize=10 if few else 13)
    axes.set_title(plain_name(title, 90), fontsize=10 if few else 15)
    if few:
        for (down, across), count in np.ndenumerate(counts_CC):
            if count:
                color = "white" if shares_CC[down, across] > 0.55 else "black"
                shown = f"{count:,}" if count < 100_000 else f"{count:.0e}"
                small = 9 if len(shown) < 4 else 7 if len(shown) < 6 else 6
                axes.text(
                    across, down, shown, ha="center", va="center", fontsize=small, color=color
                )
    bar = made.colorbar(image, ax=axes, shrink=0.6, aspect=25, pad=0.02)
    ticks = (0, 0.01, 0.05, 0.2, 0.5, 1)
    if not few:
        bar.set_ticks([tick**0.5 for tick in ticks], labels=[f"{tick:g}" for tick in ticks])
    bar.set_label("share of the label's rows", fontsize=10 if few else 13)
    save(made, picture)


def draw_reliability(
    before: Sequence[Bin] | None, after: Sequence[Bin], title: str, picture: Path
) -> None:
    """How often what is said with a probability is right; the diagonal is where it should be.

    `before` is without the temperature; None: there is none. Below, how often each probability is.
    """
    made = figure(5.2, 5.6, "a picture of the calibration")
    grid = made.add_gridspec(2, 1, height_ratios=(4, 1))
    axes: Any = made.add_subplot(grid[0])
    below: Any = made.add_subplot(grid[1], sharex=axes)
    axes.plot((0, 1), (0, 1), color="0.6", linestyle=":", label="as it should be")
    shown = [(after, "tab:blue", "o-", "as stored")]
    if before is not None:
        shown.insert(0, (before, "tab:orange", "s--", "without temperature"))
    for bins, color, style, label in shown:
        some = [one for one in bins if one.rows]
        axes.plot(
            [one.confidence for one in some],
            [one.accuracy for one in some],
            style,
            color=color,
            markersize=4,
            label=label,
        )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("share that is right")
    axes.set_title(plain_name(title, 60), fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    axes.tick_params(labelbottom=False)
    rows = sum(one.rows for one in after)
    below.bar(
        [one.low for one in after],
        [one.rows / max(rows, 1) for one in after],
        width=[one.high - one.low for one in after],
        align="edge",
        color="tab:blue",
        edgecolor="white",
    )
    below.set_xlabel("probability")
    below.set_ylabel("share of all")
    below.grid(alpha=0.3)
    save(made, picture)


def draw_numbers(gold: Sequence[float], said: Sequence[float], title: str, picture: Path) -> None:
    """Numbers that a head gives against those that they should be."""
    made = figure(5.2, 5.0, "a picture of the scores")
    axes: Any = made.add_subplot()
    low, high = min(*gold, *said), max(*gold, *said)
    axes.plot((low, high), (low, high), color="0.6", linestyle=":")
    axes.plot(gold, said, "o", markersize=3, alpha=0.4, color="tab:blue", markeredgewidth=0)
    axes.set_xlabel("label")
    axes.set_ylabel("said")
    axes.set_title(plain_name(title, 60), fontsize=11)
    axes.grid(alpha=0.3)
    save(made, picture)
