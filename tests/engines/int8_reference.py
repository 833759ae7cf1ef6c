"""The int8 arithmetic in numpy, told plainly: what every int8 engine is compared with.

Legend: T tokens of a row, B rows, H hidden, A heads, d a head's size, K inputs and N outputs of a
product, M asked positions.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from enrobe.checkpoint import Checkpoint

Array = npt.NDArray[np.float32]
_erf = np.vectorize(math.erf, otypes=[np.float64])


class Int8Reference:
    """One row through a folder's encoder and heads.

    int16: attention in whole numbers, as our own engine has it; else in float32.
    """

    def __init__(self, checkpoint: Checkpoint, *, int16: bool = False) -> None:
        self.read = checkpoint
        self.config = checkpoint.config
        self.int16 = int16

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
        split = [x.reshape(-1, heads, size).swapaxes(0, 1) for x in parts]
        whole = self.int16 and f"{name}.output.weight" in self.read.int8
        mixed = (attention_int16 if whole else attention)(*split)
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


def attention(q_ATd: Array, k_ATd: Array, v_ATd: Array) -> Array:
    """One text, head by head. Shapes: (A, T, d) -> (A, T, d)."""
    e_ATT = shares(q_ATd @ k_ATd.swapaxes(1, 2) / np.float32(np.sqrt(q_ATd.shape[-1])))
    return (e_ATT / e_ATT.sum(-1, keepdims=True)) @ v_ATd


def attention_int16(q_ATd: Array, k_ATd: Array, v_ATd: Array) -> Array:
    """The same with both products in whole numbers of 16 bits, summed in 32."""
    tokens, size = q_ATd.shape[1:]
    limit = np.float32(min(32767, math.isqrt((2**31 - 1) // size)))
    keys_ATd, key_scale_A1d = whole_numbers(k_ATd, limit, axis=1)
    values_ATd, value_scale_A1d = whole_numbers(v_ATd, np.float32(8191), axis=1)
    queries_ATd, query_scale_AT1 = whole_numbers(q_ATd * key_scale_A1d, limit, axis=2)
    sums_ATT = queries_ATd @ keys_ATd.swapaxes(1, 2)
    assert np.abs(sums_ATT).max() < 2**31
    e_ATT = shares(sums_ATT.astype(np.float32) * (query_scale_AT1 / np.float32(np.sqrt(size))))
    total_AT1 = e_ATT.sum(-1, keepdims=True)
    factor_AT1 = np.minimum(np.float32(2**18 - tokens) / total_AT1, np.float32(32767))
    sums_ATd = np.rint(e_ATT * factor_AT1).astype(np.int64) @ values_ATd
    assert np.abs(sums_ATd).max() < 2**31
    mixed: Array = sums_ATd.astype(np.float32) / (factor_AT1 * total_AT1) * value_scale_A1d
    return mixed


def shares(scores: Array) -> Array:
    """e^score beside the largest of its row."""
    return np.exp(scores - scores.max(-1, keepdims=True))


def whole_numbers(x: Array, limit: np.float32, axis: int) -> tuple[npt.NDArray[np.int64], Array]:
    """Numbers up to `limit`, and the scale along an axis."""
    size = np.maximum(np.abs(x).max(axis, keepdims=True), np.float32(1e-30))
    return np.rint(x * (limit / size)).astype(np.int64), size / limit


def quantized(x_TK: Array, zero: int) -> tuple[npt.NDArray[np.uint8], Array]:
    """Numbers of 0 to 255 and a scale for each row, halves to the even side."""
    high = x_TK.max(-1, keepdims=True) / np.float32(255 - zero)
    low = x_TK.min(-1, keepdims=True) / np.float32(-zero)
    scale_T1 = np.maximum(np.maximum(high, low), np.finfo(np.float32).tiny)
    return (np.clip(np.rint(x_TK / scale_T1) + zero, 0, 255)).astype(np.uint8), scale_T1


def gelu(x: Array) -> Array:
    values: Array = (x * 0.5 * (1 + _erf(x / math.sqrt(2)))).astype(np.float32)
    return values
