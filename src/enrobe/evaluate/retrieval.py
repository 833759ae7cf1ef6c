"""Is the right one found first? Accuracy and mean reciprocal rank of a search.

Equal scores stand in an order drawn by chance, and the expected value is what counts: a model that
gives every text the same vector finds one in M, not all and not none.

Legend: Q queries, M targets, N rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from enrobe.errors import CallError
from enrobe.evaluate.intervals import Floats, Measure, mean


@dataclass(frozen=True, eq=False)
class Found:
    """How a search went, over its queries.

    Shapes: first, reciprocal (Q,).
    """

    first: Floats
    # the chance that the right target stands first, 0 or 1 without equal scores
    reciprocal: Floats
    # one over its expected place

    def accuracy(self) -> Measure:
        """The share of queries whose first answer is right."""
        return mean(self.first)

    def mean_reciprocal_rank(self) -> Measure:
        """The mean of one over the place of the right answer (Voorhees 1999)."""
        return mean(self.reciprocal)


def found(scores: npt.ArrayLike, right: Sequence[Sequence[int]]) -> Found:
    """Where the right targets stand among all.

    Args:
        scores: (Q, M), the higher the more alike.
        right: for each query its targets; of several the best-placed one counts.

    Raises:
        CallError: shapes that do not fit, a query without a target, or a score that is NaN.
    """
    scores_QM = np.asarray(scores)
    if scores_QM.ndim != 2 or len(scores_QM) != len(right) or not scores_QM.size:
        raise CallError(f"scores {scores_QM.shape} for {len(right)} queries; allowed: a row each")
    sizes_Q = np.array([len(targets) for targets in right])
    if not sizes_Q.all():
        raise CallError("a query has no right target; leave it out")
    flat = np.concatenate([np.asarray(targets, np.int64) for targets in right])
    if flat.min() < 0 or flat.max() >= scores_QM.shape[1]:
        raise CallError(f"a right target is none of the {scores_QM.shape[1]} targets")
    if np.isnan(scores_QM).any():
        raise CallError("a score is NaN; leave such rows out")
    query_N = np.repeat(np.arange(len(right)), sizes_Q)
    starts = np.cumsum(sizes_Q) - sizes_Q
    best_Q = np.maximum.reduceat(scores_QM[query_N, flat], starts)
    # The other right targets stand in nobody's way.
    others_QM = np.array(scores_QM, np.float64)
    others_QM[query_N, flat] = -np.inf
    above_Q = (others_QM > best_Q[:, None]).sum(axis=1)
    equal_Q = (others_QM == best_Q[:, None]).sum(axis=1)
    first_Q = np.where(above_Q == 0, 1 / (equal_Q + 1), 0.0)
    # The mean of 1 / place over the places above + 1 ... above + equal + 1.
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, scores_QM.shape[1] + 1))])
    reciprocal_Q = (harmonic[above_Q + equal_Q + 1] - harmonic[above_Q]) / (equal_Q + 1)
    return Found(first_Q, np.where(equal_Q == 0, 1 / (above_Q + 1), reciprocal_Q))
