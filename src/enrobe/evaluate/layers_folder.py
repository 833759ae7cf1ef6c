"""A folder with the scores of all layers: layers.json, layers.md and layers.png."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from enrobe.atomic import check_new, new_folder
from enrobe.evaluate.layers import LayerScore, LayersReport, score_layers
from enrobe.evaluate.pictures import figure
from enrobe.evaluate.probes import POOLS
from enrobe.evaluate.similarity import Progress
from enrobe.tasks.model import Model


def write_layers(
    model: Model,
    output: str | os.PathLike[str],
    *,
    name: str,
    train: str | os.PathLike[str] | None = None,
    dev: str | os.PathLike[str],
    text: Sequence[str],
    label: str,
    progress: Progress | None = None,
) -> LayersReport:
    """`score_layers`, and its report as a new folder: all of it or nothing.

    Args:
        output: the folder to write; it must not exist, or be empty.
        name: what the model is called in the report.
        train, dev, text, label, progress: as `score_layers`.

    Raises:
        CallError, ModelError: as `score_layers`; the folder exists or cannot be written.
        MissingExtraError: without matplotlib; classes without scikit-learn.
    """
    folder = Path(output)
    check_new(folder)
    _figure()
    with new_folder(folder) as work:
        # The folder's disk is where there is room.
        report = score_layers(
            model,
            train=train,
            dev=dev,
            text=text,
            label=label,
            scratch=work,
            progress=progress,
        )
        values = json.dumps({"model": name, **report.to_dict()}, indent=2, allow_nan=False)
        (work / "layers.json").write_text(values + "\n", "utf-8")
        (work / "layers.md").write_text(as_markdown(report, name), "utf-8")
        draw_layers(report, name, work / "layers.png")
    return report


def by_layer(report: LayersReport) -> list[list[LayerScore]]:
    """The scores as a table: a row a layer, a column a pooling, in the order of POOLS."""
    return [
        list(report.scores[start : start + len(POOLS)])
        for start in range(0, len(report.scores), len(POOLS))
    ]


def notes(report: LayersReport) -> list[str]:
    """What a reader of the table has to know, a sentence each."""
    best = report.best
    value = best.score
    out = [
        f"best: layer {best.layer}, {best.pool}, {report.metric} {value.value:.4f} "
        f"({value.low:.4f} to {value.high:.4f})",
        "* these rows do not tell it from the best (paired bootstrap, 95%)",
    ]
    if report.task == "pairs":
        out.append(f"{report.dev_rows:,} pairs; Spearman's correlation of the cosine; no training")
    else:
        out.append(
            f"{report.train_rows:,} rows to learn from, {report.dev_rows:,} to test on; logistic "
            f"regression on standardised vectors, C = {report.probe_c:g}"
        )
        out.append(f"always the commonest label of train: accuracy {report.majority:.4f}")
    if report.not_converged:
        out.append(f"{report.not_converged} probes had not converged when they were stopped")
    if report.skipped:
        out.append(f"{report.skipped:,} rows were left out; the first: {report.error}")
    return out


def cell(score: LayerScore) -> str:
    """A score as tables show it; an asterisk where the rows do not tell it from the best."""
    if math.isnan(score.score.value):
        return "–"
    return f"{score.score.value:.4f}{'*' if score.level else ''}"


def as_markdown(report: LayersReport, name: str) -> str:
    """The table as layers.md has it, the best one bold."""
    lines = [
        f"# Layers of {name}",
        "",
        f"{report.metric.capitalize()} of every layer and pooling; layer 0 is the embeddings.",
        "",
        f"| layer | {' | '.join(POOLS)} |",
        f"|---:|{'---:|' * len(POOLS)}",
    ]
    for row in by_layer(report):
        values = [cell(s).replace("*", r"\*") for s in row]
        cells = [f"**{v}**" if s == report.best else v for s, v in zip(row, values, strict=True)]
        lines.append(f"| {row[0].layer} | {' | '.join(cells)} |")
    lines += ["", *(f"- {note}".replace("*", r"\*") for note in notes(report)), ""]
    return "\n".join(lines)


def draw_layers(report: LayersReport, name: str, picture: Path) -> None:
    """A curve a pooling over the layers, with the interval of the best one's pooling, as a PNG.

    Raises:
        MissingExtraError: without matplotlib.
    """
    made = _figure()
    axes: Any = made.add_subplot()
    table = by_layer(report)
    layers = [row[0].layer for row in table]
    for column, pool in enumerate(POOLS):
        values = [row[column].score for row in table]
        # Dashed, for it may lie on the mean's: the cosine of both is the same.
        style = "o--" if pool == "mean_sqrt_len" else "o-"
        shown = axes.plot(layers, [v.value for v in values], style, markersize=4, label=pool)
        if pool == report.best.pool:
            low, high = [v.low for v in values], [v.high for v in values]
            axes.fill_between(layers, low, high, color=shown[0].get_color(), alpha=0.15)
    axes.plot(report.best.layer, report.best.score.value, "k*", markersize=13, label="best")
    if report.majority is not None:
        axes.axhline(report.majority, color="gray", linestyle=":", label="commonest label")
    axes.set_xticks(layers)
    axes.set_xlabel("layer (0: the embeddings)")
    axes.set_ylabel(f"{report.metric} (band: 95% of the best pooling)")
    axes.set_title(name.replace("$", r"\$"))
    axes.grid(alpha=0.3)
    axes.legend()
    made.savefig(picture, dpi=120)


def _figure() -> Any:
    return figure(7, 4, "a picture of the layers")
