"""ONNX Runtime: the engine that needs no PyTorch, and the default on a CPU."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from enrobe.checkpoint import Checkpoint, shapes
from enrobe.config import EncoderConfig, HeadConfig
from enrobe.engines.base import Array, Outputs, Request, check
from enrobe.engines.graph import build, picks
from enrobe.text.ragged import Ids, Ragged, row_offsets
from enrobe.weights import release_pages

Int = npt.NDArray[np.int64]


class OnnxEngine:
    """Runs a checkpoint through ONNX Runtime, one session a set of requested outputs."""

    name = "onnx"
    precision = "float32"
    config: EncoderConfig
    heads: Mapping[str, HeadConfig]

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Hold a checkpoint; a session is built when its outputs are first asked for."""
        self.config = checkpoint.config
        self.heads = checkpoint.heads
        self._tensors = checkpoint.tensors
        self._shapes = shapes(checkpoint.config, checkpoint.heads)
        self._sessions: dict[Request, ort.InferenceSession] = {}
        self._lock = threading.Lock()

    def run(self, batch: Ragged, request: Request, at: Ids | None = None) -> Outputs:
        """See `engines.base.Engine.run`."""
        check(batch, request, at, self)
        session = self._session(request)
        feed = self._feed(batch, request, at)
        wanted = {value.name for value in session.get_inputs()}
        values = session.run(None, {name: feed[name] for name in wanted})
        count = len(request.layers)
        return Outputs(
            hidden=dict(zip(request.layers, values[:count], strict=True)),
            heads=dict(zip(request.heads, values[count:], strict=True)),
        )

    def _feed(self, batch: Ragged, request: Request, at: Ids | None) -> dict[str, npt.NDArray]:  # type: ignore[type-arg]
        cells, tokens = _block(batch.lengths)
        firsts = batch.offsets[:-1]
        feed: dict[str, npt.NDArray] = {  # type: ignore[type-arg]
            "ids": batch.ids,
            "types": batch.types,
            "positions": batch.positions(self.config.position_offset),
            "lengths": batch.lengths.astype(np.int32),
            "cells": cells,
            "tokens": tokens,
            "firsts": firsts,
        }
        if at is not None:
            feed["at"] = at
        source = picks(self.heads, request, self.config.num_layers)
        if source is not None:
            chosen = feed[source]
            rows = np.searchsorted(batch.offsets, chosen, side="right") - 1
            feed["picks"] = chosen
            feed["pick_cells"], feed["pick_tokens"] = _block(
                np.bincount(rows, minlength=len(batch))
            )
        return feed

    def _session(self, request: Request) -> ort.InferenceSession:
        with self._lock:
            if request not in self._sessions:
                self._sessions[request] = self._build(request)
            return self._sessions[request]

    def _build(self, request: Request) -> ort.InferenceSession:
        model, names = build(self.config, self.heads, self._shapes, request)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # Weights stay where they are, memory-mapped: nothing is written and nothing copied here.
        values = [ort.OrtValue.ortvalue_from_numpy(self._tensors[name]) for name in names]
        options.add_external_initializers(names, values)
        with _giving_back([self._tensors[name] for name in names]):
            session = ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        # The arrays must outlive the session, and the session does not say that it holds them.
        session.enrobe_weights = values
        return session


@contextmanager
def _giving_back(tensors: list[Array]) -> Iterator[None]:
    """Give back the pages of mapped weights while a session reads them.

    ONNX Runtime packs a copy of each matrix; kept until the last is packed, the mapped file would
    make the peak of memory twice the model. A page that is still needed is simply read again.
    """
    done = threading.Event()

    def work() -> None:
        while not done.wait(0.01):
            release_pages(tensors)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        yield
    finally:
        done.set()
        worker.join()
        release_pages(tensors)


def _block(lengths: Int) -> tuple[Int, Int]:
    """Gather indices between flat rows and a padded block.

    Shapes: lengths (B,) -> cells (B, S), each place's flat index (0 beyond a row's end); tokens
    (T,), each flat element's place in the flattened block.
    """
    places = np.arange(max(1, int(lengths.max())), dtype=np.int64)
    inside = places < lengths[:, None]
    cells = np.where(inside, row_offsets(lengths)[:-1, None] + places, 0)
    return cells, np.flatnonzero(inside)
