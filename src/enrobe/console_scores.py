"""Scores as the command line shows them: a table on a terminal, one JSON object elsewhere."""

import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from enrobe.console import json_line, printable
from enrobe.evaluate import languages_folder
from enrobe.evaluate.files import HeadReport, Report
from enrobe.evaluate.intervals import Interval
from enrobe.evaluate.languages import LanguagesReport
from enrobe.evaluate.layers import LayersReport
from enrobe.evaluate.layers_folder import by_layer, cell, notes
from enrobe.evaluate.probes import POOLS
from enrobe.evaluate.seeds import Spread
from enrobe.evaluate.suites import SuiteReport

if TYPE_CHECKING:
    from enrobe.train.align import AlignResult
    from enrobe.train.distil_report import DistilResult
    from enrobe.train.finetune_result import FinetuneResult


def show_evaluated(report: Report, *, as_json: bool) -> int:
    """A report's scores; the exit code: 2 where rows were left out."""
    if not _shown_as_json(report, as_json):
        table = Table(box=None, padding=(0, 1))
        table.add_column(report.task)
        table.add_column("value", justify="right")
        table.add_column("95% interval", justify="right")
        for part in fields(report):
            value = getattr(report, part.name)
            if isinstance(value, Interval):
                between = f"{value.low:.4f} to {value.high:.4f}"
                table.add_row(part.name.replace("_", " "), f"{value.value:.4f}", between)
        console = Console(highlight=False)
        console.print(table)
        console.print(f"{report.rows:,} pairs, {report.similarity} similarity")
    return _left_out(report)


def show_head(report: HeadReport, *, as_json: bool) -> int:
    """A head's scores; the exit code: 2 where rows were left out."""
    if not _shown_as_json(report, as_json):
        table = Table(box=None, padding=(0, 1))
        table.add_column(printable(report.head))
        table.add_column("value", justify="right")
        table.add_column("95% interval", justify="right")
        for name, value in report.scores.items():
            between = f"{value.low:.4f} to {value.high:.4f}"
            table.add_row(name.replace("_", " "), f"{value.value:.4f}", between)
        console = Console(highlight=False)
        console.print(table)
        if report.labels:
            console.print(_label_table(report))
        calibrated = ""
        if report.calibration is not None:
            calibrated = f", expected calibration error {report.calibration.value:.4f}"
        console.print(f"{report.rows:,} rows, a {report.kind} head{calibrated}")
        if report.majority is not None:
            console.print(f"accuracy of the commonest label: {report.majority:.4f}")
    for line in report.said:
        print(f"enrobe: {printable(line)}", file=sys.stderr)
    return _left_out(report)


def show_suite(report: SuiteReport, *, as_json: bool) -> int:
    """A suite's scores; the exit code: 2 where rows were left out."""
    if not _shown_as_json(report, as_json):
        table = Table(box=None, padding=(0, 1))
        for name in ("task", "", "metric"):
            table.add_column(name)
        for name in ("value", "95% interval", "rows", "task's score"):
            table.add_column(name, justify="right")
        before = ""
        for part in report.parts:
            for number, (name, value) in enumerate(part.scores.items()):
                first = part.task != before
                before = part.task
                table.add_row(
                    part.task if first else "",
                    "" if number else printable(part.part),
                    name.replace("_", " "),
                    f"{value.value:.4f}",
                    f"{value.low:.4f} to {value.high:.4f}",
                    "" if number else f"{part.rows:,}",
                    f"{report.tasks[part.task]:.4f}" if first else "",
                )
        console = Console(highlight=False)
        console.print(table)
        for name, reason in report.missing.items():
            console.print(f"not scored: {name}: {printable(reason)}", markup=False)
        whole = len(report.tasks) + len(report.missing)
        console.print(f"mean of {len(report.tasks)} of {whole} tasks: {report.mean:.4f}")
    return _left_out(report)


def _label_table(report: HeadReport) -> Table:
    """Each label, the worst first."""
    table = Table(box=None, padding=(0, 1))
    table.add_column("label")
    for name in ("rows", "precision", "recall", "F1", "95% interval"):
        table.add_column(name, justify="right")
    for name, one in sorted(report.labels.items(), key=lambda item: item[1].f1.value):
        shares = ["–" if v is None else f"{v:.4f}" for v in (one.precision, one.recall)]
        between = f"{one.f1.low:.4f} to {one.f1.high:.4f}"
        f1 = f"{one.f1.value:.4f}"
        table.add_row(printable(name), f"{one.support:,}", *shares, f1, between)
    return table


def show_languages(report: LanguagesReport, output: Path | None, *, as_json: bool) -> int:
    """Scores by language; the exit code: 2 where rows were left out."""
    if not _shown_as_json(report, as_json):
        head, rows = languages_folder.table(report)
        table = Table(box=None, padding=(0, 1))
        for number, name in enumerate(head):
            table.add_column(name, justify="right" if number else "left")
        for row in rows:
            table.add_row(*map(printable, row))
        console = Console(highlight=False)
        console.print(table)
        for note in languages_folder.notes(report):
            console.print(printable(note), markup=False)
        if output is not None:
            console.print(f"written: {printable(str(output))}", markup=False)
    return _left_out(report)


