"""Many vectors into one: pooling, and what may follow it.

    mean_sqrt_len   the sum over the square root of the count

Legend: N results, P poolings, T tokens, H hidden, K = P * H, D numbers of a finished vector.
"""

from collections.abc import Sequence
from typing import assert_never

import numpy as np

from enrobe.engines.base import Array
from enrobe.errors import CallError
from enrobe.sentence_folder import Dense, PoolName, SentenceSettings, SimilarityName

_LEAST = 1e-12
"""The smallest length that a vector is divided by, so that a zero vector stays one."""


SUMMED: frozenset[PoolName] = frozenset({"mean", "mean_sqrt_len"})
"""The poolings that only want the sum of the vectors and their number."""


class Pooling:
    """N pooled vectors in the making; the tokens of each may come in several parts."""

    def __init__(self, count: int, width: int, pools: Sequence[PoolName]) -> None:
        self._pools = tuple(pools)
        self._values_NPH = np.zeros((count, len(pools), width), np.float32)
        for index, pool in enumerate(self._pools):
            if pool == "max":
                self._values_NPH[:, index] = -np.inf
        self._counts_N = np.zeros(count, np.float32)

    def add(self, index: int, vectors_TH: Array, first_H: Array, share: float = 1.0) -> None:
        """Add tokens to one result; `first_H` counts for cls, by its share."""
        # Slices beat np.add.reduceat four times over: it goes through a block by columns.
        for pool, value_H in zip(self._pools, self._values_NPH[index], strict=True):
            if pool == "cls":
                value_H += first_H * np.float32(share)
            elif pool == "max":
                np.maximum(value_H, vectors_TH.max(axis=0), out=value_H)
            elif pool == "mean" or pool == "mean_sqrt_len":
                value_H += vectors_TH.sum(axis=0)
            else:
                assert_never(pool)
        self._counts_N[index] += len(vectors_TH)

    def add_sum(self, index: int, sum_H: Array, count: int) -> None:
        """Add the sum of so many tokens to one result, where only sums are pooled."""
        assert SUMMED.issuperset(self._pools)
        self._values_NPH[index] += sum_H
        self._counts_N[index] += count

    def finish(self) -> Array:
        """The pooled vectors (N, K); a result that got no token has no meaning."""
        counts_N1 = np.maximum(self._counts_N, 1)[:, None]
        for index, pool in enumerate(self._pools):
            if pool == "mean":
                self._values_NPH[:, index] /= counts_N1
            elif pool == "mean_sqrt_len":
                self._values_NPH[:, index] /= np.sqrt(counts_N1)
        count, pools, width = self._values_NPH.shape
        return self._values_NPH.reshape(count, pools * width)


def width_after(width: int, settings: SentenceSettings) -> int:
    """How many numbers a vector has after the folder's layers.

    Raises:
        CallError: a layer takes another number.
    """
    for step in settings.steps:
        if isinstance(step, Dense):
            if step.weight.shape[1] != width:
                raise CallError(
                    f"the folder's Dense layer takes {step.weight.shape[1]} numbers, and its "
                    f"pooling gives {width}; fix: name a pool, which leaves the layer out"
                )
            width = len(step.weight)
    return width


def follow(vectors_NK: Array, settings: SentenceSettings) -> Array:
    """What the folder does with pooled vectors: (N, K) -> (N, D)."""
    for step in settings.steps:
        vectors_NK = _dense(vectors_NK, step) if isinstance(step, Dense) else normalize(vectors_NK)
    return vectors_NK


def _dense(vectors_NK: Array, step: Dense) -> Array:
    out_ND: Array = vectors_NK @ step.weight.T
    if step.bias is not None:
        out_ND += step.bias
    if step.activation == "Tanh":
        np.tanh(out_ND, out=out_ND)
    elif step.activation == "ReLU":
        np.maximum(out_ND, 0, out=out_ND)
    elif step.activation == "Sigmoid":
        # By tanh, which does not overflow.
        out_ND = 0.5 + 0.5 * np.tanh(0.5 * out_ND)
    return out_ND


def normalize(vectors_ND: Array) -> Array:
    """Every row to length 1; a row of zeros stays."""
    lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    result: Array = vectors_ND / np.maximum(lengths_N1, np.float32(_LEAST))
    return result


def similarity(a_ND: Array, b_MD: Array, name: SimilarityName) -> Array:
    """How alike every row of a is to every row of b (N, M); a distance counts as its negative."""
    if name == "cosine":
        a_ND, b_MD = normalize(a_ND), normalize(b_MD)
    if name == "cosine" or name == "dot":
        scores_NM: Array = a_ND @ b_MD.T
        return scores_NM
    # Row by row: the differences of all pairs at once would be (N, M, D).
    out_NM = np.empty((len(a_ND), len(b_MD)), np.float32)
    for row_D, out_M in zip(a_ND, out_NM, strict=True):
        order = 2 if name == "euclidean" else 1
        out_M[:] = -np.linalg.norm(b_MD - row_D, ord=order, axis=1)
    return out_NM
