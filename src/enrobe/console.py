"""What the command line shows: tables on a terminal, JSON lines elsewhere, and progress.

Standard output carries results and nothing else; everything about the work goes to standard error.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from enrobe.data.readers import Row, Source
from enrobe.errors import CallError
from enrobe.tasks.model import Errors
from enrobe.tasks.results import Fill, Score

_LOOK_AHEAD = 1024
_LOOK_AHEAD_CHARACTERS = 4_000_000
_LOG_SECONDS = 10.0


class Answer(Protocol):
    """What a verb says of one text."""

    @property
    def error(self) -> str | None:
        """What was wrong with the text, if anything."""

    def to_dict(self) -> dict[str, Any]:
        """The record for JSON lines."""


Given = TypeVar("Given", bound=Answer)


@dataclass(frozen=True)
class Job:
    """Where a verb's texts come from and where its answers go, as the command line gave them."""

    texts: Sequence[str]
    input: str | None
    column: str | None
    output: str | None
    as_json: bool


def answer_all(
    job: Job,
    run: Callable[[list[str], Errors], list[Given]],
    failed: Callable[[str, str], Given],
    table: Callable[[Given], RenderableType],
) -> int:
    """Answer texts in look-ahead chunks, in their order and in constant memory.

    A text that cannot be processed is a mistake in the call where it is an argument (TextError),
    and a record with its error where it is a row of a file.

    Returns the exit code: 2 where a row had an error, else 0.
    """
    errors: Errors = "raise" if job.texts else "collect"
    run([], errors)  # the options are checked even where no text comes
    rows, source = _rows(job)
    count = wrong = 0
    with _writer(job, table) as write, _progress(source) as advance:
        while chunk := list(_chunk(rows)):
            good = iter(run([row.text for row in chunk if row.error is None], errors))
            for row in chunk:
                answer = next(good) if row.error is None else failed(row.text, row.error)
                wrong += answer.error is not None
                write(answer)
            count += len(chunk)
            advance(count)
    if wrong:
        print(f"enrobe: {wrong} of {count} texts had an error", file=sys.stderr)
    return 2 if wrong else 0


def _rows(job: Job) -> tuple[Iterator[Row], Source | None]:
    if job.texts and job.input is not None:
        raise CallError("text and an input are both given; leave one out")
    if job.texts:
        return (Row(n, text) for n, text in enumerate(job.texts, 1)), None
    if job.input is None and sys.stdin.isatty():
        raise CallError("no text; give it as an argument, with --input FILE, or by a pipe")
    source = Source(job.input or "-", job.column)
    return iter(source), source


def _chunk(rows: Iterator[Row]) -> Iterator[Row]:
    """As many rows as are worth sorting by length together, and as memory should hold."""
    characters = 0
    for row in islice(rows, _LOOK_AHEAD):
        yield row
        characters += len(row.text)
        if characters > _LOOK_AHEAD_CHARACTERS:
            return


@contextmanager
def _writer(
    job: Job, table: Callable[[Given], RenderableType]
) -> Iterator[Callable[[Given], None]]:
    if job.output is not None and job.output != "-":
        path = Path(job.output)
        if job.input not in (None, "-") and path.exists() and path.samefile(str(job.input)):
            raise CallError(f"{path} is the input too; name another output")
        try:
            file = path.open("wb")
        except OSError as error:
            raise CallError(f"{path}: {error.strerror}") from None
        with file:
            yield lambda answer: _write(file, answer.to_dict())
    elif job.as_json or not Console().is_terminal:
        yield lambda answer: _write(sys.stdout.buffer, answer.to_dict())
        sys.stdout.buffer.flush()
    else:
        console = Console(highlight=False)
        yield lambda answer: console.print(table(answer))


def _write(file: IO[bytes], record: dict[str, Any]) -> None:
    file.write(json_line(record))


