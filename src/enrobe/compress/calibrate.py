"""Which rows a model is measured on, and what becomes of inputs that are int8.

Legend: T tokens, K inputs and N outputs of a matrix.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from enrobe.checkpoint import Checkpoint
from enrobe.config import EncoderConfig, HeadConfig
from enrobe.engines.base import Array, Request
from enrobe.engines.onnx import OnnxEngine
from enrobe.errors import TextError
from enrobe.text.ragged import Ids, Ragged
from enrobe.text.tokenizer import Tokenizer
from enrobe.weights import Int8Rows

_TOKENS = 2048, 8192
# So many show which channels stand out, and how inputs go together; the more, the nearer: fewer
# than a matrix has inputs leave it open how they go together.
_MOST_BYTES = 2**30
# Of what is held of them, which a large model has fewer for.
_LONGEST = 64
_BALANCED, _STEPS, _RATE = 512, 40, 0.2
_LEFT = 0.3
# About what rounding for the product leaves of a matrix's noise.
_ZEROS = (8, 16, 32, 64, 128)
_NARROWER = 60
# Ranges of a static scale that are tried, the last a sixth of the first.
WORTH_IT = 0.8
# What is done to a matrix's inputs is kept where it leaves less than this share of the error.


def rows_of(tokenizer: Tokenizer, texts: Sequence[str], config: EncoderConfig) -> Ragged:
    """Texts as rows, cut to a usual length, up to as many tokens as a model needs."""
    rows: list[Ids] = []
    # What is multiplied in a layer: by queries, output, up and down.
    held = 4 * config.num_layers * (3 * config.hidden_size + config.intermediate_size)
    left = int(np.clip(_MOST_BYTES // held, *_TOKENS))
    for row in tokenizer.encode(texts, limit=_LONGEST):
        if not isinstance(row, TextError) and left >= len(row.ids):
            rows.append(row.ids)
            left -= len(row.ids)
    return Ragged.from_rows(rows)


def random_rows(read: Checkpoint) -> Ragged:
    """Rows of words drawn by chance, where no texts are given: always the same."""
    rng = np.random.default_rng(0)
    length = min(_LONGEST, read.config.max_tokens)
    return Ragged.from_rows(
        [rng.integers(0, read.config.vocab_size, length) for _ in range(_TOKENS[0] // length)]
    )


def every_output(config: EncoderConfig, heads: Mapping[str, HeadConfig]) -> Request:
    """The last layer and all heads."""
    return Request(layers=(config.num_layers,), heads=tuple(heads))


def everywhere(batch: Ragged) -> Ids:
    """All positions of a batch, for a masked-LM head."""
    return np.arange(len(batch.ids), dtype=np.int64)


def inputs_of(read: Checkpoint, batch: Ragged) -> Mapping[str, Array]:
    """What each matrix is multiplied with in float32, by its name. Shapes: (T, K)."""
    request = every_output(read.config, read.heads)
    found = OnnxEngine(read).inputs(batch, request, everywhere(batch))
    for i in range(read.config.num_layers):
        # The same array: the engine gives out one copy.
        for part in ("key", "value"):
            found[f"layers.{i}.{part}.weight"] = found[f"layers.{i}.query.weight"]
    return found


def middle(inputs_TK: Array) -> int:
    """Which of 0 to 255 is best to stand for 0: half of them, unless inputs are one-sided.

    GELU's are never under -0.17 and go far above: with 128 almost half of the numbers are not used.
    """
    squares = {zero: float(np.square(scale_of(inputs_TK, zero)).mean()) for zero in _ZEROS}
    best = min(squares, key=lambda zero: squares[zero])
    return best if squares[best] < WORTH_IT * squares[128] else 128


def scale_of(values_TK: Array, zero: int) -> Array:
    """The scale of each row. Shapes: (T, K) -> (T, 1)."""
    high, low = values_TK.max(-1, keepdims=True), values_TK.min(-1, keepdims=True)
    scale: Array = np.maximum(high / np.float32(255 - zero), low / np.float32(-zero))
    return np.maximum(scale, np.finfo(np.float32).tiny)


def balance(inputs_TK: Array, matrices: Sequence[Array]) -> Array:
    """Factors for the inputs, by which a product loses least when inputs and matrix become int8.

    SmoothQuant (Xiao et al. 2022, arXiv:2211.10438) sets them by a formula; here what they are to
    bring about is made small itself. A number is off by its row's scale, which the row's largest
    number makes: a channel costs as much as it raises scales, and as its numbers are multiplied.
    The largest is the softer one of a power, so that channels give way by degrees.

    Shapes: inputs (T, K), matrices (N, K) -> (K,).
    """
    tiny = np.float32(1e-9)
    inputs_TK = np.abs(inputs_TK[:_BALANCED]) + tiny
    weights_NK = np.abs(np.concatenate(matrices)) + tiny
    input_power_K = np.square(inputs_TK).mean(axis=0)
    weight_power_K = np.square(weights_NK).sum(axis=0)
    factors_K = np.sqrt(weights_NK.max(axis=0) / inputs_TK.max(axis=0))
    factors_K /= np.exp(np.log(factors_K).mean())
    best, least = factors_K, np.inf
    for _ in range(_STEPS):
        # What each channel raises, and what it passes on, of the inputs' rounding and the matrix's.
        raised_K, squares = _raises(inputs_TK * factors_K)
        passed_K = weight_power_K / factors_K**2
        cost = squares * float(passed_K.sum())
        own_raised_K, own_squares = _raises(weights_NK / factors_K)
        own_passed_K = input_power_K * factors_K**2
        own_cost = _LEFT * own_squares * len(weights_NK) * float(own_passed_K.sum())
        if cost + own_cost < least:
            best, least = factors_K, cost + own_cost
        up_K = cost * passed_K / passed_K.sum() + own_cost * own_raised_K
        down_K = cost * raised_K + own_cost * own_passed_K / own_passed_K.sum()
        factors_K = factors_K * np.clip(up_K / down_K, 0.2, 5) ** _RATE
        factors_K /= np.exp(np.log(factors_K).mean())
    factors: Array = np.asarray(best, np.float32)
    return factors


def _raises(values: Array) -> tuple[Array, float]:
    """Each column's share in the squares of the rows' scales, and their mean."""
    largest = values.max(axis=1, keepdims=True)
    share = np.square(values / largest)
    share *= share
    share *= share * share
    share *= np.square(largest) / share.sum(axis=1, keepdims=True)
    total = share.sum(axis=0)
    return total / total.sum(), float(np.square(largest, dtype=np.float64).mean())


def fake_int8(values_TK: Array, zero: int) -> Array:
    """Rows as int8 has them, back as float32."""
    scale = scale_of(values_TK, zero)
    result: Array = np.clip(np.rint(values_TK / scale), -zero, 255 - zero) * scale
    return result


def int8_inputs(inputs_TK: Array, rows: Int8Rows) -> Array:
    """Inputs as they are multiplied: smoothed, and as int8 has them."""
    return fake_int8(inputs_TK if rows.smooth is None else inputs_TK * rows.smooth, rows.zero)


def noise(rows: Sequence[Int8Rows], inputs_TK: Array, exact: Sequence[Array]) -> float:
    """The share of noise in the power of a product in int8; of several, the largest."""
    inputs = int8_inputs(inputs_TK, rows[0])
    made = [inputs @ Int8Rows(r.values, r.scale).restore().T for r in rows]
    return max(share(a - b, b) for a, b in zip(made, exact, strict=True))


def expected_noise(
    rows: Sequence[Int8Rows], matrices: Sequence[Array], inputs_TK: Array, exact: Sequence[Array]
) -> float:
    """`noise`, when the matrices will have been rounded for the product."""
    given = int8_inputs(inputs_TK, rows[0])
    factors = rows[0].smooth
    plain = given if factors is None else np.asarray(given / factors, np.float32)
    return max(
        share(plain @ matrix.T - out, out) + _LEFT * share(inputs_TK @ own.restore().T - out, out)
        for own, matrix, out in zip(rows, matrices, exact, strict=True)
    )


def share(noise: Array, signal: Array) -> float:
    """How much of a signal's power its noise has."""
    power = float(np.square(signal, dtype=np.float64).sum())
    return float(np.square(noise, dtype=np.float64).sum()) / max(power, 1e-300)


