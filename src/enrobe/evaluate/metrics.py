"""Measures of labels and of numbers.

Each function gives a `Measure`: `.value` is the number, `.interval()` its bootstrap. All are shares
from 0 to 1 or correlations from -1 to 1, never per cent.

Legend: N rows, R samples, C labels.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from enrobe.errors import CallError, show
from enrobe.evaluate.intervals import Floats, Measure, check_rows, mean

Labels = Sequence[Hashable] | npt.NDArray[np.generic]
Codes = npt.NDArray[np.int64]


def accuracy(gold: Labels, predicted: Labels) -> Measure:
    """The share of rows whose label is right."""
    return outcomes(gold, predicted).accuracy()


# --- labels -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelScores:
    """One label by itself; what has nothing to divide by is 0."""

    label: Hashable
    precision: float
    recall: float
    f1: float
    support: int
    # rows that have it


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What was right and wrong of each label: the ground that F1 and Matthews stand on."""

    labels: tuple[Hashable, ...]
    rows: int
    counts: Callable[[Floats], tuple[Floats, Floats, Floats]]
    # counts (R, N) of rows -> (R, C) each: found rightly, there, predicted
    right: Floats
    # (N,): 1 where all of a row is right

    def accuracy(self) -> Measure:
        """The share of rows that are right; of several labels a row: right in every one."""
        return mean(self.right)

    def f1(self, label: Hashable) -> Measure:
        """F1 of one label, 2 TP / (2 TP + FP + FN) (Van Rijsbergen 1979); 0 where it never is.

        Raises:
            CallError: no such label.
        """
        if label not in self.labels:
            known = ", ".join(str(name) for name in self.labels[:20])
            raise CallError(f"label {show(label)}; there are: {known}")
        index = self.labels.index(label)
        return Measure(self.rows, lambda counts_RN: _f1(*self.counts(counts_RN))[:, index])

    def micro_f1(self) -> Measure:
        """F1 of all decisions of all labels together."""

        def of(counts_RN: Floats) -> Floats:
            return _f1(*(count_RC.sum(axis=1) for count_RC in self.counts(counts_RN)))

        return Measure(self.rows, of)

    def macro_f1(self) -> Measure:
        """The mean over labels of each one's F1."""
        return Measure(self.rows, lambda counts_RN: _f1(*self.counts(counts_RN)).mean(axis=1))

    def matthews(self) -> Measure:
        """Matthews' correlation; of several labels R_K (Gorodkin 2004); 0 where it has no value.

        Each row must have one label.
        """

        def of(counts_RN: Floats) -> Floats:
            right_RC, gold_RC, predicted_RC = self.counts(counts_RN)
            total_R, right_R = counts_RN.sum(axis=1), right_RC.sum(axis=1)
            covariance_R = right_R * total_R - (gold_RC * predicted_RC).sum(axis=1)
            spread_R = (total_R**2 - (gold_RC**2).sum(axis=1)) * (
                total_R**2 - (predicted_RC**2).sum(axis=1)
            )
            result: Floats = _divide(covariance_R, np.sqrt(spread_R))
            return result

        return Measure(self.rows, of)

    def label_f1s(self, counts_RN: Floats) -> Floats:
        """F1 (R, C) of every label in samples, for `intervals_of`."""
        return _f1(*self.counts(counts_RN))

    def per_label(self) -> tuple[LabelScores, ...]:
        """Precision, recall and F1 of every label."""
        right, gold, predicted = (sums[0] for sums in self.counts(np.ones((1, self.rows))))
        precision, recall = _divide(right, predicted), _divide(right, gold)
        f1 = _f1(right, gold, predicted)
        return tuple(
            LabelScores(name, float(precision[n]), float(recall[n]), float(f1[n]), int(gold[n]))
            for n, name in enumerate(self.labels)
        )


def outcomes(
    gold: Labels, predicted: Labels, *, labels: Sequence[Hashable] | None = None
) -> Outcomes:
    """Of rows that have one label each.

    Args:
        gold, predicted: one label a row.
        labels: those that count in F1; None: all that occur in either, in order of their names.

    Raises:
        CallError: different numbers of rows, or none.
    """
    check_rows(gold, predicted)
    names = [value.item() if isinstance(value, np.generic) else value for value in gold]
    guesses = [value.item() if isinstance(value, np.generic) else value for value in predicted]
    if labels is None:
        labels = sorted({*names, *guesses}, key=lambda label: (str(type(label)), label))
    codes = {label: code for code, label in enumerate(labels)}
    # What does not count is the label after the last.
    gold_N = np.array([codes.get(name, len(codes)) for name in names], np.int64)
    predicted_N = np.array([codes.get(name, len(codes)) for name in guesses], np.int64)
    right_N = np.array([a == b for a, b in zip(names, guesses, strict=True)], np.float64)
    both_N = np.where(right_N == 1, gold_N, len(codes))

    def counts(counts_RN: Floats) -> tuple[Floats, Floats, Floats]:
        right, there, found = (
            _per_code(codes_N, len(codes), counts_RN) for codes_N in (both_N, gold_N, predicted_N)
        )
        return right, there, found

    return Outcomes(tuple(labels), len(gold_N), counts, right_N)


