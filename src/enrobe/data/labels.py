"""What a label column may hold, and what it is read as.

    classify     a word or a number; true, false          str
    multilabel   a list; words between separators; a      tuple of str, sorted
                 0/1 column for each label
    regress      a number                                 float
    tag          a tag a word, as a list or between       tuple of str, one a word
                 spaces; or spans of the text:            tuple of CharSpan, by their start
                 {start, end, label} or [start, end, label]
    answer       {text, answer_start}, a list of them,    tuple of GoldAnswer; () where the
                 a table of two lists, or a text          context has no answer

A cell of a csv or tsv file may hold a list or a table as JSON. Nothing, an empty cell and NaN are
no label: the row carries none, which is no mistake. For multilabel, though, an empty cell says that
none holds; and an answer with an empty text is no label, as published test sets have it.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from enrobe.errors import TextError, show

Kind = Literal["classify", "multilabel", "regress", "tag", "answer"]
_TRUE = {"1", "true"}
_FALSE = {"0", "false"}


class CharSpan(NamedTuple):
    """A labelled part of a text, in characters; `end` is the first one after it."""

    start: int
    end: int
    label: str


class GoldAnswer(NamedTuple):
    """An answer in its context: `context[start : start + len(text)] == text`, never empty."""

    start: int
    text: str


Label = str | float | tuple[str, ...] | tuple[CharSpan, ...] | tuple[GoldAnswer, ...]


def one_label(value: object) -> str | None:
    """A class as text: 1, 1.0 and "1" are the same one.

    Raises:
        TextError: a list or a table.
    """
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= sign <= "\udfff" for sign in value):
            raise TextError(f"label {show(value)} holds half of a surrogate pair")
        return value.strip() or None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int | float):
        raise TextError(f"label {show(value)}; allowed: a word or a number")
    return str(value)


def number(value: object) -> float | None:
    """A label to be predicted as a number.

    Raises:
        TextError: no finite number.
    """
    text = one_label(value)
    if text is None:
        return None
    found = finite(text)
    if found is None and text.lower() != "nan":
        raise TextError(f"label {show(value)}; allowed: a number")
    return found


def several(value: object, separator: str) -> tuple[str, ...] | None:
    """All labels of a row, sorted; () where none of them holds.

    Raises:
        TextError: neither a list of labels nor a text.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        parsed = _json(value)
        value = parsed if isinstance(parsed, list) else value.split(separator)
    elif isinstance(value, int | float):
        value = [value]
    if not isinstance(value, list | tuple):
        raise TextError(
            f"label {show(value)}; allowed: a list, or words with {separator!r} between"
        )
    return tuple(sorted({label for label in map(one_label, value) if label is not None}))


def marked(values: Mapping[str, object]) -> tuple[str, ...] | None:
    """The columns that hold 1 or true, sorted; None where all are empty.

    Raises:
        TextError: something else than 0, 1, true and false in one of them.
    """
    found = {name: one_label(value) for name, value in values.items()}
    if not any(found.values()):
        return None
    for name, text in found.items():
        if text is None or text.lower() not in _TRUE | _FALSE:
            raise TextError(f"column {name!r} is {show(values[name])}; allowed: 0 or 1")
    return tuple(sorted(name for name, text in found.items() if str(text).lower() in _TRUE))


def tags(
    value: object, text: str, words: tuple[str, ...] | None
) -> tuple[tuple[str, ...] | tuple[CharSpan, ...] | None, tuple[str, ...] | None]:
    """Tags and the words that they belong to; or spans of the text, and None.

    Raises:
        TextError: not as many tags as words; a span outside the text, or two that overlap.
    """
    if isinstance(value, str):
        parsed = _json(value)
        value = parsed if isinstance(parsed, list) else value.split() or None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None, words
    if not isinstance(value, list | tuple):
        raise TextError(f"label {show(value)}; allowed: a list of tags or of spans")
    if words is None and all(isinstance(item, Mapping | list | tuple) for item in value):
        return _spans(value, text), None
    if words is None:
        words = tuple(text.split())
    found = tuple(map(one_label, value))
    if len(found) != len(words):
        raise TextError(f"{len(words)} words and {len(found)} tags")
    if None in found:
        raise TextError(f"word {found.index(None)} has an empty tag")
    return tuple(tag for tag in found if tag is not None), words


def _spans(value: Sequence[Any], text: str) -> tuple[CharSpan, ...]:
    spans = sorted(_span(item, text) for item in value)
    for a, b in pairwise(spans):
        if b.start < a.end:
            raise TextError(f"the spans {show(tuple(a))} and {show(tuple(b))} overlap")
    return tuple(spans)


