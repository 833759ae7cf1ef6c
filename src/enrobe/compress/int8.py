"""A model's matrices as int8: which go together, what their inputs become, how they are rounded.

Legend: T tokens, K inputs and N outputs of a matrix, H hidden.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from enrobe.checkpoint import Checkpoint
from enrobe.compress.calibrate import (
    WORTH_IT,
    balance,
    expected_noise,
    inputs_of,
    int8_inputs,
    middle,
    noise,
    share,
    static_scale,
)
from enrobe.compress.rounding import feedback, mean_error, rounded
from enrobe.engines.base import Array
from enrobe.engines.plain_graph import Static
from enrobe.text.ragged import Ragged
from enrobe.weights import Int8Rows

_TABLES = ("embeddings.position.weight", "embeddings.token_type.weight")
# Their noise goes into every token, and they are a hundredth of a model.


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Matrices that read the same inputs, and become int8 or stay float together."""

    name: str
    matrices: tuple[str, ...]
    numbers: int
    # in all of them


@dataclass(frozen=True, eq=False)
class Int8Unit:
    """A unit in int8."""

    rows: list[Int8Rows]
    noise: float
    # the share of it in the power of the product
    biases: dict[str, Array]
    # to be added to biases, by their names: the mean error with the sign turned


@dataclass(frozen=True, eq=False)
class Int8Model:
    """A model all of whose units are there as float32 and as int8."""

    read: Checkpoint
    # float32
    units: dict[str, Unit]
    int8: dict[str, Int8Unit]

    @classmethod
    def of(cls, read: Checkpoint, batch: Ragged) -> Self:
        """Turn every unit into int8, for what a batch of rows brings to it."""
        inputs = dict(inputs_of(read, batch))
        read = folded(read, inputs)
        every = units(read)
        made = {}
        for unit in every:
            given = [inputs.pop(name, None) for name in unit.matrices]
            made[unit.name] = int8_unit(read, unit, given[0])
        return cls(read, {unit.name: unit for unit in every}, made)

    def mixed(self, int8: Collection[str]) -> Checkpoint:
        """The model with these units in int8 and the others in float32."""
        tensors = dict(self.read.tensors)
        rows: dict[str, Int8Rows] = {}
        for name in int8:
            rows |= dict(zip(self.units[name].matrices, self.int8[name].rows, strict=True))
            for bias, more in self.int8[name].biases.items():
                tensors[bias] = tensors[bias] + more
        return replace(self.read, tensors=tensors, int8=rows, computes_int8=True)

    def without(self, kept: Collection[str]) -> Checkpoint:
        """The model in int8, but for the units that are kept as float32."""
        return self.mixed([name for name in self.units if name not in kept])


def static(read: Checkpoint, batch: Ragged) -> Static:
    """The int8 matrices of a checkpoint, with fixed scales for inputs like those of a batch."""
    inputs = inputs_of(replace(read, int8={}, computes_int8=False), batch)
    found = {}
    for name, rows in read.int8.items():
        own = inputs.get(name)
        if own is not None:
            found[name] = static_scale(own if rows.smooth is None else own * rows.smooth)
    return Static(rows=read.int8, inputs=found)


def units(read: Checkpoint) -> list[Unit]:
    """What may become int8: every matrix but small tables and a head's last, which save nothing."""
    groups: dict[str, list[str]] = {}
    for name, tensor in read.tensors.items():
        small = name in _TABLES or name.endswith(".out.weight")
        if tensor.ndim == 2 and not small:
            short = name.removesuffix(".weight")
            layer, _, part = short.rpartition(".")
            group = f"{layer}.attention" if part in ("query", "key", "value") else short
            groups.setdefault(group, []).append(name)
    return [
        Unit(
            name=group,
            matrices=tuple(names),
            numbers=sum(read.tensors[name].size for name in names),
        )
        for group, names in groups.items()
    ]


def folded(read: Checkpoint, inputs: dict[str, Array]) -> Checkpoint:
    """The same model with what attention mixes smoothed: values and outputs take the factors up.

    So it costs nothing when the model runs. `inputs` of the outputs become those of the new model.
    """
    tensors = dict(read.tensors)
    for i in range(read.config.num_layers):
        value, output = f"layers.{i}.value", f"layers.{i}.output.weight"
        factors_H = balance(inputs[output], [tensors[output]])
        inputs[output] = inputs[output] * factors_H
        tensors[output] = tensors[output] / factors_H
        tensors[f"{value}.weight"] = tensors[f"{value}.weight"] * factors_H[:, None]
        tensors[f"{value}.bias"] = tensors[f"{value}.bias"] * factors_H
    return replace(read, tensors=tensors)


def int8_unit(read: Checkpoint, unit: Unit, inputs_TK: Array | None) -> Int8Unit:
    """A unit's matrices as int8, their inputs smoothed where that helps, rounded for the product.

    inputs_TK: None for a table, of which rows are taken.
    """
    matrices = [np.asarray(read.tensors[name]) for name in unit.matrices]
    if inputs_TK is None:
        rows = [Int8Rows.of(matrix) for matrix in matrices]
        return Int8Unit(rows, share(rows[0].restore() - matrices[0], matrices[0]), {})
    exact = [inputs_TK @ matrix.T for matrix in matrices]
    best = [Int8Rows.of(matrix, None, middle(inputs_TK)) for matrix in matrices]
    table = unit.name.startswith("embeddings.")
    if not table and not unit.name.endswith(".output"):
        factors = balance(inputs_TK, matrices)
        zero = middle(inputs_TK * factors)
        tried = [Int8Rows.of(matrix, factors, zero) for matrix in matrices]
        before, after = (expected_noise(r, matrices, inputs_TK, exact) for r in (best, tried))
        if after < WORTH_IT * before:
            best = tried
    biases = {}
    if not table:
        # A table's rows are also taken as they are: they stay the nearest.
        given = int8_inputs(inputs_TK, best[0])
        upper_KK = feedback(given)
        best = [rounded(m, own, upper_KK) for m, own in zip(matrices, best, strict=True)]
        for name, own, exact_TN in zip(unit.matrices, best, exact, strict=True):
            # A masked-LM head has one bias, which is its decoder's.
            bias = name.removesuffix("decoder.weight").removesuffix("weight") + "bias"
            biases[bias] = -mean_error(own, given, exact_TN)
    return Int8Unit(best, noise(best, inputs_TK, exact), biases)
