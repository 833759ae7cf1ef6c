"""OpenVINO: the same model from the plain graph, on padded rows; for Intel's processors.

Legend: see `engines.base`; S longest row.
"""

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino

from enrobe.checkpoint import Checkpoint
from enrobe.config import EncoderConfig, HeadConfig
from enrobe.engines.base import Array, Outputs, Request, check, fewer_threads
from enrobe.engines.plain_graph import build_request
from enrobe.text.ragged import Ids, Ragged


class OpenvinoEngine:
    """Runs a checkpoint through OpenVINO in float32, one compiled graph a set of outputs."""

    name = "openvino"
    precision = "float32"
    budget = 512
    config: EncoderConfig
    heads: Mapping[str, HeadConfig]

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Hold a checkpoint; a graph is compiled when its outputs are first asked for."""
        self.config = checkpoint.config
        self.heads = checkpoint.heads
        self._tensors = checkpoint.tensors
        self._compiled: dict[Request, Any] = {}
        self._lock = threading.Lock()

    def run(self, batch: Ragged, request: Request, at: Ids | None = None) -> Outputs:
        """See `engines.base.Engine.run`."""
        check(batch, request, at, self)
        compiled = self._graph(request)
        shape = (len(batch), int(batch.lengths.max()))
        inside_BS = np.arange(shape[1]) < batch.lengths[:, None]
        ids_BS = np.full(shape, self.config.pad_id, np.int64)
        types_BS = np.zeros(shape, np.int64)
        ids_BS[inside_BS], types_BS[inside_BS] = batch.ids, batch.types
        places_T = np.flatnonzero(inside_BS)
        feed = {
            "input_ids": ids_BS,
            "attention_mask": inside_BS.astype(np.int64),
            "token_type_ids": types_BS,
        }
        if at is not None:
            feed["at"] = places_T[at]
        wanted = {value.any_name for value in compiled.inputs}
        # A request of its own: threads do not share one.
        found = compiled.create_infer_request().infer({name: feed[name] for name in wanted})
        # By their order: an output that is also an input of what follows has other names, too.
        values = [np.array(found[value]) for value in compiled.outputs]

        def flat(value: Array) -> Array:
            return value.reshape(-1, value.shape[-1])[places_T] if value.ndim == 3 else value

        count = len(request.layers)
        return Outputs(
            hidden=dict(zip(request.layers, map(flat, values[:count]), strict=True)),
            heads=dict(zip(request.heads, map(flat, values[count:]), strict=True)),
        )

    def _graph(self, request: Request) -> Any:
        with self._lock:
            if request not in self._compiled:
                graph = build_request(self.config, self.heads, self._tensors, request)
                core = openvino.Core()
                # Where a processor has bfloat16, OpenVINO would take that.
                settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
                if (threads := fewer_threads()) is not None:
                    settings["INFERENCE_NUM_THREADS"] = str(threads)
                model = core.read_model(graph.SerializeToString())
                self._compiled[request] = core.compile_model(model, "CPU", settings)
            return self._compiled[request]