def _span(item: Any, text: str) -> CharSpan:
    if isinstance(item, Mapping):
        item = [item.get("start"), item.get("end"), item.get("label"), *_text_of(item)]
    if len(item) not in (3, 4):
        raise TextError(f"a span is {show(item)}; allowed: [start, end, label]")
    start, end, label = item[0], item[1], one_label(item[2])
    whole = type(start) is int and type(end) is int
    if not whole or label is None or not 0 <= start < end <= len(text):
        allowed = f"start, end, label with 0 <= start < end <= {len(text)}"
        raise TextError(f"a span is {show(item)}; allowed: {allowed}")
    if len(item) == 4 and item[3] != text[start:end]:
        raise TextError(f"a span says {show(item[3])}, and the text has {show(text[start:end])}")
    return CharSpan(start, end, label)


def _text_of(item: Mapping[str, Any]) -> list[Any]:
    return [item["text"]] if isinstance(item.get("text"), str) else []


def answers(
    value: object, start: object, context: str, *, impossible: bool = False
) -> tuple[tuple[GoldAnswer, ...] | None, bool]:
    """The answers that a context has, and whether a wrong place was put right.

    Args:
        value: what the column holds.
        start: where the answer begins, for a column that holds a text alone.
        context: each answer is looked up there; one with a wrong place may stand there once.
        impossible: the row says that there is none.

    Raises:
        TextError: an answer that is not in the context; one with a wrong place that stands there
            several times.
    """
    if impossible:
        return (), False
    if isinstance(value, str):
        parsed = _json(value)
        value = parsed if isinstance(parsed, list | dict) else {"text": value, "start": start}
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None, False
    given = [pair for pair in _answer_pairs(value) if pair[0]]
    if not given:
        return ((), False) if value == [] or _no_texts(value) else (None, False)
    repaired = False
    found: dict[GoldAnswer, None] = {}
    for text, place in given:
        if not (type(place) is int and place >= 0 and context.startswith(text, place)):
            at = context.find(text)
            if at < 0:
                raise TextError(f"the answer {show(text)} is not in its context")
            if context.find(text, at + 1) >= 0:
                wrong = f"does not stand at {show(place)}, and stands there several times"
                raise TextError(f"the answer {show(text)} {wrong}")
            repaired = repaired or place is not None
            place = at
        found[GoldAnswer(place, text)] = None
    return tuple(found), repaired


def _no_texts(value: object) -> bool:
    return isinstance(value, Mapping) and value.get("text") == []


def _answer_pairs(value: object) -> Iterable[tuple[str, object]]:
    if isinstance(value, Mapping):
        text = value.get("text")
        place = value.get("answer_start", value.get("start"))
        if isinstance(text, list):
            places = place if isinstance(place, list) else [None] * len(text)
            if len(places) != len(text):
                raise TextError(f"{len(text)} answers and {len(places)} places")
            for one, at in zip(text, places, strict=True):
                if not isinstance(one, str):
                    raise TextError(f"the text of an answer is {show(one)}; allowed: a string")
                yield from _answer_pairs({"text": one, "start": at})
            return
        if isinstance(place, str) and place.strip().isdecimal():
            place = int(place)
        if not isinstance(text, str):
            raise TextError(f"an answer is {show(value)}; allowed: text and answer_start")
        yield text, None if place == "" else place
    elif isinstance(value, str):
        yield value, None
    elif isinstance(value, list | tuple):
        for item in value:
            if not isinstance(item, Mapping | str):
                raise TextError(f"an answer is {show(item)}; allowed: text and answer_start")
            yield from _answer_pairs(item)
    else:
        raise TextError(f"answers is {show(value)}; allowed: a list of text and answer_start")


def _json(text: str) -> object:
    """A cell that holds JSON, or None."""
    if text[:1] not in ("[", "{"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def as_words(text: str) -> tuple[str, ...] | None:
    """A cell that holds a list of words as JSON."""
    parsed = _json(text)
    if isinstance(parsed, list) and parsed and all(isinstance(word, str) for word in parsed):
        return tuple(parsed)
    return None


def finite(label: str) -> float | None:
    """The number that a text is, or None."""
    try:
        value = float(label)
    except ValueError:
        return None
    # float() reads "1_000" and "nan", which are no numbers to anyone else.
    return value if math.isfinite(value) and "_" not in label else None
