"""ONNX Runtime: the engine that needs no PyTorch, and the default on a CPU."""

import functools
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from enrobe.checkpoint import Checkpoint
from enrobe.config import EncoderConfig, HeadConfig
from enrobe.engines.base import (
    BUDGET,
    Array,
    Outputs,
    Request,
    check,
    fewer_threads,
    picks,
)
from enrobe.engines.graph import build
from enrobe.text.ragged import Ids, Ragged, row_offsets
from enrobe.weights import release_pages

Int = npt.NDArray[np.int64]

# Products are so quick in int8 that what lies between them counts: it is to stay in the cache.
_INT8_BUDGET = 256


class OnnxEngine:
    """Runs a checkpoint through ONNX Runtime, one session a set of requested outputs."""

    name = "onnx"
    precision: str
    budget: int
    config: EncoderConfig
    heads: Mapping[str, HeadConfig]

    def __init__(self, checkpoint: Checkpoint, *, precision: str = "float32") -> None:
        """Hold a checkpoint; a session is built when its outputs are first asked for.

        precision: "float32", or "int8": the matrices that are stored as int8 are multiplied so.
        """
        assert precision in ("float32", "int8")
        self.precision = precision
        self.budget = _INT8_BUDGET if precision == "int8" else BUDGET
        self.config = checkpoint.config
        self.heads = checkpoint.heads
        self._parameters: Mapping[str, npt.NDArray[Any]] = checkpoint.tensors
        if precision == "int8":
            self._parameters = _int8_parameters(checkpoint)
        self._sessions: dict[Request, tuple[ort.InferenceSession, list[str]]] = {}
        self._lock = threading.Lock()

    def run(self, batch: Ragged, request: Request, at: Ids | None = None) -> Outputs:
        """See `engines.base.Engine.run`."""
        check(batch, request, at, self)
        session, wanted = self._session(request)
        feed = self._feed(batch, request, at)
        values = session.run(None, {name: feed[name] for name in wanted})
        count = len(request.layers)
        return Outputs(
            hidden=dict(zip(request.layers, values[:count], strict=True)),
            heads=dict(zip(request.heads, values[count:], strict=True)),
        )

    def inputs(self, batch: Ragged, request: Request, at: Ids) -> dict[str, Array]:
        """What each matrix is multiplied with on the way to a request's outputs, by its name.

        Keys and values have the queries'.

        Shapes: (T, K), of a head (B, K) or (M, K). For measuring: the session is not kept.
        """
        check(batch, request, at, self)
        session = self._build(request, inputs=True)
        feed = self._feed(batch, request, at)
        names = [out.name for out in session.get_outputs() if out.name.startswith("inputs.")]
        wanted = {value.name for value in session.get_inputs()}
        values = session.run(names, {name: feed[name] for name in wanted})
        return {
            name.removeprefix("inputs."): value for name, value in zip(names, values, strict=True)
        }

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

    def _session(self, request: Request) -> tuple[ort.InferenceSession, list[str]]:
        """A session, and the inputs that it takes: asking it for them takes a while."""
        with self._lock:
            if request not in self._sessions:
                session = self._build(request)
                self._sessions[request] = session, [v.name for v in session.get_inputs()]
            return self._sessions[request]

    def _build(self, request: Request, *, inputs: bool = False) -> ort.InferenceSession:
        model, names = build(self.config, self.heads, self._parameters, request, inputs=inputs)
        arrays = [self._parameters[name] for name in names]
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # Left to itself it takes every core, and leaves those that the process is confined to.
        if (threads := fewer_threads()) is not None:
            options.intra_op_num_threads = threads
        # Weights stay where they are, memory-mapped: nothing is written and nothing copied here.
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays]
        options.add_external_initializers(names, values)
        with _giving_back(arrays):
            session = ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        # The arrays must outlive the session, and the session does not say that it holds them.
        session.enrobe_weights = values
        return session


def _int8_parameters(checkpoint: Checkpoint) -> dict[str, npt.NDArray[Any]]:
    """What `graph.build` takes: matrices as they are stored, their factors beside them."""
    rows = checkpoint.int8
    arrays: dict[str, npt.NDArray[Any]] = {
        name: checkpoint.tensors[name] for name in checkpoint.tensors if name not in rows
    }
    for name, matrix in rows.items():
        # The same numbers plus 128, where products of uint8 with int8 would be cut off.
        values = (matrix.values.view(np.uint8) ^ 128) if _cuts_off() else matrix.values
        arrays[name], arrays[f"{name}.scale"] = values, matrix.scale
        if matrix.smooth is not None:
            arrays[f"{name}.smooth"] = matrix.smooth
        if matrix.zero != 128:
            arrays[f"{name}.zero"] = np.array([matrix.zero])
    return arrays


@functools.cache
def _cuts_off() -> bool:
    """Whether this processor's products of uint8 with int8 overflow.

    Without VNNI, x86 adds two products in 16 bits, and cuts off what does not fit.
    """
    numbers, weights = np.full((1, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    inputs = [helper.make_tensor_value_info("a", TensorProto.UINT8, [1, 64])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 16])]
    graph = helper.make_graph(
        [node], "probe", inputs, outputs, [numpy_helper.from_array(weights, "b")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"a": numbers})
    return bool((found != 64 * 255 * 127).any())


@contextmanager
def _giving_back(tensors: list[npt.NDArray[Any]]) -> Iterator[None]:
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
