"""What a fine-tuning run leaves to be read: report/ with numbers, words and pictures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enrobe.atomic import new_folder
from enrobe.data.splits import TaskData
from enrobe.errors import MissingExtraError
from enrobe.evaluate.task_report import TaskReport, between, draw_task, escaped, task_markdown
from enrobe.train.curves import draw_scores
from enrobe.train.work import say


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run was, beside its scores."""

    name: str
    model: str
    # what it started from
    settings: Mapping[str, Any]
    # of the training
    steps: int
    best_step: int
    early: bool
    tokens: int
    seconds: float
    # of training, since the run was begun or gone on with last
    evaluation_seconds: float
    parameters: int
    device: str

    def cost(self) -> dict[str, Any]:
        """What metrics.json has of it."""
        keys = ("steps", "best_step", "early", "tokens", "seconds", "evaluation_seconds")
        return {key: getattr(self, key) for key in (*keys, "parameters", "device")}


def write_report(
    folder: Path,
    reports: Sequence[TaskReport],
    data: Mapping[str, TaskData],
    facts: RunFacts,
    log: Path,
) -> None:
    """Write the folder: metrics.json, report.md and, where matplotlib is installed, pictures.

    Raises:
        CallError: it exists, or cannot be written.
    """
    with new_folder(folder) as work:
        values = {
            "model": facts.model,
            "mean": mean_score(reports),
            "tasks": {report.name: report.to_dict() for report in reports},
            "cost": facts.cost(),
            "settings": dict(facts.settings),
        }
        (work / "metrics.json").write_text(json.dumps(values, indent=2) + "\n", "utf-8")
        pictures: dict[str, dict[str, str]] = {}
        curves = ""
        try:
            for report in reports:
                pictures[report.name] = draw_task(report, work)
            metrics = {report.name: next(iter(report.scores)) for report in reports}
            draw_scores(log, metrics, facts.best_step, work / "curves.png")
            curves = "curves.png"
        except MissingExtraError as error:
            say(f"the report has no pictures: {error}")
        text = as_markdown(reports, data, facts, pictures, curves)
        (work / "report.md").write_text(text, "utf-8")


def mean_score(reports: Sequence[TaskReport]) -> float | None:
    """The mean over tasks of each one's first metric; what has no value counts 0."""
    firsts = [next(iter(report.scores.values())).value for report in reports]
    return sum(0.0 if value != value else value for value in firsts) / len(firsts)


def as_markdown(
    reports: Sequence[TaskReport],
    data: Mapping[str, TaskData],
    facts: RunFacts,
    pictures: Mapping[str, Mapping[str, str]],
    curves: str,
) -> str:
    """The text of report.md."""
    lines = [f"# {escaped(facts.name)}", ""]
    lines += [
        f"Fine-tuned from {escaped(facts.model)}; dev rows at the best step, "
        f"{facts.best_step:,} of {facts.steps:,}"
        + (" (patience ended it)." if facts.early else "."),
        "",
    ]
    lines += ["| task | kind | metric | score | 95% interval |", "|---|---|---|---:|---:|"]
    for report in reports:
        metric, score = next(iter(report.scores.items()))
        cells = [escaped(report.name), report.config.kind, metric.replace("_", " ")]
        lines.append(f"| {' | '.join(cells)} | {score.value:.4f} | {between(score)} |")
    lines.append("")
    if len(reports) > 1:
        lines += [f"Mean over the tasks: {mean_score(reports):.4f}.", ""]
    lines += [
        "Intervals are of the percentile bootstrap over the dev rows: what other rows of the same "
        "kind could have given. They say nothing of another seed.",
        "",
    ]
    if curves:
        lines += [f"![learning curves]({curves})", ""]
    for report in reports:
        lines += task_markdown(report, dict(pictures.get(report.name, {})))
    lines += _data(reports, data)
    lines += _cost(facts)
    settings = json.dumps(facts.settings, indent=2, ensure_ascii=False)
    lines += ["## Settings", "", "```json", settings, "```", ""]
    return "\n".join(lines)


def _data(reports: Sequence[TaskReport], data: Mapping[str, TaskData]) -> list[str]:
    lines = ["## Data", "", "| task | rows to learn from | dev rows | labels |"]
    lines.append("|---|---:|---:|---:|")
    for report in reports:
        own = data[report.name]
        labels = len(own.train.labels) or "–"
        lines.append(
            f"| {escaped(report.name)} | {len(own.train):,} | {report.rows:,} | {labels} |"
        )
    lines.append("")
    said = [
        f"- {escaped(report.name)}: {escaped(line)}"
        for report in reports
        for line in data[report.name].said
    ]
    return [*lines, *said, ""] if said else lines


def _cost(facts: RunFacts) -> list[str]:
    return [
        "## What it took",
        "",
        f"- {facts.seconds:,.1f} s of training for {facts.tokens:,} tokens "
        f"({facts.tokens / max(facts.seconds, 1e-9):,.0f} a second), "
        f"{facts.evaluation_seconds:,.1f} s of measuring; of a run that was resumed, since then",
        f"- {facts.parameters:,} parameters, on {facts.device}",
        "",
    ]
