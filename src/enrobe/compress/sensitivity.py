"""Which matrices cost most in int8, and the cheapest set of them to keep as float32."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from enrobe.compress.calibrate import every_output, everywhere, signal_to_noise
from enrobe.compress.int8 import Int8Model, Unit
from enrobe.engines.base import Array
from enrobe.engines.onnx import OnnxEngine
from enrobe.text.ragged import Ragged

MOST_FLOAT = 0.25
"""The share of a model's matrices that may stay float32: beyond it nothing is won by int8."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a unit alone in int8 does to the model's outputs."""

    unit: Unit
    noise_db: float
    # signal to noise of the worst output; lower is worse


def costs(model: Int8Model, batch: Ragged) -> list[Cost]:
    """Every unit by itself in int8, the costliest for its size first."""
    exact = _outputs(OnnxEngine(model.read), batch)
    found = []
    for name, unit in model.units.items():
        engine = OnnxEngine(model.mixed([name]), precision="int8")
        decibels = min(signal_to_noise(exact, _outputs(engine, batch)))
        found.append(Cost(unit=unit, noise_db=decibels))
    return sorted(found, key=lambda cost: 10 ** (-cost.noise_db / 10) / cost.unit.numbers)[::-1]


def _outputs(engine: OnnxEngine, batch: Ragged) -> list[Array]:
    request = every_output(engine.config, engine.heads)
    out = engine.run(batch, request, everywhere(batch))
    return [*out.hidden.values(), *out.heads.values()]


def cheapest(ranked: Sequence[Cost], holds: Callable[[frozenset[str]], bool]) -> frozenset[str]:
    """The fewest of the costliest units that have to stay float32.

    Args:
        ranked: by `costs`.
        holds: whether the model is good enough with these units, by name, kept.

    Returns:
        Their names; if not even the most that may be kept are enough, those, and `holds` says no.
    """
    room = MOST_FLOAT * sum(cost.unit.numbers for cost in ranked)
    kept = []
    for cost in ranked:
        if cost.unit.numbers <= room:
            room -= cost.unit.numbers
            kept.append(cost.unit.name)
    low, high = 0, len(kept)
    # The first `high` are enough, or all there are; the first `low` are not.
    if not holds(frozenset(kept)):
        return frozenset(kept)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(frozenset(kept[:middle])):
            high = middle
        else:
            low = middle
    return frozenset(kept[:high])
