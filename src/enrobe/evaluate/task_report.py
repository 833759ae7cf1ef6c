"""All that is said of one head on labelled rows: as JSON, as Markdown, as pictures."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from enrobe.config import HeadConfig
from enrobe.evaluate.confidence import confidences
from enrobe.evaluate.heads import LabelScore, check_metric, label_scores, score_outputs
from enrobe.evaluate.intervals import Interval, intervals, plain
from enrobe.evaluate.metrics import calibration_bins, calibration_error
from enrobe.evaluate.mistakes import Confusion, Mistake, confusion, mistakes
from enrobe.evaluate.outputs import Outputs, said_once
from enrobe.evaluate.pictures import draw_confusion, draw_numbers, draw_reliability
from enrobe.evaluate.tuning import Tuning

_LONGEST_TEXT = 240
_PAIRS_SHOWN = 15
_NUMBERS = "numbers"


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskReport:
    """One task on its dev rows, with the head as it is stored."""

    name: str
    head: str
    config: HeadConfig
    rows: int
    skipped: int
    # labelled rows that cannot be read
    error: str | None
    # the first one's
    scores: dict[str, Interval]
    # the one that the best checkpoint was chosen by first
    labels: dict[str, LabelScore]
    calibration: Interval | None
    # the expected calibration error
    tuning: Tuning
    confusion: Confusion | None
    mistakes: list[Mistake]
    outputs: Outputs

    def to_dict(self) -> dict[str, Any]:
        """What metrics.json has of the task."""
        tuning = self.tuning
        labels = {
            name: {"precision": one.precision, "recall": one.recall, "f1": plain(one.f1)}
            | {"support": one.support}
            for name, one in self.labels.items()
        }
        return {
            "head": self.head,
            "kind": self.config.kind,
            "rows": self.rows,
            "skipped": self.skipped,
            "error": self.error,
            "scores": {name: plain(value) for name, value in self.scores.items()},
            "labels": labels,
            "calibration_error": None if self.calibration is None else plain(self.calibration),
            "fitted": {
                "rows": tuning.rows,
                "temperature": self.config.temperature,
                "thresholds": list(self.config.thresholds),
                "no_answer": self.config.no_answer,
                "likelihood": _change(tuning.likelihood),
                "calibration_error": _change(tuning.calibration),
                "scores": {name: _change(value) for name, value in tuning.scores.items()},
                "thresholds_kept": tuning.kept,
            },
        }


def _change(change: Any) -> dict[str, float] | None:
    return None if change is None else {key: plain(value) for key, value in asdict(change).items()}


def task_report(
    name: str, outputs: Outputs, tuning: Tuning, *, metric: str | None = None
) -> TaskReport:
    """Measure a head, with what was fitted, on labelled rows.

    Args:
        name: the task's.
        outputs: of its head.
        tuning: the head's.
        metric: to stand first; None: the usual one.
    """
    head = tuning.head
    done = score_outputs(head, outputs)
    first = check_metric(head.kind, head.labels, metric)  # type: ignore[arg-type]  # not mlm
    measures = {first: done.measures[first], **done.measures}
    found = intervals([*measures.values()])
    sure = confidences(head, outputs)
    return TaskReport(
        name=name,
        head=outputs.name,
        config=head,
        rows=done.rows,
        skipped=done.skipped,
        error=done.error,
        scores=dict(zip(measures, found, strict=True)),
        labels=label_scores(head, outputs),
        calibration=calibration_error(*sure).interval() if len(sure[0]) else None,
        tuning=tuning,
        confusion=confusion(head, outputs),
        mistakes=mistakes(head, outputs),
        outputs=outputs,
    )


# --- pictures -----------------------------------------------------------------------------------


def draw_task(report: TaskReport, folder: Path) -> dict[str, str]:
    """Write what can be drawn of a task; {what it shows: the file's name}.

    Raises:
        MissingExtraError: without matplotlib.
    """
    head, outputs = report.config, report.outputs
    made = {}

    def path(what: str) -> Path:
        name = f"{what}-{safe_name(report.name)}"
        # Two names may be spelled the same in a file's.
        while (folder / f"{name}.png").exists():
            name += "_"
        made[what] = f"{name}.png"
        return folder / made[what]

    if report.confusion is not None:
        title = f"{report.name}: labels and what was said"
        draw_confusion(report.confusion.labels, report.confusion.counts, title, path("confusion"))
    if head.kind == "regress":
        said: list[Any] = [one.value for one in said_once(outputs.name, head, outputs)]
        gold: list[Any] = [row.example.label for row in outputs.rows]
        draw_numbers(gold, said, f"{report.name}: numbers", path(_NUMBERS))
    if report.calibration is not None:
        cold = None
        if head.temperature != 1:
            cold = calibration_bins(*confidences(replace(head, temperature=1.0), outputs))
        bins = calibration_bins(*confidences(head, outputs))
        draw_reliability(cold, bins, f"{report.name}: calibration", path("calibration"))
    return made


def safe_name(name: str) -> str:
    """A task's name as part of a file's."""
    return "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in name)


# --- Markdown -----------------------------------------------------------------------------------


def task_markdown(report: TaskReport, pictures: dict[str, str]) -> list[str]:
    """The lines of a task's part of report.md."""
    head = report.config
    lines = [f"## {escaped(report.name)}", ""]
    lines += [f"A {head.kind} head, {report.rows:,} dev rows.", ""]
    if report.skipped:
        lines += [f"{report.skipped:,} rows cannot be read; the first: {escaped(report.error)}", ""]
    lines += _table(("metric", "score", "95% interval"), _score_rows(report.scores), "lrr")
    lines += _label_table(report)
    lines += _fitted(report)
    for what, name in pictures.items():
        lines += [f"![{what} of {escaped(report.name)}]({name})", ""]
    lines += _confused(report)
    lines += _mistakes(report)
    return lines


def _score_rows(scores: dict[str, Interval]) -> list[tuple[str, str, str]]:
    return [(name.replace("_", " "), f"{s.value:.4f}", between(s)) for name, s in scores.items()]


def between(score: Interval) -> str:
    """An interval as tables show it."""
    return f"{score.low:.4f} to {score.high:.4f}"


def _label_table(report: TaskReport) -> list[str]:
    if not report.labels:
        return []
    thresholds = dict(zip(report.config.labels, report.config.thresholds, strict=False))
    columns = ["label", "rows", "precision", "recall", "F1", "95% interval"]
    columns += ["given from"] if thresholds else []
    rows = []
    # The worst first: that is where there is something to do.
    for name, one in sorted(report.labels.items(), key=lambda item: item[1].f1.value):
        cells = [escaped(name), f"{one.support:,}"]
        cells += ["–" if v is None else f"{v:.4f}" for v in (one.precision, one.recall)]
        cells += [f"{one.f1.value:.4f}", between(one.f1)]
        if thresholds:
            cells.append(f"{thresholds.get(name, 0.5):.3f}")
        rows.append(cells)
    return _table(columns, rows, "l" + "r" * (len(columns) - 1))


def _fitted(report: TaskReport) -> list[str]:
    tuning = report.tuning
    if tuning.likelihood is None or tuning.calibration is None:
        return []
    lines = [
        f"Fitted to {tuning.rows:,} dev rows, and measured on the same ones, so a little too good:",
        "",
        f"- temperature {report.config.temperature:g}: negative log-likelihood "
        f"{tuning.likelihood.before:.4f} before, {tuning.likelihood.after:.4f} after; expected "
        f"calibration error {tuning.calibration.before:.4f} before, "
        f"{tuning.calibration.after:.4f} after. No label changes by it.",
    ]
    if tuning.scores:
        what = "thresholds of the labels"
        if report.config.kind == "answer":
            what = f"no answer where its probability is above {report.config.no_answer:.4f}"
        changes = ", ".join(
            f"{name.replace('_', ' ')} {one.before:.4f} before, {one.after:.4f} after"
            for name, one in tuning.scores.items()
        )
        kept = "" if tuning.kept else "; not used, for the head's own metric is lower with it"
        lines.append(f"- {what}: {changes}{kept}.")
    return [*lines, ""]


def _confused(report: TaskReport) -> list[str]:
    pairs = report.confusion.pairs()[:_PAIRS_SHOWN] if report.confusion else []
    if not pairs:
        return []
    rows = [(escaped(a), escaped(b), f"{count:,}") for a, b, count in pairs]
    return ["Most often confused:", "", *_table(("label", "said", "times"), rows, "llr")]


def _mistakes(report: TaskReport) -> list[str]:
    if not report.mistakes:
        return ["No mistakes.", ""]
    sure = report.mistakes[0].probability is not None
    rows = [
        (
            f"{one.number:,}",
            escaped(one.text),
            escaped(one.label),
            escaped(one.said),
            *([f"{one.probability:.4f}"] if sure else []),
        )
        for one in report.mistakes
    ]
    title = "The mistakes with the highest probability:" if sure else "Furthest off:"
    columns = ("row", "text", "label", "said", *(["probability"] if sure else []))
    return [title, "", *_table(columns, rows, "rlll" + "r" * sure)]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    rule = "|".join({"l": "---", "r": "---:"}[side] for side in sides)
    return [
        f"| {' | '.join(columns)} |",
        f"|{rule}|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def escaped(text: str | None, longest: int = _LONGEST_TEXT) -> str:
    """A user's text in a cell of a Markdown table: one line, and nothing in it is markup."""
    shown = " ".join(str(text).split())
    shown = shown if len(shown) <= longest else shown[: longest - 1] + "…"
    for sign in "\\`*_[]|~$":
        shown = shown.replace(sign, f"\\{sign}")
    shown = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return shown or " "
