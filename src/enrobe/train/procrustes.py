"""The rotation that brings one space of vectors nearest to another, in closed form.

Legend: N pairs, K and D numbers of the vectors before and after.
"""

from dataclasses import dataclass

import numpy as np

from enrobe.engines.base import Array
from enrobe.errors import CallError
from enrobe.tasks.pooling import normalize


@dataclass(frozen=True, eq=False)
class Rotation:
    """y = weight @ x + bias. Shapes: weight (D, K), bias (D,).

    The weight is orthogonal, so that what is moved keeps its distances. Where K and D differ, the
    smaller side's rows or columns are orthonormal.
    """

    weight: Array
    bias: Array

    def __call__(self, vectors_NK: Array) -> Array:
        """The vectors moved, and of length 1."""
        moved_ND: Array = vectors_NK @ self.weight.T + self.bias
        return normalize(moved_ND)


def procrustes(from_NK: Array, to_ND: Array) -> Rotation:
    """The orthogonal matrix W that makes sum |W x_i - y_i|^2 least (Schönemann 1966).

    Both sides are put to length 1 and centred first (Artetxe et al. 2016): what all sentences of an
    encoder have in common says nothing of their meanings.

    Raises:
        CallError: fewer than two pairs.
    """
    if len(from_NK) < 2 or len(from_NK) != len(to_ND):
        raise CallError(f"{len(from_NK)} and {len(to_ND)} vectors; allowed: pairs, two or more")
    # In double precision: a sum of thousands of products.
    x_NK = normalize(from_NK).astype(np.float64)
    y_ND = normalize(to_ND).astype(np.float64)
    x_K, y_D = x_NK.mean(axis=0), y_ND.mean(axis=0)
    left_DM, _, right_MK = np.linalg.svd((y_ND - y_D).T @ (x_NK - x_K), full_matrices=False)
    weight_DK = left_DM @ right_MK
    bias_D = -(weight_DK @ x_K)
    return Rotation(weight_DK.astype(np.float32), bias_D.astype(np.float32))
