"""Heads that answer once a word: tags, and the spans that they say.

A word is tagged by the output at its first piece, in the window that has that piece nearest the
middle; tags become spans as `text.tags` reads them.

Legend: W words, K places of a row, C tags.
"""

from collections.abc import Sequence

import numpy as np

from enrobe.config import HeadConfig
from enrobe.engines.base import Array, Engine
from enrobe.errors import TextError
from enrobe.tasks.heads import longest_row, run_heads, softmax
from enrobe.tasks.results import Span
from enrobe.text.rows import Text, Words, encode_to_tag
from enrobe.text.tags import OUTSIDE, spans_of_tags
from enrobe.text.tokenizer import Tokenizer


def tag(
    engine: Engine,
    tokenizer: Tokenizer,
    texts: Sequence[Text],
    name: str,
    *,
    special: bool = True,
) -> list[list[Span] | TextError]:
    """The spans of each text, in their order."""
    head = engine.heads[name]
    return [
        found if isinstance(found, TextError) else spans_of(text, found[0], head, found[1])
        for text, found in zip(texts, _run(engine, tokenizer, texts, name, special), strict=True)
    ]


def word_tags(
    engine: Engine,
    tokenizer: Tokenizer,
    texts: Sequence[Text],
    name: str,
    *,
    special: bool = True,
) -> list[tuple[Words, list[str]] | TextError]:
    """The words of each text and the tag of each; "O" for a word that has no piece."""
    labels = engine.heads[name].labels
    return [
        found if isinstance(found, TextError) else (found[0], tags_of(*found, labels))
        for found in _run(engine, tokenizer, texts, name, special)
    ]


def _run(
    engine: Engine, tokenizer: Tokenizer, texts: Sequence[Text], name: str, special: bool
) -> list[tuple[Words, Array] | TextError]:
    limit = longest_row(engine, engine.heads[name])
    encoded = encode_to_tag(tokenizer, texts, limit=limit, special=special)
    # A row without words needs no run.
    rows = [r for e in encoded if isinstance(e, Words) for r in e.rows if len(r.places)]
    logits = iter(run_heads(engine, rows, [name]))
    width = engine.heads[name].width
    none = np.empty((0, width), np.float32)
    return [
        e
        if isinstance(e, TextError)
        else (e, merged(e, [next(logits)[name] if len(r.places) else none for r in e.rows]))
        for e in encoded
    ]


def merged(words: Words, logits: Sequence[Array]) -> Array:
    """A text's logits by word, from those of its rows (K, C); NaN for a word that is in no row.

    Shapes: (W, C).
    """
    whole = np.full((len(words.spans), logits[0].shape[1]), np.nan, np.float32)
    for row, logits_KC in zip(words.rows, logits, strict=True):
        whole[row.units] = logits_KC
    return whole


def spans_of(text: Text, words: Words, head: HeadConfig, logits_WC: Array) -> list[Span]:
    """The spans that a tag head's outputs say."""
    probabilities_WC = softmax(logits_WC, head.temperature)
    spans = []
    tags = tags_of(words, logits_WC, head.labels)
    for first, stop, label in spans_of_tags(tags, join=OUTSIDE in head.labels):
        start, end = int(words.spans[first, 0]), int(words.spans[stop - 1, 1])
        inside = text[start:end] if isinstance(text, str) else " ".join(text[start:end])
        probability = float(probabilities_WC[first:stop].max(axis=1).mean())
        spans.append(Span(start, end, label, inside, probability))
    return spans


def tags_of(words: Words, logits_WC: Array, labels: Sequence[str]) -> list[str]:
    """The tag of each word; "O" for one that is in no row."""
    tags = [OUTSIDE] * len(words.spans)
    for row in words.rows:
        for word, best in zip(row.units, logits_WC[row.units].argmax(axis=1), strict=True):
            tags[word] = labels[best]
    return tags
