"""What the command line shows: tables on a terminal, JSON lines elsewhere.

Standard output carries results and nothing else; everything about the work goes to standard error.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeVar

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from enrobe import progress
from enrobe.data.readers import Row, Source
from enrobe.errors import CallError, show
from enrobe.tasks.model import Errors
from enrobe.tasks.results import Fill, Score

if TYPE_CHECKING:
    from enrobe.tasks.bulk import EmbeddedFile
    from enrobe.tasks.search_file import Found
    from enrobe.train.pretrain import PretrainResult

_LOOK_AHEAD = 1024
_LOOK_AHEAD_CHARACTERS = 4_000_000


class Answer(Protocol):
    """What a verb says of one text."""

    @property
    def error(self) -> str | None:
        """What was wrong with the text, if anything."""

    def to_dict(self) -> dict[str, Any]:
        """The record for JSON lines."""


class Question(Protocol):
    """A row that is to be answered."""

    @property
    def text(self) -> str:
        """What was read; its length tells how much memory the row takes."""

    @property
    def error(self) -> str | None:
        """What is wrong with the row, if anything."""


class Share(Protocol):
    """An input."""

    @property
    def share(self) -> float | None:
        """How much of it has been read, 0 to 1; None where that is not known."""


Given = TypeVar("Given", bound=Answer)
Asked = TypeVar("Asked", bound=Question)


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
    return answer_rows(
        job,
        rows,
        source,
        lambda chunk: run([row.text for row in chunk], errors),
        lambda row: failed(row.text, str(row.error)),
        table,
    )


def answer_rows(
    job: Job,
    rows: Iterator[Asked],
    source: Share | None,
    run: Callable[[list[Asked]], list[Given]],
    failed: Callable[[Asked], Given],
    table: Callable[[Given], RenderableType],
) -> int:
    """Answer rows in look-ahead chunks; see `answer_all`. `run` gets those without an error."""
    count = wrong = 0
    with _writer(job, table) as write, progress.shown(source is not None) as show:
        show(0, 0, 0.0)
        while chunk := list(_chunk(rows)):
            good = iter(run([row for row in chunk if row.error is None]))
            for row in chunk:
                answer = next(good) if row.error is None else failed(row)
                wrong += answer.error is not None
                write(answer)
            count += len(chunk)
            show(count, 0, None if source is None else source.share)
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


def _chunk(rows: Iterator[Asked]) -> Iterator[Asked]:
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


# --- tables -------------------------------------------------------------------------------------


def fill_table(result: Fill) -> RenderableType:
    """One text's candidates, mask by mask, and its joint fillings."""
    if result.error is not None:
        return under(result.text, f"  {printable(result.error)}")
    table = Table(box=None, padding=(0, 1))
    several = len(result.masks) > 1 or bool(result.joint)
    for name in (*(("mask",) if several else ()), "word", "probability"):
        table.add_column(name, justify="right" if name == "probability" else "left")
    table.add_column("")
    for number, mask in enumerate(result.masks, 1):
        for rank, candidate in enumerate(mask.candidates):
            cells = [str(number) if rank == 0 else ""] if several else []
            bar = "█" * round(20 * candidate.probability)
            shown = [printable(candidate.word), f"{candidate.probability:.4f}", bar]
            table.add_row(*cells, *shown, end_section=rank == len(mask.candidates) - 1)
    for rank, joint in enumerate(result.joint):
        words = printable(" · ".join(joint.words))
        share = f"{math.exp(joint.log_probability):.4f}"
        table.add_row("joint" if rank == 0 else "", words, share)
    return under(result.text, table)


def score_table(result: Score) -> RenderableType:
    """One text's pseudo-log-likelihood."""
    if result.error is not None:
        return under(result.text, f"  {printable(result.error)}")
    total, mean = result.log_likelihood, result.log_likelihood / result.tokens
    return under(result.text, f"  {total:.3f}, {result.tokens} tokens, {mean:.3f} a token")


_LABELS_SHOWN = 8


