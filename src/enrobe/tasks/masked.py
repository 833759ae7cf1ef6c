"""Rows with masks through an engine: the part that fill, distribution and score share.

Legend: V vocabulary, M masks of one row.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from enrobe.engines.base import Engine, Ranks, Request
from enrobe.errors import ModelError
from enrobe.text.ragged import Ids, Ragged, plan, row_offsets
from enrobe.text.tokenizer import Tokenizer
from enrobe.text.windows import Window, around

Array = npt.NDArray[np.float32]
Result = TypeVar("Result")

_LARGEST_OUTPUT = 2**24
"""Logits a batch (64 MB): what bounds memory with a large vocabulary."""

# Beyond it, sorting whole rows is quicker than keeping the best in order.
_MOST_RANKED = 256


class MaskedRow(NamedTuple):
    """A row of ids, special tokens included, and the places in it that are asked for."""

    ids: Ids
    at: Ids


def mask_head(engine: Engine) -> str:
    """The name of the masked-LM head, or ModelError."""
    for name, head in engine.heads.items():
        if head.kind == "mlm":
            return name
    has = ", ".join(head.kind for head in engine.heads.values()) or "none"
    raise ModelError(f"the model has no masked-LM head; its heads: {has}")


def run_masked(
    engine: Engine, rows: Sequence[MaskedRow], reduce: Callable[[int, Array], Result]
) -> list[Result]:
    """Compute log-probabilities (M, V) at each row's places; keep what `reduce(row, them)` makes.

    Rows are batched by length whatever their order; results come in the order of the rows.
    """
    request = Request(heads=(mask_head(engine),))
    most = max(1, _LARGEST_OUTPUT // engine.config.vocab_size)
    out: dict[int, Result] = {}
    for batch, at, mine in _batches(engine, rows, most):
        # One row may ask for more places than one output may hold.
        logits = [
            engine.run(batch, request, at[start : start + most]).heads[request.heads[0]]
            for start in range(0, len(at), most)
        ]
        values = log_softmax(logits[0] if len(logits) == 1 else np.concatenate(logits))
        for index, places in mine.items():
            out[index] = reduce(index, values[places])
    return [out[i] for i in range(len(rows))]


def run_best(
    engine: Engine, rows: Sequence[MaskedRow], count: int
) -> list[list[tuple[Ids, Array]]]:
    """The likeliest ids at each row's places, and their log-probabilities (count,), best first."""
    if count > _MOST_RANKED or not isinstance(engine, Ranks):

        def best(_: int, values_MV: Array) -> list[tuple[Ids, Array]]:
            found = [(top(values_V, count), values_V) for values_V in values_MV]
            return [(ids, values_V[ids]) for ids, values_V in found]

        return run_masked(engine, rows, best)
    out: dict[int, list[tuple[Ids, Array]]] = {}
    for batch, at, mine in _batches(engine, rows, _LARGEST_OUTPUT // count):
        ids, logs = engine.best(batch, mask_head(engine), at, count)
        for index, places in mine.items():
            out[index] = list(zip(ids[places], logs[places], strict=True))
    return [out[i] for i in range(len(rows))]


def _batches(
    engine: Engine, rows: Sequence[MaskedRow], most: int
) -> Iterator[tuple[Ragged, Ids, dict[int, slice]]]:
    """Rows batched by length, `most` places together, the places, and which of them are a row's."""
    for group in plan([len(row.ids) for row in rows], budget=engine.budget):
        for part in _parts(group, rows, most):
            batch = Ragged.from_rows([rows[i].ids for i in part])
            starts = batch.offsets[:-1]
            at = np.concatenate([rows[i].at + starts[n] for n, i in enumerate(part)])
            ends = row_offsets([len(rows[i].at) for i in part])
            yield batch, at, {i: slice(ends[n], ends[n + 1]) for n, i in enumerate(part)}


def _parts(
    group: npt.NDArray[np.intp], rows: Sequence[MaskedRow], most: int
) -> Iterator[list[int]]:
    """Split a batch so that its places stay within `most`."""
    part: list[int] = []
    count = 0
    for i in group:
        asked = len(rows[i].at)
        if part and count + asked > most:
            yield part
            part, count = [], 0
        part.append(int(i))
        count += asked
    yield part


def log_softmax(logits_MV: Array) -> Array:
    """Natural log of the softmax over each row; changes its argument."""
    logits_MV -= logits_MV.max(axis=1, keepdims=True)
    logits_MV -= np.log(np.exp(logits_MV).sum(axis=1, keepdims=True))
    return logits_MV


def top(values_V: Array, count: int) -> Ids:
    """The ids of the largest values, best first; of equal values, the lower id first."""
    size = len(values_V)
    if count >= size:
        return np.argsort(-values_V, kind="stable").astype(np.int64)
    # Ties at the edge: all that reach the smallest of the best, then the lowest ids of them.
    edge = np.partition(values_V, size - count)[size - count]
    reach = np.flatnonzero(values_V >= edge)
    return reach[np.argsort(-values_V[reach], kind="stable")][:count].astype(np.int64)


def windowed(
    tokenizer: Tokenizer, ids: Ids, spans: Sequence[Window], longest: int
) -> list[MaskedRow]:
    """Rows of at most `longest` tokens that hold every span of a text whole.

    ids: the text's, without special tokens. A text that fits the model is one row; of a longer
    one, each span stands in one window, as near the middle as the text allows. The places asked
    for are all those of the spans, in the order of the text.
    """
    rows = []
    for (start, stop), group in around(spans, len(ids), longest - tokenizer.frame_size):
        places = [np.arange(*spans[n], dtype=np.int64) for n in group]
        at = np.concatenate(places) - start + tokenizer.frame_before
        rows.append(MaskedRow(tokenizer.frame_ids(ids[start:stop]), at))
    return rows
