"""Our own CPU kernels, from the distribution enrobe-native: int8 as the folder has it, and float32.

Legend: T tokens, B rows, H hidden, K inputs of a product, M asked positions.
"""

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from enrobe_native import Encoder

from enrobe.checkpoint import Checkpoint
from enrobe.config import EncoderConfig, HeadConfig
from enrobe.engines.base import Array, Outputs, Request, allowed_threads, check, picks
from enrobe.text.ragged import Ids, Ragged
from enrobe.weights import release_pages

# Parts of a batch go to one thread each: enough of them that none waits long for the last.
_BUDGET = 4096
_TABLES = {
    "word": "embeddings.word.weight",
    "position": "embeddings.position.weight",
    "token_type": "embeddings.token_type.weight",
}


class NativeEngine:
    """Runs a checkpoint through enrobe-native; a row's answer is the same in any company."""

    name = "native"
    precision: str
    budget = _BUDGET
    config: EncoderConfig
    heads: Mapping[str, HeadConfig]

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        precision: str = "float32",
        threads: int | None = None,
        kernels: str | None = None,
    ) -> None:
        """Pack a checkpoint's weights.

        Args:
            checkpoint: a folder that was read.
            precision: "float32", or "int8": matrices that are stored as int8 are multiplied so.
            threads: None: as many as this process may run on, or $OMP_NUM_THREADS.
            kernels: of `enrobe_native.kernels()`; None: the quickest.
        """
        assert precision in ("float32", "int8")
        self.precision = precision
        self.config = checkpoint.config
        self.heads = checkpoint.heads
        self._checkpoint = checkpoint
        self._rows = checkpoint.int8 if precision == "int8" else {}
        config = checkpoint.config
        self._encoder = Encoder(
            layers=config.num_layers,
            hidden=config.hidden_size,
            feed_forward=config.intermediate_size,
            heads=config.num_heads,
            epsilon=config.layer_norm_eps,
            threads=threads or allowed_threads(),
            kernels=kernels,
        )
        for name, path in _TABLES.items():
            if path in self._rows:
                rows = self._rows[path]
                self._encoder.set_table(name, rows.values, rows.scale)
            elif path in checkpoint.tensors:
                self._encoder.set_table(name, _plain(checkpoint.tensors[path]))
        self._norm("embeddings.norm")
        for index in range(config.num_layers):
            for part in ("query", "key", "value", "output", "up", "down"):
                self._linear(f"layers.{index}.{part}")
            for part in ("attention_norm", "norm"):
                self._norm(f"layers.{index}.{part}")
            # Layer by layer: all of the file's pages and of the copies would be twice the model.
            self._give_back()
        for name, head in self.heads.items():
            path = f"heads.{name}"
            if head.kind == "mlm" or head.is_sequence:
                self._linear(f"{path}.dense")
            if head.kind == "mlm":
                self._norm(f"{path}.norm")
            else:
                self._linear(f"{path}.out")
        self._encoder.finish()
        self._decoders: set[str] = set()
        self._packing = threading.Lock()
        self._give_back()

    def run(self, batch: Ragged, request: Request, at: Ids | None = None) -> Outputs:
        """See `engines.base.Engine.run`."""
        check(batch, request, at, self)
        last = self.config.num_layers
        source = picks(self.heads, request, last)
        chosen = {"at": at, "firsts": batch.offsets[:-1], None: None}[source]
        depth = last if request.heads else max(request.layers)
        # A layer may be asked for twice.
        layers = list(dict.fromkeys([*request.layers, *([last] if request.heads else [])]))
        found = self._states(batch, depth, layers, picks=None if chosen is None else _plain(chosen))
        states = dict(zip(layers, found, strict=True))
        heads = {}
        for name in request.heads:
            x = states[last]
            if source is None:
                if self.heads[name].kind == "mlm":
                    x = x[at]
                elif self.heads[name].is_sequence:
                    x = x[batch.offsets[:-1]]
            heads[name] = self._head(name, x)
        return Outputs(hidden={layer: states[layer] for layer in request.layers}, heads=heads)

    def sums(self, batch: Ragged, layers: Sequence[int], spans: Ids) -> list[Array]:
        """See `engines.base.Sums.sums`."""
        return self._states(batch, max(layers), list(layers), spans=_plain(spans))

    def _states(
        self, batch: Ragged, depth: int, layers: list[int], **more: npt.NDArray[np.generic] | None
    ) -> list[Array]:
        found: list[Array] = self._encoder.run(
            ids=_plain(batch.ids),
            types=_plain(batch.types),
            positions=batch.positions(self.config.position_offset),
            offsets=_plain(batch.offsets),
            depth=depth,
            layers=layers,
            **more,
        )
        return found

    def best(self, batch: Ragged, head: str, at: Ids, count: int) -> tuple[Ids, Array]:
        """See `engines.base.Ranks.best`."""
        last = self.config.num_layers
        x = self.run(batch, Request(layers=(last,), picked=True), at).hidden[last]
        ids, logs = self._encoder.best(
            f"heads.{head}.decoder", self._before_decoder(head, x), count
        )
        return ids, logs

    def _before_decoder(self, name: str, x: Array) -> Array:
        self._pack_decoder(name)
        dense = self._encoder.apply(f"heads.{name}.dense", x, "gelu")
        normed: Array = self._encoder.normalize(f"heads.{name}.norm", dense)
        return normed

    def _head(self, name: str, x: Array) -> Array:
        head, path = self.heads[name], f"heads.{name}"
        last = "out"
        if head.kind == "mlm":
            x = self._before_decoder(name, x)
            last = "decoder"
        elif head.is_sequence:
            x = self._encoder.apply(f"{path}.dense", x, head.activation)
        answer: Array = self._encoder.apply(f"{path}.{last}", x)
        return answer

    def _pack_decoder(self, name: str) -> None:
        """Pack a decoder when it is first asked for: it is as large as the table of words."""
        with self._packing:
            if name in self._decoders:
                return
            tied = self.heads[name].tied
            weight = _TABLES["word"] if tied else f"heads.{name}.decoder.weight"
            self._set(f"heads.{name}.decoder", weight, f"heads.{name}.bias")
            self._decoders.add(name)
            self._give_back()

    def _give_back(self) -> None:
        """Let go of the mapped file's pages; what is read again comes again."""
        tensors, rows = self._checkpoint.tensors, self._rows
        release_pages(
            [*(tensors[n] for n in tensors if n not in rows), *(r.scale for r in rows.values())]
        )

    def _linear(self, name: str) -> None:
        self._set(name, f"{name}.weight", f"{name}.bias")

    def _set(self, name: str, weight: str, bias: str) -> None:
        offset = _plain(self._checkpoint.tensors[bias])
        if weight in self._rows:
            rows = self._rows[weight]
            self._encoder.set_linear(
                name, rows.values, rows.scale, offset, smooth=rows.smooth, zero=rows.zero
            )
        else:
            self._encoder.set_linear(name, _plain(self._checkpoint.tensors[weight]), offset)

    def _norm(self, name: str) -> None:
        tensors = self._checkpoint.tensors
        self._encoder.set_norm(
            name, _plain(tensors[f"{name}.weight"]), _plain(tensors[f"{name}.bias"])
        )


def _plain(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    return np.ascontiguousarray(array)
