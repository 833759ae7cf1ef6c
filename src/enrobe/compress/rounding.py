"""Rounding a matrix to int8 so that its product, and not each number, is as near as it can be.

Frantar et al. 2022, arXiv:2210.17323 (GPTQ): columns are rounded one after another, and what one's
rounding did to the product is made good by those that are still to come. Nagel et al. 2019,
arXiv:1906.04721: what is left of the mean error goes into the bias.

Legend: T tokens, N outputs and K inputs of a matrix.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from enrobe.engines.base import Array
from enrobe.weights import Int8Rows

_DAMPING = 0.01
# Of the mean square of an input, added to each: few rows do not say all that inputs may be.
_BLOCK = 128
# Columns that are made good at once; the rest waits for the end of the block.

Floats = npt.NDArray[np.float64]


def feedback(inputs_TK: Array) -> Array | None:
    """How the rounding of a column is best made good by those after it, from what is multiplied.

    Shapes: (K, K), upper triangular; None where inputs say nothing: all are zero.
    """
    squares_KK = (inputs_TK.T @ inputs_TK).astype(np.float64) / len(inputs_TK)
    mean = float(np.diag(squares_KK).mean())
    if not mean > 0:
        return None
    squares_KK[np.diag_indices_from(squares_KK)] += _DAMPING * mean
    upper: Array = np.linalg.cholesky(np.linalg.inv(squares_KK)).T.astype(np.float32)
    return upper


def rounded(matrix: Array, start: Int8Rows, upper_KK: Array | None) -> Int8Rows:
    """The same scales and factors, with numbers rounded for the product.

    start: the matrix rounded to the nearest.
    """
    if upper_KK is None:
        return start
    left = np.array(matrix if start.smooth is None else matrix / start.smooth, order="F")
    scale, values = start.scale, np.empty(start.shape, np.int8)
    count = left.shape[1]
    for first in range(0, count, _BLOCK):
        stop = min(count, first + _BLOCK)
        errors = np.empty((len(left), stop - first), np.float32)
        for k in range(first, stop):
            column = np.clip(np.rint(left[:, k] / scale), -127, 127)
            values[:, k] = column
            error = (left[:, k] - column * scale) / upper_KK[k, k]
            left[:, k + 1 : stop] -= error[:, None] * upper_KK[k, k + 1 : stop]
            errors[:, k - first] = error
        left[:, stop:] -= errors @ upper_KK[first:stop, stop:]
    return replace(start, values=values)


def mean_error(rows: Int8Rows, int8_inputs_TK: Array, exact_TN: Array) -> Array:
    """What the bias has to give back. Shapes: (N,)."""
    plain = Int8Rows(rows.values, rows.scale).restore()
    errors: Array = (int8_inputs_TK @ plain.T - exact_TN).mean(axis=0)
    return errors