def multilabel_outcomes(
    gold: npt.ArrayLike, predicted: npt.ArrayLike, *, labels: Sequence[Hashable] | None = None
) -> Outcomes:
    """Of rows that have any number of labels each.

    Args:
        gold, predicted: (N, C), 1 or True where a row has a label.
        labels: their names; None: 0, 1, 2, ...

    Raises:
        CallError: shapes that do not fit, or a value that is neither 0 nor 1.
    """
    gold_NC, predicted_NC = np.asarray(gold, np.float64), np.asarray(predicted, np.float64)
    if gold_NC.ndim != 2 or gold_NC.shape != predicted_NC.shape or not gold_NC.size:
        raise CallError(
            f"arrays {gold_NC.shape} and {predicted_NC.shape}; allowed: both (rows, labels)"
        )
    if not np.isin(gold_NC, (0, 1)).all() or not np.isin(predicted_NC, (0, 1)).all():
        raise CallError("several labels a row are written as 0 and 1; other values are there")
    names = tuple(range(gold_NC.shape[1])) if labels is None else tuple(labels)
    if len(names) != gold_NC.shape[1]:
        raise CallError(f"{len(names)} names for {gold_NC.shape[1]} labels")
    both_NC = gold_NC * predicted_NC

    def counts(counts_RN: Floats) -> tuple[Floats, Floats, Floats]:
        return counts_RN @ both_NC, counts_RN @ gold_NC, counts_RN @ predicted_NC

    right_N = (gold_NC == predicted_NC).all(axis=1).astype(np.float64)
    return Outcomes(names, len(gold_NC), counts, right_N)


def _per_code(codes_N: Codes, size: int, weights_RN: Floats) -> Floats:
    """The sum of weights (R, C) at each code; codes from `size` on are left out."""
    rounds = len(weights_RN)
    places = codes_N + (size + 1) * np.arange(rounds)[:, None]
    sums = np.bincount(places.ravel(), weights_RN.ravel(), minlength=rounds * (size + 1))
    return sums.reshape(rounds, size + 1)[:, :size].astype(np.float64, copy=False)


def _f1(right: Floats, gold: Floats, predicted: Floats) -> Floats:
    return _divide(2 * right, gold + predicted)


def _divide(a: Floats, b: Floats) -> Floats:
    return np.divide(a, b, out=np.zeros_like(b), where=b > 0)


# --- numbers ------------------------------------------------------------------------------------


def pearson(x: npt.ArrayLike, y: npt.ArrayLike) -> Measure:
    """Pearson's correlation; NaN where one side is constant."""
    x_N, y_N = _numbers(x, y)
    if _constant(x_N) or _constant(y_N):
        return Measure(len(x_N), lambda counts_RN: np.full(len(counts_RN), np.nan))
    # Around 0 and of length 1, so that the sums below lose nothing.
    x_N, y_N = ((side - side.mean()) / side.std() for side in (x_N, y_N))
    columns_NK = np.stack([x_N, y_N, x_N * x_N, y_N * y_N, x_N * y_N], axis=1)

    def of(counts_RN: Floats) -> Floats:
        x_R, y_R, xx_R, yy_R, xy_R = (counts_RN @ columns_NK / counts_RN.sum(1)[:, None]).T
        x_spread, y_spread = xx_R - x_R**2, yy_R - y_R**2
        # Less than rounding leaves of a constant.
        known = (x_spread > 1e-12) & (y_spread > 1e-12)
        scale = np.sqrt(np.where(known, x_spread * y_spread, 1))
        result: Floats = np.where(known, np.clip((xy_R - x_R * y_R) / scale, -1, 1), np.nan)
        return result

    return Measure(len(x_N), of)