def show_finetuned(result: "FinetuneResult", *, as_json: bool) -> None:
    """What a fine-tuning run made, on standard output."""
    if _shown_as_json(result, as_json):
        return
    ended = "patience ended it" if result.early else "done"
    done = ended if result.finished else "stopped; go on with --resume"
    table = Table(box=None, padding=(0, 1), title=f"step {result.step:,}, {done}")
    table.add_column("task")
    table.add_column("")
    table.add_column("dev", justify="right")
    for name, measures in result.scores.items():
        for number, (measure, value) in enumerate(measures.items()):
            shown = "" if number else printable(name)
            table.add_row(shown, measure.replace("_", " "), f"{value:.4f}")
    console = Console(highlight=False)
    if result.scores:
        console.print(table)
        console.print(f"best step: {result.best_step:,}, mean {result.score:.4f}")
    if result.spread:
        console.print(_seeds_table(result))
    if result.gains:
        console.print(_gains_table(result))
    console.print(f"{result.seconds:,.0f} s of training, {result.evaluation_seconds:,.0f} s of dev")
    console.print(f"model: {printable(str(result.model))}", markup=False)


def show_distilled(result: "DistilResult", *, as_json: bool) -> None:
    """What a student has kept of its teacher, on standard output."""
    if _shown_as_json(result, as_json):
        return
    done = "done" if result.finished else "stopped; go on with --resume"
    shown = Table(box=None, padding=(0, 1), title=f"step {result.step:,}, {done}")
    shown.add_column("")
    for name in ("teacher", "student", ""):
        shown.add_column(name, justify="right")
    for label, *cells in result.compared():
        shown.add_row(printable(label), *cells)
    console = Console(highlight=False)
    if result.finished:
        console.print(shown)
    console.print(
        f"{result.seconds:,.0f} s of training, {result.teacher_seconds:,.0f} s of the teacher's "
        "answers"
    )
    console.print(f"model: {printable(str(result.model))}", markup=False)


def _seeds_table(result: "FinetuneResult") -> Table:
    table = Table(box=None, padding=(0, 1), title=f"over seeds; the model is seed {result.seed}'s")
    for name in ("task", "", "mean", "95% interval"):
        table.add_column(name, justify="right" if name[:1] in ("m", "9") else "left")
    for name, measures in result.spread.items():
        for number, (measure, spread) in enumerate(measures.items()):
            shown = "" if number else printable(name)
            table.add_row(shown, measure.replace("_", " "), f"{spread.mean:.4f}", _between(spread))
    return table


def _gains_table(result: "FinetuneResult") -> Table:
    table = Table(box=None, padding=(0, 1), title="each task alone and together")
    for name in ("task", ""):
        table.add_column(name)
    for name in ("alone", "together", "difference", "95% interval"):
        table.add_column(name, justify="right")
    for name, measures in result.gains.items():
        for number, (measure, gain) in enumerate(measures.items()):
            parts = (gain.alone, gain.together)
            cells = [*(f"{part.mean:.4f}" for part in parts), f"{gain.difference.mean:+.4f}"]
            shown = "" if number else printable(name)
            table.add_row(shown, measure.replace("_", " "), *cells, _between(gain.difference))
    return table


def _between(spread: Spread) -> str:
    if spread.low is None or spread.high is None:
        return "one seed"
    return f"{spread.low:.4f} to {spread.high:.4f}"


def show_aligned(result: "AlignResult", *, as_json: bool) -> None:
    """What an alignment brought, on standard output."""
    from enrobe.train.align import table

    if _shown_as_json(result, as_json):
        return
    if not result.finished:
        print(f"stopped; go on with --resume; so far: {printable(str(result.model))}")
        return
    head, *rows = table(result)
    shown = Table(box=None, padding=(0, 1), title="found at rank 1, there / back")
    for number, name in enumerate(head):
        shown.add_column(name, justify="right" if number else "left")
    for row in rows:
        shown.add_row(*map(printable, row))
    console = Console(highlight=False)
    console.print(shown)
    console.print(f"{result.pairs:,} pairs learned from, {result.heldout:,} others measured on")
    console.print(f"model: {printable(str(result.model))}", markup=False)


def show_layers(report: LayersReport, output: Path, *, as_json: bool) -> int:
    """The scores of all layers; the exit code: 2 where rows were left out."""
    if not _shown_as_json(report, as_json):
        table = Table(box=None, padding=(0, 1))
        for name in ("layer", *POOLS):
            table.add_column(name, justify="right")
        for row in by_layer(report):
            cells = [
                f"[bold]{cell(s)}[/bold]" if s == report.best else f"{cell(s):<7}" for s in row
            ]
            table.add_row(str(row[0].layer), *cells)
        console = Console(highlight=False)
        console.print(table)
        for note in notes(report):
            console.print(note, markup=False)
        console.print(f"written: {output}", markup=False)
    return _left_out(report)


def _shown_as_json(
    report: "Report | LayersReport | LanguagesReport | HeadReport | SuiteReport | FinetuneResult "
    "| DistilResult | AlignResult",
    as_json: bool,
) -> bool:
    if not as_json and Console().is_terminal:
        return False
    sys.stdout.buffer.write(json_line(report.to_dict()))
    sys.stdout.buffer.flush()
    return True


def _left_out(
    report: Report | LayersReport | LanguagesReport | HeadReport | SuiteReport,
) -> int:
    if not report.skipped:
        return 0
    reason = " ".join(str(report.error).split())
    print(f"enrobe: {report.skipped:,} rows were left out; the first: {reason}", file=sys.stderr)
    return 2
