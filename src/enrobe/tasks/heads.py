"""Rows through the encoder and its heads: the part that predict, tag and answer share.

Legend: C outputs of a head, K places of a row that a token head answers for.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from enrobe.config import SEQUENCE_KINDS, HeadConfig, HeadKind
from enrobe.engines.base import Array, Engine, Request
from enrobe.errors import CallError, ModelError, nearest, show
from enrobe.text.ragged import Ragged, plan
from enrobe.text.rows import Row

Floats = npt.NDArray[np.float64]

_METHODS = {"mlm": "fill", "tag": "tag", "answer": "answer"}


def choose(engine: Engine, name: str | None, kinds: Sequence[HeadKind]) -> str:
    """The head that a call means; None: the only one of these kinds.

    Raises:
        CallError: no head of that name, one of another kind, or several to choose from.
        ModelError: the model has none of these kinds.
    """
    heads = engine.heads
    if name is not None:
        if name not in heads:
            has = ", ".join(heads) or "none"
            raise CallError(f"head is {show(name)}; the model's: {has}{nearest(str(name), heads)}")
        kind = heads[name].kind
        if kind not in kinds:
            raise CallError(
                f"head {show(name)} is of kind {kind}; allowed: {', '.join(kinds)}; "
                f"fix: Model.{_METHODS.get(kind, 'predict')}"
            )
        return name
    fitting = [name for name, head in heads.items() if head.kind in kinds]
    if not fitting:
        has = ", ".join(f"{name} ({head.kind})" for name, head in heads.items()) or "none"
        raise ModelError(f"the model has no head of kind {' or '.join(kinds)}; its heads: {has}")
    if len(fitting) > 1:
        raise CallError(
            f"the model has several heads; name one: {', '.join(map(show, fitting))}; "
            f"fix: head={fitting[0]!r}"
        )
    return fitting[0]


def longest_row(engine: Engine, head: HeadConfig) -> int:
    """The longest row in tokens that a head reads."""
    most = engine.config.max_tokens
    return most if head.limit is None else min(head.limit, most)


def run_heads(
    engine: Engine, rows: Sequence[Row], heads: Sequence[str]
) -> list[Mapping[str, Array]]:
    """The logits of every head for every row, in the order of the rows; one pass of the encoder.

    Shapes: (C,) of a sequence head; (K, C) of a tag head, at `Row.places`; (K + 1, C) of an answer
    head, whose first one is at the row's first token.
    """
    request = Request(heads=tuple(heads))
    found: list[Mapping[str, Array]] = [{}] * len(rows)
    for group in plan([len(row.ids) for row in rows], budget=engine.budget):
        batch = Ragged.from_rows([rows[i].ids for i in group], [rows[i].types for i in group])
        values = engine.run(batch, request).heads
        for n, i in enumerate(group):
            start = batch.offsets[n]
            logits = {}
            for name in heads:
                kind = engine.heads[name].kind
                if kind in SEQUENCE_KINDS:
                    logits[name] = values[name][n].copy()
                else:
                    places = np.append(0, rows[i].places) if kind == "answer" else rows[i].places
                    logits[name] = values[name][start + places]
            found[i] = logits
    return found


def softmax(logits: Array, temperature: float) -> Floats:
    """Probabilities over the last axis, in double precision."""
    values = logits.astype(np.float64) / temperature
    values = np.exp(values - values.max(axis=-1, keepdims=True))
    result: Floats = values / values.sum(axis=-1, keepdims=True)
    return result


def sigmoid(logits: Array, temperature: float) -> Floats:
    """Each output's own probability, in double precision."""
    # 1 / (1 + exp(-x)) without an overflow at either end.
    result: Floats = np.exp(-np.logaddexp(0.0, -logits.astype(np.float64) / temperature))
    return result
