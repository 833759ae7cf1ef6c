"""Dropout whose masks cost little on a CPU.

torch draws each element of a mask by itself there, 9 ns of one core: a fifth of a training step of
a small model, and most of one on long rows. Here one draw of 64 bits decides on four elements.

Legend: S any shape.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 2**16


def keep_mask(like: Tensor, share: float, shape: tuple[int, ...] | None = None) -> Tensor:
    """A mask of 0 and 1 / (1 - share), for a tensor on a CPU.

    The share that is dropped is rounded to one in 65,536, and what is kept is scaled by that. The
    seed is drawn from torch's generator, so `torch.manual_seed` decides, whatever the threads.

    Args:
        like: has the mask's dtype and, without `shape`, its shape.
        share: of the elements that is dropped, from 0 up to 1.
        shape: of the mask.

    Shapes: -> S.
    """
    shape = tuple(like.shape) if shape is None else shape
    mask = torch.empty(shape, dtype=like.dtype)
    dropped = round(share * _LEVELS)
    if dropped >= _LEVELS:
        return mask.zero_()
    seed = int(torch.empty((), dtype=torch.int64).random_())
    draws = np.random.SFC64(seed).random_raw(-(-mask.numel() // 4))
    # Four whole numbers from -32,768 to 32,767 each.
    bits: Any = np.asarray(draws).view(np.int16)[: mask.numel()]
    torch.ge(torch.from_numpy(bits), dropped - _LEVELS // 2, out=mask.view(-1))
    return mask.mul_(_LEVELS / (_LEVELS - dropped))


def has_own_masks(x: Tensor) -> bool:
    """Whether this is a place for `keep_mask`: on a CPU, and not inside torch.compile."""
    return x.is_cpu and not torch.compiler.is_compiling()


class Dropout(nn.Module):
    """nn.Dropout, with its own masks on a CPU."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: S -> S."""
        if not self.training or self.share == 0:
            return x
        if has_own_masks(x):
            return x * keep_mask(x, self.share)
        return F.dropout(x, self.share)


def draw_seed(share: float) -> int:
    """For the masks of one of enrobe-native's functions, from torch's generator; 0 for none."""
    return int(torch.empty((), dtype=torch.int64).random_()) if share else 0