def decibels(part: float) -> float:
    """Signal to noise, from the share of noise in the power; 200 where there is none."""
    return float(np.round(-10 * np.log10(max(part, 1e-20)), 2))


def signal_to_noise(
    exact: Sequence[npt.NDArray[np.float32]], found: Sequence[npt.NDArray[np.float32]]
) -> list[float]:
    """In decibels, of each pair of arrays."""
    return [decibels(share(b - a, a)) for a, b in zip(exact, found, strict=True)]


def static_scale(inputs_TK: Array) -> tuple[float, int]:
    """One scale, and which of 0 to 255 stands for 0, for all rows of a matrix's inputs.

    Of ever narrower ranges that which loses least in the mean square: what is beyond it is cut off,
    and all else is finer.
    """
    some = inputs_TK[:: max(1, len(inputs_TK) // _BALANCED)]
    low, high = min(0.0, float(inputs_TK.min())), max(0.0, float(inputs_TK.max()))
    best, least = (1.0, 0), np.inf
    for part in 0.97 ** np.arange(_NARROWER):
        scale = max((high - low) * part / 255, float(np.finfo(np.float32).tiny))
        zero = int(np.clip(np.rint(-low * part / scale), 0, 255))
        kept = np.clip(np.rint(some / np.float32(scale)), -zero, 255 - zero) * np.float32(scale)
        lost = float(np.square(kept - some, dtype=np.float64).sum())
        if lost < least:
            best, least = (scale, zero), lost
    return best