def _facts_table(facts: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 1))
    for key, value in facts.items():
        table.add_row(key.replace("_", " "), printable(_fact(key, value)))
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
    parts = [] if name == head["kind"] else [head["kind"]]
    if labels:
        more = ", …" if len(labels) > _LABELS_SHOWN else ""
        parts.append(f"{len(labels)} labels: {', '.join(labels[:_LABELS_SHOWN])}{more}")
    for key, value in head.items():
        if key == "thresholds":
            parts.append("a threshold a label")
        elif key not in ("kind", "labels"):
            parts.append(f"{key.replace('_', ' ')} {_fact(key, value)}")
    return f"{name} ({'; '.join(parts)})" if parts else name


def under(text: str, shown: RenderableType) -> RenderableType:
    """What is said of a text, below it."""
    title = printable(text if len(text) <= 200 else text[:199] + "…")
    return Group(f"[bold]{title}[/bold]", shown)


def printable(text: str) -> str:
    """Text that cannot move the cursor, change colours, or fail to encode."""
    return escape("".join(c if c.isprintable() or c == " " else f"{c!a}"[1:-1] for c in text))


def show_pretrained(result: "PretrainResult", *, as_json: bool) -> None:
    """What a pretraining run made, on standard output."""
    if as_json or not Console().is_terminal:
        sys.stdout.buffer.write(json_line(result.to_dict()))
        sys.stdout.buffer.flush()
        return
    done = "done" if result.finished else "stopped; go on with --resume"
    table = Table(box=None, padding=(0, 1), title=f"step {result.step:,}, {done}")
    sides = [side for side in ("before", "after") if getattr(result, side)]
    for name in ("held-out set", "", *sides):
        table.add_column(name, justify="right" if name in sides else "left")
    sets = (result.after or result.before).items()
    for name, measures in sets:
        for measure in measures:
            values = [f"{getattr(result, side)[name][measure]:,.4g}" for side in sides]
            table.add_row(printable(name) if measure == "loss" else "", measure, *values)
    console = Console(highlight=False)
    if sets:
        console.print(table)
    console.print(f"model: {printable(str(result.model))}")


def refuse(options: Mapping[str, object], where: str, fix: str) -> None:
    """Raise CallError for the first option that has no place in a call."""
    for name, value in options.items():
        if value is not None:
            raise CallError(f"{name} {where}; fix: {fix}")


def listed(value: str | None) -> list[str] | None:
    """An option with commas."""
    return None if value is None else [part.strip() for part in value.split(",")]


def numbers(value: str | None) -> list[int] | None:
    """Whole numbers with commas."""
    try:
        return None if value is None else [int(part) for part in value.split(",")]
    except ValueError:
        raise CallError(f"{show(value)}; allowed: whole numbers, such as -1,-2") from None


def show_embedded(made: "EmbeddedFile", *, as_json: bool) -> int:
    """What a bulk job made; the exit code: 2 where a row had an error."""
    facts = made.to_dict()
    facts["rows_per_second"] = round((made.rows - made.resumed_at) / max(1e-9, made.seconds), 1)
    show_facts(facts, as_json=as_json)
    if made.failed:
        where = f"; see {made.errors}" if made.errors else ""
        print(f"enrobe: {made.failed} of {made.rows} texts had an error{where}", file=sys.stderr)
    return 2 if made.failed else 0


def show_found(found: "Sequence[Found]", *, as_json: bool) -> None:
    """The rows that are most like each query."""
    if as_json or not Console().is_terminal:
        for answer in found:
            _write(sys.stdout.buffer, answer.to_dict())
        sys.stdout.buffer.flush()
        return
    for answer in found:
        table = Table(box=None, padding=(0, 1))
        table.add_column("score", justify="right")
        table.add_column("row", justify="right")
        table.add_column("text", max_width=100, overflow="fold")
        for hit in answer.hits:
            where = f"{hit.source}:{hit.number}" if hit.number else f"{hit.source or ''}"
            text = where if hit.text is None else hit.text
            text = text if len(text) <= 200 else text[:199] + "…"
            table.add_row(f"{hit.score:.4f}", f"{hit.row:,}", printable(text))
        Console(highlight=False).print(under(answer.query, table))


def show_facts(facts: dict[str, Any], *, as_json: bool) -> None:
    """Facts on standard output: a table on a terminal, a JSON object elsewhere."""
    if as_json or not Console().is_terminal:
        sys.stdout.buffer.write(json_line(facts))
        sys.stdout.buffer.flush()
    else:
        Console(highlight=False).print(_facts_table(facts))
