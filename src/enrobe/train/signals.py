"""Ctrl-C and SIGTERM, noted so that a step can end and be saved."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def noted_signals() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C or SIGTERM is only noted; a second one acts as ever."""
    noted = False
    before: dict[int, Any] = {}

    def note(number: int, _: FrameType | None) -> None:
        nonlocal noted
        noted = True
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:
        # Not the main thread: its signals are not ours.
        pass
    try:
        yield lambda: noted
    finally:
        for taken, handler in before.items():
            signal.signal(taken, handler)