def json_line(record: dict[str, Any]) -> bytes:
    """One line of strict JSON in UTF-8: NaN becomes null, half a surrogate pair is escaped."""
    clean = {key: None if _is_nan(value) else value for key, value in record.items()}
    try:
        return json.dumps(clean, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(clean, allow_nan=False).encode() + b"\n"


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


@contextmanager
def _progress(source: Source | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a JSON line every ten seconds elsewhere; nothing for a few texts."""
    if source is None:
        yield lambda _: None
        return
    started = last = time.monotonic()
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.completed:,} rows"),
            BarColumn(),
            TextColumn("{task.fields[rate]:,.0f} rows/s"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=None, rate=0.0)

            def show_bar(count: int) -> None:
                rate = count / max(1e-9, time.monotonic() - started)
                total = count / source.share if source.share else None
                progress.update(task, completed=count, total=total, rate=rate)

            yield show_bar
        return

    def log(count: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LOG_SECONDS:
            last = now
            rate = count / (now - started)
            record = {"rows": count, "rows_per_second": round(rate, 1), "share": source.share}
            print(json.dumps(record), file=sys.stderr, flush=True)

    yield log


# --- tables -------------------------------------------------------------------------------------


def fill_table(result: Fill) -> RenderableType:
    """One text's candidates, mask by mask, and its joint fillings."""
    if result.error is not None:
        return _under(result.text, f"  {_printable(result.error)}")
    table = Table(box=None, padding=(0, 1))
    several = len(result.masks) > 1 or bool(result.joint)
    for name in (*(("mask",) if several else ()), "word", "probability"):
        table.add_column(name, justify="right" if name == "probability" else "left")
    table.add_column("")
    for number, mask in enumerate(result.masks, 1):
        for rank, candidate in enumerate(mask.candidates):
            cells = [str(number) if rank == 0 else ""] if several else []
            bar = "█" * round(20 * candidate.probability)
            shown = [_printable(candidate.word), f"{candidate.probability:.4f}", bar]
            table.add_row(*cells, *shown, end_section=rank == len(mask.candidates) - 1)
    for rank, joint in enumerate(result.joint):
        words = _printable(" · ".join(joint.words))
        share = f"{math.exp(joint.log_probability):.4f}"
        table.add_row("joint" if rank == 0 else "", words, share)
    return _under(result.text, table)


def score_table(result: Score) -> RenderableType:
    """One text's pseudo-log-likelihood."""
    if result.error is not None:
        return _under(result.text, f"  {_printable(result.error)}")
    total, mean = result.log_likelihood, result.log_likelihood / result.tokens
    return _under(result.text, f"  {total:.3f}, {result.tokens} tokens, {mean:.3f} a token")


def _facts_table(facts: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 1))
    for key, value in facts.items():
        table.add_row(key.replace("_", " "), _printable(_fact(key, value)))
    return table


def _fact(key: str, value: object) -> str:
    if key == "memory" and isinstance(value, dict):
        return ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in value.items())
    if key == "heads" and isinstance(value, dict):
        return ", ".join(_head(name, head) for name, head in value.items()) or "none"
    if isinstance(value, dict):
        items = ((name.replace("_", " "), _fact(name, item)) for name, item in value.items())
        return ", ".join(f"{name} {item}" for name, item in items)
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _head(name: str, head: dict[str, Any]) -> str:
    labels = head["labels"]
    return f"{name} ({len(labels)} labels: {', '.join(labels[:8])})" if labels else name


def _under(text: str, shown: RenderableType) -> RenderableType:
    title = _printable(text if len(text) <= 200 else text[:199] + "…")
    return Group(f"[bold]{title}[/bold]", shown)


def _printable(text: str) -> str:
    """Text that cannot move the cursor, change colours, or fail to encode."""
    return escape("".join(c if c.isprintable() or c == " " else f"{c!a}"[1:-1] for c in text))


def show_facts(facts: dict[str, Any], *, as_json: bool) -> None:
    """Facts on standard output: a table on a terminal, a JSON object elsewhere."""
    if as_json or not Console().is_terminal:
        sys.stdout.buffer.write(json_line(facts))
        sys.stdout.buffer.flush()
    else:
        Console(highlight=False).print(_facts_table(facts))
