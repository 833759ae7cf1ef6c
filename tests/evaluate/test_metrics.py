"""Measures against scikit-learn and scipy, by hand, and by what must hold for any rows."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enrobe.errors import CallError
from enrobe.evaluate.intervals import Measure
from enrobe.evaluate.metrics import (
    accuracy,
    calibration_bins,
    calibration_error,
    multilabel_outcomes,
    outcomes,
    pearson,
    ranks,
    spearman,
)

LABELS = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1)
# Few values, so that many are equal.
NUMBERS = st.lists(st.tuples(*[st.integers(-3, 3)] * 2), min_size=2, max_size=60)


@pytest.fixture(scope="module")
def sk() -> Any:
    pytest.importorskip("sklearn")
    import sklearn.metrics

    return sklearn.metrics


@pytest.fixture(scope="module")
def scipy() -> Any:
    return pytest.importorskip("scipy.stats")


def resampled(measure: Measure, make: Callable[[Any], Measure], seed: int = 0) -> None:
    """Rows counted several times give what rows written several times give."""
    drawn = np.random.default_rng(seed).integers(0, measure.rows, measure.rows)
    counts = np.bincount(drawn, minlength=measure.rows)[None].astype(np.float64)
    weighted = float(measure.of(counts)[0])
    assert weighted == pytest.approx(make(drawn).value, abs=1e-9, nan_ok=True)


# --- labels -------------------------------------------------------------------------------------


@given(LABELS)
@settings(deadline=None, max_examples=40)
def test_labels_like_scikit_learn(sk: Any, rows: list[tuple[str, str]]) -> None:
    gold, guess = ([row[side] for row in rows] for side in (0, 1))
    found = outcomes(gold, guess)
    assert found.accuracy().value == pytest.approx(sk.accuracy_score(gold, guess))
    for average, measure in (("micro", found.micro_f1()), ("macro", found.macro_f1())):
        expected = sk.f1_score(gold, guess, average=average, zero_division=0)
        assert measure.value == pytest.approx(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, where it has no value
        assert found.matthews().value == pytest.approx(sk.matthews_corrcoef(gold, guess), abs=1e-9)
    theirs = sk.precision_recall_fscore_support(
        gold, guess, labels=list(found.labels), zero_division=0
    )
    for n, ours in enumerate(found.per_label()):
        expected = tuple(column[n] for column in theirs)
        assert (ours.precision, ours.recall, ours.f1, ours.support) == pytest.approx(expected)
        assert found.f1(ours.label).value == pytest.approx(ours.f1)


@given(LABELS, st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_labels_counted_several_times(rows: list[tuple[str, str]], seed: int) -> None:
    gold, guess = (np.array([row[side] for row in rows]) for side in (0, 1))
    every = "abcd"
    for name in ("accuracy", "micro_f1", "macro_f1", "matthews"):
        measure = getattr(outcomes(gold, guess, labels=every), name)()
        resampled(
            measure,
            lambda i, n=name: getattr(outcomes(gold[i], guess[i], labels=every), n)(),
            seed,
        )


def test_labels_by_hand() -> None:
    # b: found once, missed once, claimed once wrongly; a right once; c never found.
    found = outcomes(["a", "b", "b", "c"], ["a", "b", "a", "b"])
    a, b, c = found.per_label()
    assert (a.precision, a.recall, a.f1, a.support) == pytest.approx((1 / 2, 1, 2 / 3, 1))
    assert (b.precision, b.recall, b.f1, b.support) == pytest.approx((1 / 2, 1 / 2, 1 / 2, 2))
    assert (c.precision, c.recall, c.f1, c.support) == (0, 0, 0, 1)
    assert found.macro_f1().value == pytest.approx((2 / 3 + 1 / 2) / 3)
    # (TP TN - FP FN) / sqrt(...) with TP 3, TN 1, FP 1, FN 1.
    two = outcomes([1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 1])
    assert two.matthews().value == pytest.approx((3 - 1) / math.sqrt(4 * 4 * 2 * 2))


def test_no_positive_label_and_one_label_alone() -> None:
    none = outcomes([0, 0, 0], [0, 0, 0], labels=[0, 1])
    assert none.f1(1).value == 0
    assert none.matthews().value == 0
    assert none.accuracy().value == 1
    assert outcomes(["a"], ["a"]).macro_f1().value == 1


def test_labels_that_do_not_count() -> None:
    # Relations without "none", as in TACRED: micro F1 over the others alone.
    gold = ["none", "none", "born", "died", "born"]
    guess = ["none", "born", "born", "none", "died"]
    found = outcomes(gold, guess, labels=["born", "died"])
    assert found.micro_f1().value == pytest.approx(2 * 1 / (3 + 3))
    assert found.accuracy().value == pytest.approx(2 / 5)


def test_labels_of_numpy_and_of_several_kinds() -> None:
    found = outcomes(np.array([1, 2]), [1, 1])
    assert found.labels == (1, 2)
    assert outcomes(["1", 1, True], ["1", 2, True]).accuracy().value == pytest.approx(2 / 3)


@given(st.lists(st.tuples(*[st.booleans()] * 6), min_size=1, max_size=30), st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_several_labels_like_scikit_learn(sk: Any, rows: list[tuple[bool, ...]], seed: int) -> None:
    gold, guess = np.array(rows)[:, :3], np.array(rows)[:, 3:]
    found = multilabel_outcomes(gold, guess, labels=["x", "y", "z"])
    assert found.accuracy().value == pytest.approx(sk.accuracy_score(gold, guess))
    for average, name in (("micro", "micro_f1"), ("macro", "macro_f1")):
        expected = sk.f1_score(gold, guess, average=average, zero_division=0)
        assert getattr(found, name)().value == pytest.approx(expected)
        resampled(
            getattr(found, name)(),
            lambda i, n=name: getattr(multilabel_outcomes(gold[i], guess[i]), n)(),
            seed,
        )
    assert [label.support for label in found.per_label()] == list(gold.sum(axis=0))


@pytest.mark.parametrize(
    "call",
    [
        lambda: accuracy([], []),
        lambda: accuracy([1], [1, 2]),
        lambda: outcomes([1, 2], [1, 2]).f1(3),
        lambda: multilabel_outcomes([[0, 2]], [[0, 1]]),
        lambda: multilabel_outcomes([0, 1], [0, 1]),
        lambda: multilabel_outcomes([[0, 1]], [[0, 1]], labels=["a"]),
        lambda: pearson([1, 2], [1, math.nan]),
        lambda: spearman([1, 2], [1, math.inf]),
        lambda: pearson([], []),
        lambda: calibration_error([1.5], [1]),
        lambda: calibration_error([0.5], [1], bins=0),
        lambda: calibration_error([0.5, 0.5], [1]),
    ],
)
def test_mistakes_are_errors_of_one_line(call: Callable[[], object]) -> None:
    with pytest.raises(CallError) as caught:
        call()
    assert "\n" not in str(caught.value)


# --- numbers ------------------------------------------------------------------------------------


@given(NUMBERS, st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_correlations_like_scipy(scipy: Any, rows: list[tuple[int, int]], seed: int) -> None:
    x, y = np.array(rows, np.float64).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, of constants
        expected = scipy.pearsonr(x, y).statistic, scipy.spearmanr(x, y).statistic
    for make, value in zip((pearson, spearman), expected, strict=True):
        assert make(x, y).value == pytest.approx(value, abs=1e-9, nan_ok=True)
        resampled(make(x, y), lambda i, m=make: m(x[i], y[i]), seed)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=40))
def test_ranks_like_scipy(scipy: Any, values: list[int]) -> None:
    assert ranks(values) == pytest.approx(scipy.rankdata(values))


def test_ranks_by_hand() -> None:
    assert list(ranks([3, 1, 3, 2, 3])) == [4, 1, 4, 2, 4]
    # Ranks 1.5, 1.5, 3 against 1, 2, 3: covariance 1.5, spreads 1.5 and 2.
    assert spearman([1, 1, 2], [1, 2, 3]).value == pytest.approx(1.5 / math.sqrt(1.5 * 2))


def test_a_constant_has_no_correlation() -> None:
    for make in (pearson, spearman):
        assert math.isnan(make([0.1] * 7, range(7)).value)
        interval = make([0.1] * 7, range(7)).interval(rounds=20)
        assert math.isnan(interval.low) and interval.rounds == 0


def test_numbers_far_from_zero_and_far_apart() -> None:
    x = 1e9 + np.arange(50.0)
    assert pearson(x, x * 1e-12).value == pytest.approx(1)
    assert pearson(x, -x).value == pytest.approx(-1)
    assert spearman(np.exp(np.arange(50.0)), np.arange(50)).value == pytest.approx(1)


# --- calibration --------------------------------------------------------------------------------


def test_calibration_by_hand() -> None:
    # Bins (0, 0.5] and (0.5, 1]: gaps |1/2 - 0.4| and |2/3 - 0.9| of 2 and 3 rows.
    confidence, right = [0.3, 0.5, 0.8, 0.9, 1.0], [1, 0, 1, 0, 1]
    expected = (2 * abs(1 / 2 - 0.4) + 3 * abs(2 / 3 - 0.9)) / 5
    assert calibration_error(confidence, right, bins=2).value == pytest.approx(expected)
    low, high = calibration_bins(confidence, right, bins=2)
    assert (low.rows, low.confidence, low.accuracy) == pytest.approx((2, 0.4, 0.5))
    assert (high.rows, high.confidence, high.accuracy) == pytest.approx((3, 0.9, 2 / 3))
    empty, *_ = calibration_bins([0.9], [1], bins=3)
    assert empty.rows == 0 and math.isnan(empty.accuracy)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40),
    st.integers(1, 20),
    st.integers(0, 9),
)
@settings(deadline=None, max_examples=40)
def test_calibration_holds_for_any_rows(
    rows: list[tuple[float, bool]], bins: int, seed: int
) -> None:
    confidence, right = np.array([c for c, _ in rows]), np.array([r for _, r in rows])
    measure = calibration_error(confidence, right, bins=bins)
    made = calibration_bins(confidence, right, bins=bins)
    assert sum(b.rows for b in made) == len(rows)
    gaps = sum(b.rows * abs(b.accuracy - b.confidence) for b in made if b.rows)
    assert measure.value == pytest.approx(gaps / len(rows), abs=1e-9)
    assert -1e-12 <= measure.value <= 1
    resampled(measure, lambda i: calibration_error(confidence[i], right[i], bins=bins), seed)
