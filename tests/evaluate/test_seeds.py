"""The interval of a mean over seeds."""

import numpy as np
import pytest
import scipy.stats

from enrobe.evaluate.seeds import Spread


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_the_interval_is_students(count: int) -> None:
    values = np.random.default_rng(count).normal(0.8, 0.02, count)
    spread = Spread.of(values.tolist())
    low, high = scipy.stats.t.interval(
        0.95, count - 1, loc=values.mean(), scale=scipy.stats.sem(values)
    )
    assert spread.mean == pytest.approx(values.mean())
    assert (spread.low, spread.high) == (pytest.approx(low), pytest.approx(high))
    assert spread.values == tuple(values)


def test_equal_values_and_a_single_one() -> None:
    same = Spread.of([0.5, 0.5])
    assert same.low == same.mean == same.high == 0.5
    one = Spread.of([0.25])
    assert (one.mean, one.low, one.high) == (0.25, None, None)


def test_it_holds_the_true_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(7).normal(3.0, 1.0, (2000, 3))
    spreads = [Spread.of(row.tolist()) for row in draws]
    inside = [s.low < 3.0 < s.high for s in spreads if s.low is not None and s.high is not None]
    # Two standard errors of a share of 0.95 over 2,000 are 0.0097.
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)
