"""Batches prepared while the model computes the ones before them."""

import multiprocessing
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from enrobe.errors import TrainError
from enrobe.train.work import Micro
from enrobe.workers import end_with_parent

Make = Callable[[int], Sequence[Micro]]
# What a worker process calls; it is there from the fork on, mapped files included.
_make: Make | None = None


@contextmanager
def batches_ahead(make: Make, steps: range, loaders: int) -> Iterator[Iterator[Sequence[Micro]]]:
    """The batches of steps, in order.

    Args:
        make: the batch of a step, a function of the step alone.
        steps: which ones.
        loaders: processes that make them, forked from this one; 0: a thread of this one.

    Raises:
        TrainError: a process that makes batches was killed.
    """
    pool: Executor
    if loaders:
        context = multiprocessing.get_context("fork")
        pool = ProcessPoolExecutor(loaders, context, initializer=_begin, initargs=(make,))
        call: Make = _call
    else:
        pool, call = ThreadPoolExecutor(1), make
    try:
        yield _in_order(pool, call, steps, loaders + 1)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: Executor, call: Make, steps: range, most: int) -> Iterator[Sequence[Micro]]:
    coming: deque[Future[Sequence[Micro]]] = deque()
    left = iter(steps)
    for _ in steps:
        while len(coming) < most and (step := next(left, None)) is not None:
            with warnings.catch_warnings():
                # A fork beside threads: these children take no lock, they read and compute.
                warnings.simplefilter("ignore", DeprecationWarning)
                coming.append(pool.submit(call, step))
        try:
            batch = coming.popleft().result()
        except BrokenProcessPool:
            raise TrainError(
                "a process that prepares batches was killed (out of memory?); fix: fewer loaders, "
                "then go on with --resume"
            ) from None
        yield batch


def _begin(make: Make) -> None:
    global _make
    _make = make
    # Ctrl-C reaches the whole group of processes; the parent says when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()


def _call(step: int) -> Sequence[Micro]:
    assert _make is not None
    return _make(step)
