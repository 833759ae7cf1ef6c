"""enrobe-native's kernels for training, where they are installed: float32 on a CPU."""

from functools import cache
from types import ModuleType

import torch
from torch import Tensor


@cache
def _kernels() -> ModuleType | None:
    try:
        import enrobe_native
    except ModuleNotFoundError:
        return None
    # Plain C++ is slower than torch.
    return None if enrobe_native.kernels()[0] == "plain" else enrobe_native


def kernels_for(x: Tensor) -> ModuleType | None:
    """enrobe_native, if it is of use for what this tensor goes through."""
    return _kernels() if is_plain_float32(x) else None


def is_plain_float32(x: Tensor) -> bool:
    """Whether what this tensor goes through is done in float32, on a CPU, as it is written."""
    fits = x.is_cpu and x.dtype == torch.float32 and not torch.compiler.is_compiling()
    return fits and not torch.is_autocast_enabled("cpu")
