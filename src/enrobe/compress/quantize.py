"""A model in a quarter of the bytes, and what that cost on the person's own data.

int8: Jacob et al. 2018, arXiv:1712.05877 (symmetric, a scale an output channel); smoothing: Xiao
et al. 2022, arXiv:2211.10438. What stays float32 is found by measuring: each group of matrices
alone in int8, then the fewest of the costliest that bring a number back within its limit.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from enrobe import checkpoint, hub
from enrobe.atomic import check_new, new_folder
from enrobe.checkpoint import Checkpoint
from enrobe.compress import calibrate
from enrobe.compress.api import Quantized
from enrobe.compress.int8 import Int8Model
from enrobe.compress.measure import Data, drops
from enrobe.compress.quantize_report import QuantizeReport, write_report
from enrobe.compress.sensitivity import MOST_FLOAT, Cost, cheapest, costs
from enrobe.compress.timing import time_folder
from enrobe.engines.base import Array, Engine, Request
from enrobe.engines.onnx import OnnxEngine
from enrobe.errors import CallError, RefusedError, nearest, show
from enrobe.evaluate.intervals import Interval
from enrobe.sentence_folder import copy_sentence_files
from enrobe.tasks.model import Model
from enrobe.text.tokenizer import Tokenizer
from enrobe.weights import Int8Rows

MAX_DROP = 0.003
_NAMED = 5
# Costliest groups that a refusal or a report names.


def quantize(
    model: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    *,
    precision: Quantized = "int8",
    data: Data | None = None,
    max_drop: float = MAX_DROP,
    seconds: float = 3.0,
) -> QuantizeReport:
    """Make a smaller, faster folder of a model, and measure what that cost.

    Args:
        model: a folder, a built-in name or a hub id.
        output: a new folder.
        precision: "int8" is multiplied in int8; "int8-weights" and "float16" are only stored so.
        data: what must not be lost; without it nothing is measured but noise, on random words.
        max_drop: the largest loss of any number on `data`, as a share of it.
        seconds: about how long each timing may take.

    Raises:
        CallError: an argument is wrong, or the output is there already.
        RefusedError: the loss is beyond `max_drop`, and there is no output.
        ModelError, HubError: as `enrobe.load`.
    """
    folder = Path(output)
    if precision not in get_args(Quantized):
        hint = nearest(str(precision), get_args(Quantized))
        allowed = ", ".join(get_args(Quantized))
        raise CallError(f"precision is {show(precision)}; allowed: {allowed}{hint}")
    if not 0 <= max_drop < 1:
        raise CallError(f"max_drop is {show(max_drop)}; allowed: from 0 up to 1, as a share")
    check_new(folder)
    read = checkpoint.read(hub.resolve(model))
    # What is made smaller is the float32 model, also where it is stored as int8.
    read = replace(read, int8={}, computes_int8=False)
    tokenizer = Tokenizer.from_folder(read.folder, read.config.family, read.config.vocab_size)
    work = _Work(read, tokenizer, data, max_drop)
    made = work.int8() if precision == "int8" else work.stored(precision)
    with new_folder(folder) as scratch:
        parts: dict[str, Any] = {"config": read.config, "heads": read.heads}
        parts |= {"tensors": made.read.tensors, "tokenizer_folder": read.folder}
        if precision == "int8":
            parts["int8"] = made.read.int8
        parts["half"], parts["int8_rows"] = precision == "float16", precision == "int8-weights"
        checkpoint.write(scratch / "model", **parts)
        for path in (scratch / "model").iterdir():
            path.rename(scratch / path.name)
        (scratch / "model").rmdir()
        copy_sentence_files(read.folder, scratch)
        speed = {
            "float32": time_folder(read.folder, precision="float32", seconds=seconds),
            precision: time_folder(scratch, seconds=seconds),
        }
        report = QuantizeReport(
            precision=precision,
            output=folder,
            file_bytes=(_bytes(read.folder), _bytes(scratch)),
            parameter_bytes=_parameter_bytes(made.read, precision),
            before=work.before,
            after=made.after,
            drop=drops(work.before, made.after),
            kept=made.kept,
            smoothed=made.smoothed,
            layers_db=made.layers_db,
            products_db=made.products_db,
            speed=speed,
            said=work.said,
        )
        write_report(report, scratch)
    return report


@dataclass(frozen=True, kw_only=True)
class _Made:
    read: Checkpoint
    after: Mapping[str, Interval]
    layers_db: tuple[float, ...]
    kept: tuple[str, ...] = ()
    smoothed: tuple[str, ...] = ()
    products_db: Mapping[str, float] = field(default_factory=dict)


class _Work:
    """One model, measured in float32 once and in smaller forms as often as it takes."""

    def __init__(
        self, read: Checkpoint, tokenizer: Tokenizer, data: Data | None, max_drop: float
    ) -> None:
        self.read, self.tokenizer, self.data, self.max_drop = read, tokenizer, data, max_drop
        exact = Model(OnnxEngine(read), tokenizer, read.folder)
        self.before = data.scores(exact) if data is not None else {}
        self.said: tuple[str, ...] = ()
        if data is None:
            self.batch = calibrate.random_rows(read)
            self.said = ("no data was given: noise is that on random words, and no loss is known",)
        else:
            self.batch = calibrate.rows_of(tokenizer, data.texts(exact), read.config)
        self.states = self._states(exact.engine)

    def int8(self) -> _Made:
        """Matrices in int8, but those that would cost too much."""
        model = Int8Model.of(self.read, self.batch)
        tried: dict[frozenset[str], Mapping[str, Interval]] = {}

        def holds(kept: frozenset[str]) -> bool:
            if kept not in tried:
                tried[kept] = self._scores(model.without(kept))
            lost = drops(self.before, tried[kept]).values()
            return all(share <= self.max_drop for share in lost)

        kept: frozenset[str] = frozenset()
        if not holds(kept):
            ranked = costs(model, self.batch)
            kept = cheapest(ranked, holds)
            if not holds(kept):
                raise self._refused(tried[frozenset()], tried[kept], ranked)
        read = model.without(kept)
        return _Made(
            read=read,
            after=tried[kept],
            layers_db=self._layers_db(read),
            kept=tuple(name for name in model.units if name in kept),
            smoothed=tuple(
                name
                for name, unit in model.int8.items()
                if name not in kept and unit.rows[0].smooth is not None
            ),
            products_db={n: calibrate.decibels(unit.noise) for n, unit in model.int8.items()},
        )

    def stored(self, precision: str) -> _Made:
        """Matrices that are only stored in fewer bytes, and restored to float32."""
        tensors = {}
        for name, tensor in self.read.tensors.items():
            if precision == "float16":
                with np.errstate(over="ignore"):
                    tensors[name] = tensor.astype(np.float16).astype(np.float32)
            else:
                tensors[name] = Int8Rows.of(tensor).restore() if tensor.ndim == 2 else tensor
        small = replace(self.read, tensors=tensors)
        after = self._scores(small)
        if any(share > self.max_drop for share in drops(self.before, after).values()):
            raise self._refused(after, after, [])
        return _Made(read=self.read, after=after, layers_db=self._layers_db(small))

    def _scores(self, read: Checkpoint) -> Mapping[str, Interval]:
        if self.data is None:
            return {}
        return self.data.scores(Model(_engine(read), self.tokenizer, self.read.folder))

    def _states(self, engine: Engine) -> list[Array]:
        layers = tuple(range(self.read.config.num_layers + 1))
        return [*engine.run(self.batch, Request(layers=layers)).hidden.values()]

    def _layers_db(self, read: Checkpoint) -> tuple[float, ...]:
        return tuple(calibrate.signal_to_noise(self.states, self._states(_engine(read))))

    def _refused(
        self,
        all_int8: Mapping[str, Interval],
        best: Mapping[str, Interval],
        ranked: list[Cost],
    ) -> RefusedError:
        lost = drops(self.before, best)
        name = max(lost, key=lambda key: lost[key])
        said = f"{name} falls from {self.before[name].value:.4f} to "
        if not ranked:
            said += f"{best[name].value:.4f}"
        else:
            said += f"{all_int8[name].value:.4f} in int8, and to {best[name].value:.4f} "
            said += f"with {MOST_FLOAT:.0%} of the matrices kept as float32"
        said += f"; allowed: a loss of {self.max_drop:.2%}, nothing was written"
        if ranked:
            worst = ", ".join(f"{c.unit.name} ({c.noise_db:.0f} dB)" for c in ranked[:_NAMED])
            said += f"; the costliest: {worst}"
        return RefusedError(said + "; fix: a larger --max-drop, or --precision float16")


def _engine(read: Checkpoint) -> OnnxEngine:
    return OnnxEngine(read, precision="int8" if read.computes_int8 else "float32")


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in checkpoint.weight_files(folder))


def _parameter_bytes(read: Checkpoint, precision: Quantized) -> tuple[int, int]:
    numbers = {name: tensor.size for name, tensor in read.tensors.items()}
    before = 4 * sum(numbers.values())
    if precision != "int8":
        # Restored to float32 when it is loaded.
        return before, before
    after = sum(4 * count for name, count in numbers.items() if name not in read.int8)
    for matrix in read.int8.values():
        smooth = 0 if matrix.smooth is None else matrix.smooth.nbytes
        after += matrix.values.nbytes + matrix.scale.nbytes + smooth
    return before, after