def spearman(x: npt.ArrayLike, y: npt.ArrayLike) -> Measure:
    """Spearman's correlation: Pearson's of ranks, equal values sharing their mean rank."""
    x_N, y_N = _numbers(x, y)
    rank_x, rank_y = _ranking(x_N), _ranking(y_N)

    def of(counts_RN: Floats) -> Floats:
        total_R1 = counts_RN.sum(axis=1, keepdims=True)
        # The mean of the ranks 1 to n, however many share one.
        x_RN, y_RN = (rank(counts_RN) - (total_R1 + 1) / 2 for rank in (rank_x, rank_y))
        weighted_RN = counts_RN * x_RN
        covariance = (weighted_RN * y_RN).sum(axis=1)
        spread = (weighted_RN * x_RN).sum(axis=1) * (counts_RN * y_RN * y_RN).sum(axis=1)
        known = spread > 0
        scale = np.sqrt(np.where(known, spread, 1))
        result: Floats = np.where(known, np.clip(covariance / scale, -1, 1), np.nan)
        return result

    return Measure(len(x_N), of)


def ranks(values: npt.ArrayLike) -> Floats:
    """Ranks (N,) from 1 on, equal values sharing their mean rank."""
    values_N = np.asarray(values, np.float64)
    result: Floats = _ranking(values_N)(np.ones((1, len(values_N))))[0]
    return result


def _ranking(values_N: Floats) -> Callable[[Floats], Floats]:
    """A function from counts (R, N) to the ranks (R, N) of rows that occur so often."""
    _, group_N, sizes = np.unique(values_N, return_inverse=True, return_counts=True)
    order = np.argsort(group_N, kind="stable")
    starts = np.cumsum(sizes) - sizes

    def of(counts_RN: Floats) -> Floats:
        in_group = np.add.reduceat(counts_RN[:, order], starts, axis=1)
        before = np.cumsum(in_group, axis=1) - in_group
        result: Floats = (before + (in_group + 1) / 2)[:, group_N]
        return result

    return of


def _numbers(x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Floats, Floats]:
    x_N, y_N = np.asarray(x, np.float64), np.asarray(y, np.float64)
    check_rows(x_N, y_N)
    if not (np.isfinite(x_N).all() and np.isfinite(y_N).all()):
        raise CallError("a correlation takes finite numbers; there are NaN or infinite ones")
    return x_N, y_N


def _constant(values_N: Floats) -> bool:
    return bool(values_N.min() == values_N.max())


# --- calibration --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bin:
    """The rows whose confidence lies in (low, high]."""

    low: float
    high: float
    rows: int
    confidence: float
    # their mean; NaN without rows
    accuracy: float


def calibration_error(
    confidence: npt.ArrayLike, right: npt.ArrayLike, *, bins: int = 15
) -> Measure:
    """Expected calibration error (Guo et al. 2017): |accuracy - confidence|, weighted over bins.

    Args:
        confidence: the probability of each row's answer, 0 to 1.
        right: 1 or True where the answer is right.
        bins: of equal width.

    Raises:
        CallError: an argument is wrong.
    """
    confidence_N, right_N, codes_N = _binned(confidence, right, bins)
    gap_N = right_N - confidence_N

    def of(counts_RN: Floats) -> Floats:
        gaps_RC = _per_code(codes_N, bins, counts_RN * gap_N)
        result: Floats = np.abs(gaps_RC).sum(axis=1) / counts_RN.sum(axis=1)
        return result

    return Measure(len(gap_N), of)


def calibration_bins(
    confidence: npt.ArrayLike, right: npt.ArrayLike, *, bins: int = 15
) -> tuple[Bin, ...]:
    """What a reliability diagram shows; arguments as `calibration_error`."""
    confidence_N, right_N, codes_N = _binned(confidence, right, bins)
    sums = [
        _per_code(codes_N, bins, column_N[None])[0]
        for column_N in (np.ones(len(codes_N)), confidence_N, right_N)
    ]
    count, confident, correct = sums
    some = np.maximum(count, 1)
    return tuple(
        Bin(
            low=n / bins,
            high=(n + 1) / bins,
            rows=int(count[n]),
            confidence=float(confident[n] / some[n]) if count[n] else float("nan"),
            accuracy=float(correct[n] / some[n]) if count[n] else float("nan"),
        )
        for n in range(bins)
    )


def _binned(
    confidence: npt.ArrayLike, right: npt.ArrayLike, bins: int
) -> tuple[Floats, Floats, Codes]:
    confidence_N, right_N = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    check_rows(confidence_N, right_N)
    if type(bins) is not int or bins < 1:
        raise CallError(f"bins is {show(bins)}; allowed: a whole number from 1")
    if not ((confidence_N >= 0) & (confidence_N <= 1)).all():
        raise CallError("a confidence is a probability; there are values outside 0 to 1")
    codes_N = np.clip(np.ceil(confidence_N * bins).astype(np.int64) - 1, 0, bins - 1)
    return confidence_N, right_N, codes_N
