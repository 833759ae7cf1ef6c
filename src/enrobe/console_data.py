"""A report on labelled files as the command line shows it."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from enrobe.console import json_line
from enrobe.tasks.data_counts import Spread
from enrobe.tasks.data_report import DataReport, FileReport

_LABELS_SHOWN = 20
_BAR = 24
_COUNTS = ("rows", "bad", "unlabelled", "empty", "duplicates", "conflicts")


def show_data(report: DataReport, *, as_json: bool) -> int:
    """A report on standard output; the exit code: 2 where rows cannot be read."""
    bad = sum(file.bad for file in report.files)
    total = bad + sum(file.rows for file in report.files)
    if as_json or not Console().is_terminal:
        sys.stdout.buffer.write(json_line(report.to_dict()))
        sys.stdout.buffer.flush()
    else:
        console = Console(highlight=False)
        for line in report.said:
            console.print(_clean(line), soft_wrap=True)
        console.print(_facts(report.files))
        if any(file.labels for file in report.files):
            console.print(_labels(report))
        for line in report.warnings:
            console.print(f"[bold]![/bold] {_clean(line)}", soft_wrap=True)
        for row in report.bad_rows:
            console.print(f"  {_clean(row['file'])}: {_clean(row['error'])}", soft_wrap=True)
    if bad:
        print(f"enrobe: {bad:,} of {total:,} rows cannot be read", file=sys.stderr)
    return 2 if bad else 0


def _facts(files: Sequence[FileReport]) -> Table:
    table = _table("", files)
    for name in _COUNTS:
        values = [getattr(file, name) for file in files]
        if name == "rows" or any(values):
            table.add_row({"empty": "blank"}.get(name, name), *(f"{n:,}" for n in values))
    spreads: list[tuple[str, Callable[[FileReport], Spread | None]]] = [
        ("labels", lambda file: file.numbers),
        ("characters", lambda file: file.characters),
        ("tokens", lambda file: file.tokens),
    ]
    for name, of in spreads:
        found = [of(file) for file in files]
        if any(found):
            for part, field in (("median", "median"), ("95%", "p95"), ("most", "most")):
                cells = [f"{getattr(s, field):,g}" if s else "" for s in found]
                table.add_row(f"{name}, {part}", *cells)
    if any(file.tokens for file in files):
        shares = [
            f"{f.tokens.over_limit:,} of {f.tokens.rows:,}" if f.tokens else "" for f in files
        ]
        table.add_row("over the limit", *shares)
    return table


def _labels(report: DataReport) -> Table:
    table = _table("label", report.files)
    table.add_column("")
    names = list(dict.fromkeys(name for file in report.files for name in file.labels))
    first = report.files[0].labels
    largest = max(first.values(), default=1)
    for name in names[:_LABELS_SHOWN]:
        bar = "█" * round(_BAR * first.get(name, 0) / largest)
        table.add_row(_clean(name), *(f"{f.labels.get(name, 0):,}" for f in report.files), bar)
    if len(names) > _LABELS_SHOWN:
        rest = names[_LABELS_SHOWN:]
        sums = [f"{sum(f.labels.get(name, 0) for name in rest):,}" for f in report.files]
        table.add_row(f"… {len(rest)} more", *sums)
    return table


def _table(title: str, files: Sequence[FileReport]) -> Table:
    table = Table(box=None, padding=(0, 1))
    table.add_column(title)
    for file in files:
        table.add_column(_clean(f"{file.role}: {Path(file.file).name}"), justify="right")
    return table


def _clean(text: str) -> str:
    """Text that cannot move the cursor or change colours."""
    return escape("".join(c if c.isprintable() else f"{c!a}"[1:-1] for c in text))
