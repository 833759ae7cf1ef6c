"""The int8 arithmetic in numpy, told plainly: what every int8 engine is compared with.

Legend: T tokens of a row, B rows, H hidden, K inputs and N outputs of a product, M asked positions.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from enrobe.checkpoint import Checkpoint

Array = npt.NDArray[np.float32]
_erf = np.vectorize(math.erf, otypes=[np.float64])


class Int8Reference:
    """One row through a folder's encoder and heads."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.read = checkpoint
        self.config = checkpoint.config

    def product(self, x_TK: Array, weight: str, bias: str) -> Array:
        """x W' + b: in whole numbers where the matrix is stored as int8."""
        bias_N = self.read.tensors[bias]
        if weight not in self.read.int8:
            return x_TK @ self.read.tensors[weight].T + bias_N
        matrix = self.read.int8[weight]
        if matrix.smooth is not None:
            x_TK = x_TK * matrix.smooth
        numbers_TK, scale_T1 = quantized(x_TK, matrix.zero)
        sums_TN = (numbers_TK.astype(np.int64) - matrix.zero) @ matrix.values.T.astype(np.int64)
        return (sums_TN.astype(np.float32) * matrix.scale) * scale_T1 + bias_N

    def linear(self, x_TK: Array, name: str) -> Array:
        return self.product(x_TK, f"{name}.weight", f"{name}.bias")

    def norm(self, x_TH: Array, name: str) -> Array:
        mean, variance = x_TH.mean(-1, keepdims=True), x_TH.var(-1, keepdims=True)
        flat = (x_TH - mean) / np.sqrt(variance + np.float32(self.config.layer_norm_eps))
        return flat * self.read.tensors[f"{name}.weight"] + self.read.tensors[f"{name}.bias"]

    def embeddings(self, ids_T: Any, types_T: Any) -> Array:
        """Layer 0 of one row. Shapes: (T,) -> (T, H)."""
        places = np.arange(len(ids_T)) + self.config.position_offset
        x_TH = self.read.tensors["embeddings.word.weight"][ids_T]
        x_TH = x_TH + self.read.tensors["embeddings.position.weight"][places]
        if self.config.type_vocab_size:
            x_TH = x_TH + self.read.tensors["embeddings.token_type.weight"][types_T]
        return self.norm(x_TH, "embeddings.norm")

    def layer(self, x_TH: Array, index: int) -> Array:
        """One layer of one row. Shapes: (T, H) -> (T, H)."""
        name = f"layers.{index}"
        heads, size = self.config.num_heads, self.config.head_size
        parts = [self.linear(x_TH, f"{name}.{part}") for part in ("query", "key", "value")]
        query, key, value = (x.reshape(-1, heads, size).swapaxes(0, 1) for x in parts)
        weights = query @ key.swapaxes(1, 2) / np.float32(np.sqrt(size))
        weights = np.exp(weights - weights.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ value
        mixed_TH = self.linear(mixed.swapaxes(0, 1).reshape(x_TH.shape), f"{name}.output")
        middle_TH = self.norm(x_TH + mixed_TH, f"{name}.attention_norm")
        wide = gelu(self.linear(middle_TH, f"{name}.up"))
        return self.norm(middle_TH + self.linear(wide, f"{name}.down"), f"{name}.norm")

    def head(self, name: str, x_TH: Array) -> Array:
        """Logits at every token, or of the row (a sequence head)."""
        head, path = self.read.heads[name], f"heads.{name}"
        if head.kind == "mlm":
            x_TH = self.norm(gelu(self.linear(x_TH, f"{path}.dense")), f"{path}.norm")
            tied = "embeddings.word.weight" if head.tied else f"{path}.decoder.weight"
            return self.product(x_TH, tied, f"{path}.bias")
        if head.is_sequence:
            dense = self.linear(x_TH[:1], f"{path}.dense")
            x_TH = np.tanh(dense) if head.activation == "tanh" else np.maximum(dense, 0)
        return self.linear(x_TH, f"{path}.out")


def quantized(x_TK: Array, zero: int) -> tuple[npt.NDArray[np.uint8], Array]:
    """Numbers of 0 to 255 and a scale for each row, halves to the even side."""
    high = x_TK.max(-1, keepdims=True) / np.float32(255 - zero)
    low = x_TK.min(-1, keepdims=True) / np.float32(-zero)
    scale_T1 = np.maximum(np.maximum(high, low), np.finfo(np.float32).tiny)
    return (np.clip(np.rint(x_TK / scale_T1) + zero, 0, 255)).astype(np.uint8), scale_T1


def gelu(x: Array) -> Array:
    values: Array = (x * 0.5 * (1 + _erf(x / math.sqrt(2)))).astype(np.float32)
    return values
