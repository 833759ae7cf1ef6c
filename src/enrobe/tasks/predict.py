"""Heads that answer once a text: one label, several labels, a number; and all heads in one pass.

Legend: C outputs of a head.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np

from enrobe.config import SEQUENCE_KINDS, HeadConfig
from enrobe.engines.base import Array, Engine
from enrobe.errors import CallError, ModelError, TextError, show
from enrobe.tasks.heads import longest_row, run_heads, sigmoid, softmax
from enrobe.tasks.results import Prediction, Span
from enrobe.tasks.tag import merged, spans_of
from enrobe.text.rows import Row, Text, Words, encode_texts, encode_to_tag
from enrobe.text.tokenizer import Tokenizer

Everything = dict[str, Prediction | list[Span]]

_THRESHOLD = 0.5


def predict(
    engine: Engine,
    tokenizer: Tokenizer,
    texts: Sequence[Text],
    seconds: Sequence[Text] | None,
    name: str,
    *,
    special: bool = True,
) -> list[Prediction | TextError]:
    """What one sequence head says of each text, or of each pair."""
    head = engine.heads[name]
    check_columns(name, head, pairs=seconds is not None)
    limit = longest_row(engine, head)
    rows = encode_texts(tokenizer, texts, seconds, limit=limit, special=special)
    logits = iter(run_heads(engine, [row for row in rows if isinstance(row, Row)], [name]))
    return [
        row if isinstance(row, TextError) else prediction(name, head, next(logits)[name], row.cut)
        for row in rows
    ]


def check_columns(name: str, head: HeadConfig, *, pairs: bool) -> None:
    """Raise CallError where a head that was trained on pairs gets single texts, or the opposite."""
    if head.text and (len(head.text) == 2) != pairs:
        if pairs:
            raise CallError(f"head {show(name)} was trained on {show(head.text[0])}, not on pairs")
        a, b = head.text
        raise CallError(
            f"head {show(name)} was trained on pairs ({show(a)}, {show(b)}); "
            "fix: pairs=[(first, second), ...]"
        )


def prediction(name: str, head: HeadConfig, logits_C: Array, cut: int = 0) -> Prediction:
    """What a sequence head's outputs for one row say."""
    if head.kind == "regress":
        numbers = logits_C.astype(np.float64).tolist()
        value = numbers[0] if len(numbers) == 1 else dict(zip(head.labels, numbers, strict=True))
        return Prediction(name, None, None, {}, value, cut)
    if head.kind == "multilabel":
        values = sigmoid(logits_C, head.temperature)
        reached = values >= np.array(head.thresholds or (_THRESHOLD,))
        labels = tuple(label for label, yes in zip(head.labels, reached, strict=True) if yes)
        return Prediction(name, labels, None, _named(head, values.tolist()), None, cut)
    values = softmax(logits_C, head.temperature)
    best = int(values.argmax())
    chances = _named(head, values.tolist())
    return Prediction(name, head.labels[best], float(values[best]), chances, None, cut)


def _named(head: HeadConfig, values: Sequence[float]) -> dict[str, float]:
    return dict(zip(head.labels, values, strict=True))


def heads_for(engine: Engine, *, pairs: bool) -> list[str]:
    """The heads that `predict_all` runs on texts, or on pairs.

    Raises:
        ModelError: there are none.
    """
    kinds = SEQUENCE_KINDS if pairs else (*SEQUENCE_KINDS, "tag")
    names = [
        name
        for name, head in engine.heads.items()
        if head.kind in kinds and (not head.text or (len(head.text) == 2) == pairs)
    ]
    if not names:
        has = ", ".join(f"{name} ({head.kind})" for name, head in engine.heads.items()) or "none"
        what = "pairs" if pairs else "texts"
        raise ModelError(f"the model has no head for {what}; its heads: {has}")
    return names


def predict_all(
    engine: Engine,
    tokenizer: Tokenizer,
    texts: Sequence[Text],
    seconds: Sequence[Text] | None,
    *,
    special: bool = True,
) -> list[Everything | TextError]:
    """What every head says of each text, or of each pair: one pass of the encoder for all.

    Heads that were trained on rows of different lengths take a pass for each length.
    """
    names = heads_for(engine, pairs=seconds is not None)
    limits = {name: longest_row(engine, engine.heads[name]) for name in names}
    out: list[Everything | TextError] = [{} for _ in texts]
    for limit, group in groupby(sorted(names, key=limits.__getitem__), limits.__getitem__):
        parts = _pass(engine, tokenizer, texts, seconds, tuple(group), limit, special)
        for n, part in enumerate(parts):
            whole = out[n]
            if isinstance(part, TextError) or isinstance(whole, TextError):
                out[n] = part
            else:
                whole.update(part)
    # The heads in the model's order, whatever their lengths.
    return [w if isinstance(w, TextError) else {name: w[name] for name in names} for w in out]


def _pass(
    engine: Engine,
    tokenizer: Tokenizer,
    texts: Sequence[Text],
    seconds: Sequence[Text] | None,
    names: Sequence[str],
    limit: int,
    special: bool,
) -> list[Everything | TextError]:
    tags = [name for name in names if engine.heads[name].kind == "tag"]
    encoded: Sequence[Row | Words | TextError]
    if tags:
        encoded = encode_to_tag(tokenizer, texts, limit=limit, special=special)
    else:
        encoded = encode_texts(tokenizer, texts, seconds, limit=limit, special=special)
    # The first window of a text is the row that a sequence head reads.
    rows = [r for e in encoded for r in (e.rows if isinstance(e, Words) else [e])]
    logits = iter(run_heads(engine, [r for r in rows if isinstance(r, Row)], names))
    out: list[Everything | TextError] = []
    for text, entry in zip(texts, encoded, strict=True):
        if isinstance(entry, TextError):
            out.append(entry)
            continue
        own_rows = entry.rows if isinstance(entry, Words) else [entry]
        own = [next(logits) for _ in own_rows]
        found: Everything = {}
        for name in names:
            head = engine.heads[name]
            if isinstance(entry, Words) and name in tags:
                found[name] = spans_of(text, entry, head, merged(entry, [v[name] for v in own]))
            else:
                found[name] = prediction(name, head, own[0][name], own_rows[0].cut)
        out.append(found)
    return out


def failed(names: Sequence[str], heads: Mapping[str, HeadConfig], error: TextError) -> Everything:
    """What `predict_all` gives for a text that cannot be processed."""
    return {
        name: [Span.failed("", error)]
        if heads[name].kind == "tag"
        else Prediction.failed(name, error)
        for name in names
    }
