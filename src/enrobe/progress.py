"""How far work is, on standard error: a bar on a terminal, a JSON line now and then elsewhere."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_LOG_SECONDS = 10.0

Show = Callable[[int, int, float | None], None]
"""Takes the rows and tokens (0: not counted) that are done, and the share of the input, 0 to 1."""


@dataclass
class Rates:
    """Rates since the first call, which an earlier run may have left far on."""

    started: float = field(default_factory=time.monotonic)
    first: tuple[int, int, float] | None = None

    def of(self, rows: int, tokens: int, share: float | None) -> dict[str, float | int | None]:
        """What is known: rows, their rate, the tokens' rate, the share, the seconds left."""
        if self.first is None:
            self.first, self.started = (rows, tokens, share or 0.0), time.monotonic()
        taken = max(1e-9, time.monotonic() - self.started)
        record: dict[str, float | int | None] = {
            "rows": rows,
            "rows_per_second": round((rows - self.first[0]) / taken, 1),
        }
        if tokens:
            record["tokens_per_second"] = round((tokens - self.first[1]) / taken)
        record["share"] = None if share is None else round(share, 4)
        since = (share or 0.0) - self.first[2]
        if share is not None and since > 0:
            record["seconds_left"] = round(taken * (1 - share) / since)
        return record


@contextmanager
def shown(wanted: bool = True) -> Iterator[Show]:
    """A function that shows how far the work is, as often as it is worth; if not wanted, never."""
    if not wanted:
        yield lambda _, __, ___: None
        return
    rates = Rates()
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.completed:,} rows"),
            BarColumn(),
            TextColumn("{task.fields[s]}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=None, s="")

            def show_bar(rows: int, tokens: int, share: float | None) -> None:
                total = rows / share if share else None
                words = in_words(rates.of(rows, tokens, share))
                progress.update(task, completed=rows, total=total, s=words)

            yield show_bar
        return
    last = time.monotonic()

    def log(rows: int, tokens: int, share: float | None) -> None:
        nonlocal last
        record = rates.of(rows, tokens, share)
        if time.monotonic() - last >= _LOG_SECONDS:
            last = time.monotonic()
            print(json.dumps(record), file=sys.stderr, flush=True)

    yield log


def in_words(record: dict[str, float | int | None]) -> str:
    """Rates and the time left, for a bar."""
    parts = [f"{record['rows_per_second']:,.0f} rows/s"]
    if "tokens_per_second" in record:
        parts.append(f"{record['tokens_per_second']:,.0f} tokens/s")
    left = record.get("seconds_left")
    if left is not None:
        hours, rest = divmod(round(left), 3600)
        parts.append(f"{hours}:{rest // 60:02d}:{rest % 60:02d} left")
    return ", ".join(parts)
