"""The end of a fine-tuning run: the best model with what is fitted to it, its card, its report."""

from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path

from enrobe import checkpoint
from enrobe.atomic import replace_folder
from enrobe.config import HeadConfig
from enrobe.data.splits import TaskData
from enrobe.evaluate.outputs import Outputs
from enrobe.evaluate.task_report import TaskReport, task_report
from enrobe.evaluate.tuning import Tuning, tune
from enrobe.train.log import LOG
from enrobe.train.model_card import CARD, model_card
from enrobe.train.report import RunFacts, write_report


def reports_of(
    heads: Mapping[str, HeadConfig], outputs: Mapping[str, Outputs], metrics: Mapping[str, str]
) -> list[TaskReport]:
    """Fit temperatures and thresholds, and measure what the heads are with them.

    Args:
        heads: the model's.
        outputs: what they put out for each task's dev rows.
        metrics: of each task the one that comes first.
    """
    tunings = {name: _tuned(name, heads[name], outputs) for name in heads}
    return [
        task_report(name, own, tunings[own.name], metric=metrics[name])
        for name, own in outputs.items()
    ]


def _tuned(name: str, head: HeadConfig, outputs: Mapping[str, Outputs]) -> Tuning:
    """From the rows of all tasks that share a head."""
    rows = tuple(row for one in outputs.values() if one.name == name for row in one.rows)
    return tune(head, Outputs(name, rows))


def scores_of(reports: Sequence[TaskReport]) -> dict[str, dict[str, float]]:
    """{task: {metric: value}}; what has no value counts as 0."""
    return {
        one.name: {
            key: 0.0 if isnan(score.value) else score.value for key, score in one.scores.items()
        }
        for one in reports
    }


def complete_model(
    folder: Path,
    family: str,
    reports: Sequence[TaskReport],
    tasks: Mapping[str, TaskData],
    facts: RunFacts,
) -> None:
    """Write into a model's new folder what its heads carry, and the card."""
    checkpoint.write_heads(folder, {report.head: report.config for report in reports})
    own = {name: data.task for name, data in tasks.items()}
    card = model_card(facts.name, facts.model, family, reports, own, facts.settings)
    (folder / CARD).write_text(card, "utf-8")


def replace_report(
    folder: Path,
    reports: Sequence[TaskReport],
    tasks: Mapping[str, TaskData],
    facts: RunFacts,
) -> None:
    """Write report/ into a run's folder; an older one, of a run that went on, goes."""
    log = folder / LOG
    replace_folder(folder / "report", lambda place: write_report(place, reports, tasks, facts, log))
