"""The bootstrap: against the formula, in its coverage, and in what it repeats."""

import math

import numpy as np
import pytest

from enrobe.errors import CallError
from enrobe.evaluate import intervals as module
from enrobe.evaluate.intervals import Measure, difference, intervals, mean, plain
from enrobe.evaluate.metrics import accuracy, spearman


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(size=4000)
    interval = mean(values).interval(rounds=4000)
    wide = 1.96 * values.std() / math.sqrt(len(values))
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - wide, abs=0.1 * wide)
    assert interval.high == pytest.approx(values.mean() + wide, abs=0.1 * wide)
    assert (interval.confidence, interval.rounds) == (0.95, 4000)


def test_it_holds_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        interval = mean(generator.random(80) < 0.7).interval(rounds=300, confidence=0.9)
        held += interval.low <= 0.7 <= interval.high
    # Of 200, 180 are expected; 3.5 standard deviations to either side.
    assert 165 <= held <= 195


def test_the_same_seed_gives_the_same_and_another_does_not() -> None:
    measure = mean(np.random.default_rng(3).random(50))
    assert measure.interval(seed=4) == measure.interval(seed=4)
    assert measure.interval(seed=4).low != measure.interval(seed=5).low


def test_blocks_of_samples_are_samples_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = mean(np.random.default_rng(3).random(53))
    together = measure.interval(rounds=101)
    monkeypatch.setattr(module, "_BLOCK", 7 * 53)
    again = measure.interval(rounds=101)
    assert (again.low, again.high) == pytest.approx((together.low, together.high))


def test_measures_of_the_same_rows_share_samples() -> None:
    x = np.random.default_rng(6).random((2, 40))
    both = intervals([spearman(*x), mean(x[0])], rounds=50)
    assert both == [spearman(*x).interval(rounds=50), mean(x[0]).interval(rounds=50)]


def test_pairs_tell_apart_what_single_intervals_do_not() -> None:
    generator = np.random.default_rng(7)
    gold = generator.integers(0, 2, 600)
    first = np.where(generator.random(600) < 0.8, gold, 1 - gold)
    # The second makes the first one's mistakes, and 15 more.
    second = first.copy()
    second[np.flatnonzero(first == gold)[:15]] ^= 1
    a, b = accuracy(gold, first), accuracy(gold, second)
    assert a.interval().low < b.interval().high
    gap = difference(a, b)
    assert gap.value == pytest.approx(15 / 600)
    assert gap.low > 0
    assert gap.better > 0.99
    back = difference(b, a)
    assert (back.value, back.low, back.high) == pytest.approx((-gap.value, -gap.high, -gap.low))
    same = difference(a, a)
    assert (same.value, same.low, same.high, same.better) == (0, 0, 0, 0.5)


def test_one_row_and_a_value_that_never_is_defined() -> None:
    assert mean([0.25]).interval(rounds=5).low == 0.25
    never = Measure(3, lambda counts: np.full(len(counts), np.nan))
    interval = never.interval(rounds=5)
    assert math.isnan(interval.value) and interval.rounds == 0
    assert plain(interval) == {
        "value": None,
        "low": None,
        "high": None,
        "confidence": 0.95,
        "rounds": 0,
    }
    assert math.isnan(difference(never, never, rounds=5).better)


@pytest.mark.parametrize(
    "options", [{"rounds": 0}, {"rounds": 2.5}, {"confidence": 1}, {"confidence": 95}]
)
def test_wrong_options(options: dict[str, int]) -> None:
    with pytest.raises(CallError, match="allowed"):
        mean([1, 2]).interval(**options)  # type: ignore[arg-type]
    with pytest.raises(CallError, match="rows"):
        difference(mean([1, 2]), mean([1]))
