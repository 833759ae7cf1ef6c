"""Shards of rows through the model, in this process or in several.

Legend: N rows, D numbers of a vector.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np

from enrobe.engines.base import Engine, Outputs, Request
from enrobe.errors import CallError
from enrobe.tasks.embed import EmbedOptions
from enrobe.tasks.model import Device, EngineName, load
from enrobe.tasks.vector_files import Item, Layout, encode
from enrobe.text.ragged import Ids, Ragged
from enrobe.workers import end_with_parent

Shard = Sequence[tuple[int, Item]]
"""(number of the input, row) of each row."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a process needs to know."""

    folder: Path
    options: Mapping[str, Any]
    # of `Model.embed`
    engine: EngineName
    device: Device


@dataclass(frozen=True, kw_only=True)
class Done:
    """One shard's bytes."""

    files: Mapping[str, bytes]
    failed: frozenset[int]
    # rows of the shard
    tokens: int


class _Counting:
    """An engine that counts the tokens that it is given."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.precision, self.budget = engine.name, engine.precision, engine.budget
        self.config, self.heads = engine.config, engine.heads
        self.tokens = 0
        self._engine = engine

    def run(self, batch: Ragged, request: Request, at: Ids | None = None) -> Outputs:
        """See `engines.base.Engine.run`."""
        self.tokens += len(batch.ids)
        return self._engine.run(batch, request, at)


class Embedder:
    """A loaded model, and what to do with it."""

    def __init__(self, work: Work) -> None:
        """Load the model, and check the options."""
        self._model = load(work.folder, engine=work.engine, device=work.device)
        self._counter = self._model.engine = _Counting(self._model.engine)
        self._options = EmbedOptions(**work.options)
        self.engine = self._counter.name
        self.similarity = self._model.sentence.similarity
        self.width: int = self._model.try_embed([], self._options)[0].shape[1]

    def run(self, layout: Layout, first: int, items: Sequence[Item]) -> Done:
        """One shard; first: the number of its first row in the output."""
        before = self._counter.tokens
        errors = {n: item.error for n, item in enumerate(items) if item.error is not None}
        good = [n for n in range(len(items)) if n not in errors]
        vectors_ND = np.full((len(items), layout.width), np.nan, np.float32)
        if good:
            texts = [items[n].text for n in good]
            vectors_ND[good], failed = self._model.try_embed(texts, self._options)
            errors |= {good[n]: str(error) for n, error in failed.items()}
        files, wrong = encode(layout, first, items, vectors_ND, errors)
        return Done(files=files, failed=wrong, tokens=self._counter.tokens - before)


def run_shards(
    shards: Iterable[Shard],
    work: Work,
    layout: Layout,
    first: int,
    embedder: Embedder | None,
    workers: int,
) -> Generator[tuple[Shard, Done], None, None]:
    """Each shard with its bytes, in order; `embedder` is used where there is one worker.

    Raises:
        CallError: a worker process died.
    """
    if workers == 1:
        embedder = embedder or Embedder(work)
        for shard in shards:
            yield shard, embedder.run(layout, first, [item for _, item in shard])
            first += len(shard)
        return
    # A fresh interpreter each: the fork of a process that has threads may hang.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    started = context.Value("i", 0)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (work, layout, workers, started))
    waiting: deque[tuple[Shard, Future[Done]]] = deque()
    try:
        for shard in shards:
            items = [item for _, item in shard]
            waiting.append((shard, pool.submit(_work, first, items)))
            first += len(shard)
            # One shard more than there are workers: none of them waits, and memory is bounded.
            if len(waiting) > workers:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
        pool.shutdown()
    except BrokenProcessPool:
        raise CallError(
            "a worker process died, perhaps for want of memory; "
            "fix: go on with --resume and fewer workers"
        ) from None
    finally:
        # Where it did not come to its end, nobody wants what the workers are at.
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        pool.shutdown(cancel_futures=True)


# --- in a worker process ------------------------------------------------------------------------

_embedder: Embedder | None = None
_layout: Layout | None = None


def _start_worker(work: Work, layout: Layout, workers: int, started: "Synchronized[int]") -> None:
    global _embedder, _layout
    # Ctrl-C reaches the workers, too; it is for the process that started them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    with started.get_lock():
        number = started.value
        started.value += 1
    if hasattr(os, "sched_setaffinity"):
        # Each has its own cores: engines start a thread for every core that they may use.
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number::workers] or [cores[number % len(cores)]])
    _embedder, _layout = Embedder(work), layout


def _work(first: int, items: Sequence[Item]) -> Done:
    assert _embedder is not None and _layout is not None
    return _embedder.run(_layout, first, items)
