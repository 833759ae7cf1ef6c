"""A measure over rows, and how far chance could have moved it: the bootstrap.

A measure is a function of how often each row counts. All ones give its value; the counts of a
sample drawn with replacement give what another set of as many rows could have given, and thousands
of those are one matrix product or one `bincount` instead of thousands of passes.

Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13: the percentile interval;
of two systems on the same rows: Koehn 2004, Statistical Significance Tests for Machine Translation
Evaluation.

Legend: N rows, R samples.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from enrobe.errors import CallError, show

Floats = npt.NDArray[np.float64]

ROUNDS = 1000
CONFIDENCE = 0.95
_BLOCK = 1 << 21
"""Counts held at a time: 16 MiB."""


@dataclass(frozen=True)
class Interval:
    """A value, and the percentile interval of its bootstrap."""

    value: float
    low: float
    high: float
    confidence: float
    # the share of such intervals that hold the true value, if rows were drawn by chance
    rounds: int
    # samples on which the measure is defined


@dataclass(frozen=True)
class Difference(Interval):
    """One system's value less another's, on the same rows."""

    better: float
    # the share of samples on which the first is ahead; a draw counts half


@dataclass(frozen=True, eq=False)
class Measure:
    """A number over rows; `float(measure)` is its value, NaN where it is not defined."""

    rows: int
    of: Callable[[Floats], Floats]
    # counts (R, N) of the rows -> values (R,)

    @cached_property
    def value(self) -> float:
        """The number, every row counted once."""
        return float(self.of(np.ones((1, self.rows)))[0])

    def __float__(self) -> float:
        return self.value

    def interval(
        self, *, rounds: int = ROUNDS, confidence: float = CONFIDENCE, seed: int = 0
    ) -> Interval:
        """The value with its bootstrap interval; see `intervals`."""
        return intervals([self], rounds=rounds, confidence=confidence, seed=seed)[0]


def mean(values: npt.ArrayLike) -> Measure:
    """The mean of a number that each row has by itself."""
    values_N = np.asarray(values, np.float64)
    check_rows(values_N)

    def of(counts_RN: Floats) -> Floats:
        result: Floats = counts_RN @ values_N / counts_RN.sum(axis=1)
        return result

    return Measure(len(values_N), of)


def intervals(
    measures: Sequence[Measure],
    *,
    rounds: int = ROUNDS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> list[Interval]:
    """Several measures of the same rows with their intervals, from the same samples.

    Args:
        measures: all over as many rows.
        rounds: samples drawn, each of as many rows as there are.
        confidence: between 0 and 1.
        seed: the same one gives the same samples.

    Raises:
        CallError: an argument is wrong, or the measures have different numbers of rows.
    """
    values_MR = _sampled(measures, rounds, confidence, seed)
    return [
        Interval(measure.value, *_percentiles(values_R, confidence))
        for measure, values_R in zip(measures, values_MR, strict=True)
    ]


def intervals_of(
    rows: int, of: Callable[[Floats], Floats], *, rounds: int = ROUNDS, seed: int = 0
) -> list[Interval]:
    """Numbers that are computed together, such as one a label, each with its interval.

    Args:
        rows: that they are over.
        of: counts (R, N) of the rows -> values (R, M) of the M numbers.
        rounds, seed: as `intervals`.
    """
    values_M = of(np.ones((1, rows)))[0]
    values_RM = np.concatenate([of(counts_RN) for counts_RN in _samples(rows, rounds, seed)])
    return [
        Interval(float(value), *_percentiles(values_R, CONFIDENCE))
        for value, values_R in zip(values_M, values_RM.T, strict=True)
    ]


def difference(
    first: Measure,
    second: Measure,
    *,
    rounds: int = ROUNDS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Difference:
    """How much better the first is than the second: a paired bootstrap over the same rows.

    An interval that holds 0 says that these rows do not tell the two apart.

    Raises:
        CallError: as `intervals`.
    """
    a_R, b_R = _sampled([first, second], rounds, confidence, seed)
    both = np.isfinite(a_R - b_R)
    ahead = (np.sign(a_R - b_R)[both] + 1) / 2
    better = float(ahead.mean()) if both.any() else float("nan")
    value = first.value - second.value
    return Difference(value, *_percentiles(a_R - b_R, confidence), better)


def plain(result: object) -> Any:
    """A result as plain dictionaries and lists, fit for JSON: what is not defined is None."""
    if is_dataclass(result):
        return {part.name: plain(getattr(result, part.name)) for part in fields(result)}
    if isinstance(result, tuple):
        return [plain(item) for item in result]
    return None if isinstance(result, float) and math.isnan(result) else result


def _sampled(measures: Sequence[Measure], rounds: int, confidence: float, seed: int) -> Floats:
    """Values (M, R) of each measure on the same samples."""
    if type(rounds) is not int or rounds < 1:
        raise CallError(f"rounds is {show(rounds)}; allowed: a whole number from 1")
    if not 0 < confidence < 1:
        raise CallError(f"confidence is {show(confidence)}; allowed: between 0 and 1")
    counts = {measure.rows for measure in measures}
    if len(counts) != 1:
        raise CallError(f"measures over {sorted(counts)} rows; allowed: all over the same rows")
    blocks = [
        np.stack([measure.of(counts_RN) for measure in measures])
        for counts_RN in _samples(counts.pop(), rounds, seed)
    ]
    return np.concatenate(blocks, axis=1)


def _samples(rows: int, rounds: int, seed: int) -> Iterator[Floats]:
    """How often each row is in each sample, some samples at a time."""
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // rows)
    for start in range(0, rounds, block):
        count = min(block, rounds - start)
        drawn = generator.integers(0, rows, size=(count, rows))
        drawn += rows * np.arange(count)[:, None]
        flat = np.bincount(drawn.ravel(), minlength=count * rows)
        yield flat.reshape(count, rows).astype(np.float64)


def _percentiles(values_R: Floats, confidence: float) -> tuple[float, float, float, int]:
    """What stands after the value in an Interval."""
    known = values_R[np.isfinite(values_R)]
    if not len(known):
        return float("nan"), float("nan"), confidence, 0
    tail = (1 - confidence) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high), confidence, len(known)


def check_rows(*columns: Sequence[object] | npt.NDArray[np.generic]) -> None:
    """Raise CallError unless all have as many rows, and one at least."""
    sizes = [len(column) for column in columns]
    if len(set(sizes)) != 1 or not sizes[0]:
        got = " and ".join(str(size) for size in sizes)
        raise CallError(f"{got} rows; allowed: as many of each, and one at least")
