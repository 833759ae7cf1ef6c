"""Matrices to int8: what each step is for, on inputs that need it; the model stays the same."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enrobe import checkpoint
from enrobe.compress import calibrate
from enrobe.compress.calibrate import balance, everywhere, fake_int8, middle, noise
from enrobe.compress.int8 import Int8Model, Unit, folded, units
from enrobe.compress.rounding import feedback, mean_error, rounded
from enrobe.compress.sensitivity import Cost, cheapest, costs
from enrobe.engines.base import Request
from enrobe.engines.onnx import OnnxEngine
from enrobe.weights import Int8Rows
from tests.support import reference, scaled_error


@pytest.fixture
def rng() -> Any:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def drawn(rng: Any, *shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


def test_outliers_are_smoothed_away(rng: Any) -> None:
    inputs = drawn(rng, 300, 40) + 0.01
    inputs[:, [3, 17]] *= 60
    matrix = drawn(rng, 23, 40)
    exact = [inputs @ matrix.T]
    plain = noise([Int8Rows.of(matrix)], inputs, exact)
    smooth = noise([Int8Rows.of(matrix, balance(inputs, [matrix]))], inputs, exact)
    assert smooth < plain / 2
    # Where there is nothing to smooth, nothing is lost either.
    inputs = drawn(rng, 300, 40)
    exact = [inputs @ matrix.T]
    same = noise([Int8Rows.of(matrix, balance(inputs, [matrix]))], inputs, exact)
    assert same < 1.1 * noise([Int8Rows.of(matrix)], inputs, exact)


def test_one_sided_inputs_get_the_numbers_that_they_need(rng: Any) -> None:
    values = drawn(rng, 200, 50) * 2
    assert middle(values) == 128
    onesided = np.maximum(values, -0.05)
    assert middle(onesided) < 64
    errors = [
        np.abs(fake_int8(onesided, zero) - onesided).mean() for zero in (128, middle(onesided))
    ]
    assert errors[1] < 0.7 * errors[0]


def test_rounding_for_the_product_is_nearer_than_each_number_to_its_nearest(rng: Any) -> None:
    # Inputs that go together: what one column's rounding did, another can make good.
    inputs = drawn(rng, 500, 12) @ drawn(rng, 12, 60) + 0.1 * drawn(rng, 500, 60) + 0.5
    matrix = drawn(rng, 31, 60)
    nearest = Int8Rows.of(matrix)
    better = rounded(matrix, nearest, feedback(inputs))
    assert (better.scale == nearest.scale).all() and np.abs(better.values).max() <= 127

    def error(rows: Int8Rows) -> float:
        return float(np.square(inputs @ (rows.restore() - matrix).T).sum())

    assert error(better) < error(nearest) / 2
    # What is left of the mean goes into the bias, exactly.
    bias = mean_error(nearest, inputs, inputs @ matrix.T)
    left = inputs @ nearest.restore().T - bias - inputs @ matrix.T
    assert np.abs(left.mean(axis=0)).max() < 1e-4
    assert rounded(matrix, nearest, feedback(np.zeros_like(inputs))) is nearest


@pytest.mark.parametrize(("family", "head"), [("roberta", "mlm"), ("bert", "classify")])
def test_a_model_folded_is_the_same_and_in_int8_near_it(
    family: str, head: str, tmp_path: Path
) -> None:
    reference(tmp_path, family, head, seed=3)
    read = checkpoint.read(tmp_path)
    batch = calibrate.random_rows(read)
    inputs = dict(calibrate.inputs_of(read, batch))
    assert {name for unit in units(read) for name in unit.matrices} >= inputs.keys() - {
        f"heads.{head}.out.weight"
    }
    request, at = Request(layers=(1, 3), heads=(head,)), everywhere(batch)
    exact = OnnxEngine(read).run(batch, request, at)
    same = OnnxEngine(folded(read, inputs)).run(batch, request, at)
    made = Int8Model.of(read, batch)
    int8 = OnnxEngine(made.without(()), precision="int8").run(batch, request, at)
    alike = OnnxEngine(made.without(made.units), precision="int8").run(batch, request, at)
    for found, most in ((same, 1e-5), (alike, 1e-5), (int8, 0.15)):
        assert scaled_error(found.hidden[3], exact.hidden[3]) <= most
        assert scaled_error(found.heads[head], exact.heads[head]) <= most
    nearest = {name: Int8Rows.of(np.asarray(read.tensors[name])) for name in made.without(()).int8}
    plain = OnnxEngine(replace(read, int8=nearest), precision="int8").run(batch, request, at)
    (ours,) = calibrate.signal_to_noise([exact.hidden[3]], [int8.hidden[3]])
    (theirs,) = calibrate.signal_to_noise([exact.hidden[3]], [plain.hidden[3]])
    print(f"{ours} dB, nearest numbers {theirs} dB")
    assert ours > theirs
    ranked = costs(made, batch)
    assert {cost.unit.name for cost in ranked} == made.units.keys()
    assert all(cost.noise_db > 5 for cost in ranked)


def cost(name: str, numbers: int) -> Cost:
    unit = Unit(name=name, matrices=(f"{name}.weight",), numbers=numbers)
    return Cost(unit=unit, noise_db=30.0)


def test_the_fewest_that_are_enough_are_kept() -> None:
    ranked = [cost(f"u{i}", 10) for i in range(40)]
    asked = []

    def holds(kept: frozenset[str]) -> bool:
        asked.append(kept)
        return {"u0", "u4"} <= kept

    assert cheapest(ranked, holds) == {f"u{i}" for i in range(5)}
    assert len(asked) <= 6
    # A quarter may be kept: ten of these; a large one is passed over.
    assert cheapest(ranked, lambda kept: len(kept) == 10) == {f"u{i}" for i in range(10)}
    assert len(cheapest(ranked, lambda kept: False)) == 10
    large = [cost("all", 400), *ranked]
    assert "all" not in cheapest(large, lambda kept: False)
