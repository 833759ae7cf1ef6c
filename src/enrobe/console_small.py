"""What compression made, as tables."""

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from enrobe.console import json_line, printable

if TYPE_CHECKING:
    from enrobe.compress.optimize_report import OptimizeReport
    from enrobe.compress.quantize_report import QuantizeReport
    from enrobe.compress.trim import TrimReport


def show_quantized(report: "QuantizeReport", *, as_json: bool) -> None:
    """A quantized folder: sizes, speed, and what it cost."""
    for line in report.said:
        print(f"enrobe: {printable(line)}", file=sys.stderr)
    if as_json or not Console().is_terminal:
        sys.stdout.buffer.write(json_line(report.to_dict()))
        sys.stdout.buffer.flush()
        return
    table = Table(box=None, padding=(0, 1))
    for name in ("", "float32", report.precision, ""):
        table.add_column(printable(name), justify="right" if name else "left")
    for name, value in report.before.items():
        new = report.after[name]
        lost = f"{report.drop[name]:+.2%} lost"
        table.add_row(printable(name), f"{value.value:.4f}", f"{new.value:.4f}", lost)
    before, after = report.speed["float32"], report.speed[report.precision]
    rows: list[tuple[str, float, float]] = [
        ("weights, MB", report.file_bytes[0] / 1e6, report.file_bytes[1] / 1e6),
        ("process, MB", before.memory / 1e6, after.memory / 1e6),
        *((f"{length} tokens, ms", before.p50[length], after.p50[length]) for length in before.p50),
        ("tokens a second", before.tokens_per_second, after.tokens_per_second),
    ]
    for label, old, new_ in rows:
        table.add_row(label, f"{old:,.1f}", f"{new_:,.1f}", f"x {new_ / old:.2f}")
    console = Console(highlight=False)
    console.print(table)
    if report.kept:
        console.print(f"kept as float32: {', '.join(report.kept)}", markup=False)
    console.print(f"written: {report.output}", markup=False)


def show_trimmed(report: "TrimReport", *, as_json: bool) -> int:
    """A trimmed folder; the exit code: 2 where rows of the corpus were left out."""
    if as_json or not Console().is_terminal:
        sys.stdout.buffer.write(json_line(report.to_dict()))
        sys.stdout.buffer.flush()
    else:
        console = Console(highlight=False)
        (old, new_), (before, after) = report.rows, report.file_bytes
        console.print(f"vocabulary: {old:,} entries, {new_:,} kept ({new_ / old:.0%})")
        console.print(f"weights: {before / 1e6:,.1f} MB, now {after / 1e6:,.1f} MB")
        console.print(f"{report.texts:,} texts are cut into the same {report.tokens:,} tokens")
        console.print(f"{report.compared} have the same hidden states, bit for bit")
        console.print(f"written: {report.output}", markup=False)
    if not report.skipped:
        return 0
    reason = printable(" ".join(str(report.error).split()))
    print(f"enrobe: {report.skipped:,} rows were left out; the first: {reason}", file=sys.stderr)
    return 2


def show_optimized(report: "OptimizeReport", *, as_json: bool) -> None:
    """All ways to run a model, and the best."""
    from enrobe.compress.optimize_report import header, in_words, table

    for line in report.said:
        print(f"enrobe: {printable(line)}", file=sys.stderr)
    if as_json or not Console().is_terminal:
        sys.stdout.buffer.write(json_line(report.to_dict()))
        sys.stdout.buffer.flush()
        return
    shown = Table(box=None, padding=(0, 1))
    for name in header(report):
        shown.add_column(name, justify="right")
    for row in table(report):
        shown.add_row(*row)
    console = Console(highlight=False)
    console.print(shown)
    console.print(f"best: {in_words(report.winner)}; written: {report.output}", markup=False)
