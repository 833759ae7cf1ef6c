"""Texts, pairs, words and questions to rows of ids that fit the model.

Training and prediction encode through these functions and no others, so that a head meets the
rows that it was trained on. What does not fit is cut and counted, or read in windows; a text that
cannot be read has its TextError in its place.

Legend: T tokens of a row, K places of it that a token head answers for, W words of a text,
N tokens of a context.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from enrobe.errors import CallError, TextError
from enrobe.text.ragged import Ids
from enrobe.text.tokenizer import Tokenizer
from enrobe.text.tokens import Tokens
from enrobe.text.windows import overlapping, strided

Text = str | list[str] | tuple[str, ...]
"""A string is a text; a list or tuple of strings is a text that is split into words already."""

OVERLAP = 128
"""Tokens of a context that two neighbouring windows share (Devlin et al. 2019, for SQuAD)."""

# First and last characters of scripts that put no space between words.
_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # kana
    (0x3400, 0x9FFF),  # ideographs
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # kana of half width
    (0x20000, 0x3FFFF),
)
_FIRSTS = [first for first, _ in _WITHOUT_SPACES]


@dataclass(frozen=True, eq=False, kw_only=True)
class Row:
    """One row of the batch, special tokens included.

    Shapes: ids, types (T,); places, units (K,), both ascending.
    """

    ids: Ids
    types: Ids
    cut: int = 0
    # tokens of the text, or pair, that this row leaves out
    places: Ids
    # where a token head is read: at the first pieces of words, at the tokens of the context
    units: Ids
    # the number of the word, or of the context's token, that stands there


@dataclass(frozen=True, eq=False, kw_only=True)
class Words:
    """A text to tag.

    Every word that has a piece is in exactly one row (the one that has its first piece nearest
    the middle). The first row is what a sequence head reads: it is the row of `encode_texts`.

    Shapes: spans (W, 2).
    """

    rows: list[Row]
    # a long text has several, which overlap; there is at least one
    spans: Ids
    # start and end of each word in characters of the text; of given words: (w, w + 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Question:
    """A question with its context.

    Each token of the context is in one row at least. The places of a row are its context, without
    gaps; place 0, the first special token, stands for "no answer here".

    Shapes: spans (N, 2).
    """

    rows: list[Row]
    spans: Ids
    # start and end of each token in characters of the context, without the spaces around it
    cut: int
    # tokens of the question that were left out: it may take half of a row


# --- one answer a text --------------------------------------------------------------------------


def encode_texts(
    tokenizer: Tokenizer,
    texts: Sequence[Text],
    seconds: Sequence[Text] | None = None,
    *,
    limit: int,
    special: bool = True,
) -> list[Row | TextError]:
    """Texts, or pairs of texts, to one row each, as the family frames them.

    Args:
        tokenizer: the model's.
        texts: the first texts.
        seconds: the second texts of pairs, as many.
        limit: the longest row in tokens. What is longer is cut at its end, in a pair the longer
            text first, and `Row.cut` counts what was left out.
        special: read a literal `<mask>`, `</s>` and so on as special tokens; False: as plain text.
            Given words are plain text always.
    """
    firsts = _contents(tokenizer, texts, special)
    others = None if seconds is None else _contents(tokenizer, seconds, special)
    if others is not None and len(others) != len(firsts):
        raise CallError(f"{len(firsts)} first texts and {len(others)} second texts")
    rows: list[Row | TextError] = []
    for n, first in enumerate(firsts):
        second = None if others is None else others[n]
        if isinstance(first, TextError):
            rows.append(first)
        elif isinstance(second, TextError):
            rows.append(second)
        else:
            framed = tokenizer.frame(first, second, limit=limit)
            rows.append(_row(framed, cut=framed.cut))
    return rows


# --- one answer a word --------------------------------------------------------------------------


def encode_to_tag(
    tokenizer: Tokenizer, texts: Sequence[Text], *, limit: int, special: bool = True
) -> list[Words | TextError]:
    """Texts, or texts given as words, to rows that say where each word's first piece stands.

    A string's words are found by `word_starts`. Given words are taken as they are, each with the
    space before it that the vocabulary was trained with; one that has no piece (an empty string)
    is in no row, and nobody tags it.

    Args:
        tokenizer: the model's.
        texts: strings, or sequences of words, or both in turn.
        limit: the longest row in tokens; a longer text is read in windows that overlap by half.
        special: as in `encode_texts`.
    """
    out: list[Words | TextError] = []
    for text, tokens in zip(texts, _contents(tokenizer, texts, special), strict=True):
        if isinstance(tokens, TextError):
            out.append(tokens)
            continue
        if isinstance(text, str):
            starts, spans = _words_of(tokens, text)
            numbers = np.arange(len(starts))
        else:
            # Where the number of the word changes, its first piece stands.
            starts = np.flatnonzero(np.diff(tokens.words, prepend=-1) != 0)
            numbers = tokens.words[starts]
            # Where Unigram has no piece with a space before it, as of most Chinese words, the space
            # is a piece, which says nothing of the word.
            after = np.append(tokens.words, -1)[starts + 1]
            starts = starts + ((tokens.ids[starts] == tokenizer.space_id) & (after == numbers))
            spans = np.stack([np.arange(len(text)), np.arange(len(text)) + 1], axis=1)
        out.append(
            Words(rows=_tag_rows(tokenizer, tokens, starts, numbers, limit), spans=_pairs(spans))
        )
    return out


def _tag_rows(
    tokenizer: Tokenizer, tokens: Tokens, starts: Ids, numbers: Ids, limit: int
) -> list[Row]:
    """Windows of the tokens; each start belongs to the one that answers for its token."""
    rows = []
    room = max(1, limit - tokenizer.frame_size)
    for (begin, end), (first, stop) in overlapping(len(tokens), room):
        mine = slice(*np.searchsorted(starts, [first, stop]))
        framed = tokenizer.frame(tokens[begin:end])
        places = starts[mine] - begin + tokenizer.frame_before
        left_out = len(tokens) - (end - begin)
        rows.append(_row(framed, cut=left_out, places=places, units=numbers[mine]))
    return rows


def word_starts(tokens: Tokens, text: str) -> Ids:
    """Which tokens of a text begin a word (W,).

    A word begins after a space, where letters (with digits and marks) and signs meet, and where
    the vocabulary begins one; but never at a mark on a letter. In scripts without spaces between
    words, every piece that begins with a letter is one. Tokens of nothing but space are in none.
    """
    return _words_of(tokens, text)[0]


def _words_of(tokens: Tokens, text: str) -> tuple[Ids, Ids]:
    """First tokens of words (W,) and their spans in characters (W, 2)."""
    starts: list[int] = []
    spans: list[list[int]] = []
    reached = 0
    # the end of the last token that was not space
    last = -1
    for n, ((start, end), word) in enumerate(
        zip(trimmed(tokens.spans, text).tolist(), tokens.words.tolist(), strict=True)
    ):
        if not text[start:end].strip():
            continue
        # Several tokens may be the bytes of one character.
        new = not starts or (start >= reached and _begins(text, start, word < 0 or word != last))
        if new:
            starts.append(n)
            spans.append([start, end])
        spans[-1][1] = max(spans[-1][1], end)
        reached = max(reached, end)
        last = word
    return np.array(starts, np.int64), _pairs(spans)


def _begins(text: str, place: int, changed: bool) -> bool:
    """Whether a word begins at a character; `changed`: the vocabulary says so."""
    if place == 0 or text[place - 1].isspace():
        return True
    here, before = unicodedata.category(text[place])[0], unicodedata.category(text[place - 1])[0]
    if (here in "LNM") != (before in "LNM"):
        return True
    if here == "M":
        return False
    if _without_spaces(text[place]) or _without_spaces(text[place - 1]):
        return True
    return changed and before != "M"


def _without_spaces(character: str) -> bool:
    code = ord(character)
    at = bisect_right(_FIRSTS, code) - 1
    return at >= 0 and code <= _WITHOUT_SPACES[at][1]


# --- questions with a context -------------------------------------------------------------------


def encode_questions(
    tokenizer: Tokenizer,
    questions: Sequence[str],
    contexts: Sequence[str],
    *,
    limit: int,
    overlap: int = OVERLAP,
    special: bool = True,
) -> list[Question | TextError]:
    """Questions with contexts of any length to rows (question, part of the context).

    Args:
        tokenizer: the model's.
        questions: one for each context; what takes more than half of a row is cut, and counted.
        contexts: as many.
        limit: the longest row in tokens; at least two more than a pair has special ones.
        overlap: how many tokens of the context neighbouring rows share, at most half of what a
            row holds of it.
        special: as in `encode_texts`.
    """
    asked = _contents(tokenizer, questions, special)
    given = _contents(tokenizer, contexts, special)
    if len(asked) != len(given):
        raise CallError(f"{len(asked)} questions and {len(given)} contexts")
    frame = len(tokenizer.frame(_NOTHING, _NOTHING))
    room = limit - frame
    if room < 2:
        raise CallError(f"a row of {limit} tokens has no room for a question and a context")
    out: list[Question | TextError] = []
    for question, context, text in zip(asked, given, contexts, strict=True):
        if isinstance(question, TextError):
            out.append(question)
        elif isinstance(context, TextError):
            out.append(context)
        else:
            kept = question[: room // 2]
            size = room - len(kept)
            before = int(np.argmax(tokenizer.frame(kept, context[:1]).sides == 1))
            rows = []
            for begin, end in strided(len(context), size, min(overlap, size // 2)):
                units = np.arange(begin, end, dtype=np.int64)
                framed = tokenizer.frame(kept, context[begin:end])
                left_out = len(question) - len(kept) + len(context) - len(units)
                rows.append(_row(framed, cut=left_out, places=units - begin + before, units=units))
            spans = trimmed(context.spans, text)
            out.append(Question(rows=rows, spans=spans, cut=len(question) - len(kept)))
    return out


def answer_places(row: Row, spans: Ids, start: int, end: int) -> tuple[int, int]:
    """Where an answer begins and ends in a row: its first and its last token, both within.

    Args:
        row: of a `Question`.
        spans: the question's.
        start, end: the answer in characters of the context.

    (0, 0), the place of "no answer here", where the row does not hold all of it.
    """
    inside = np.flatnonzero((spans[:, 1] > start) & (spans[:, 0] < end))
    if not len(inside) or not len(row.units):
        return 0, 0
    first, last = int(inside[0]) - int(row.units[0]), int(inside[-1]) - int(row.units[0])
    if first < 0 or last >= len(row.units):
        return 0, 0
    return int(row.places[first]), int(row.places[last])


# --- parts --------------------------------------------------------------------------------------


def trimmed(spans: Ids, text: str) -> Ids:
    """Spans without the spaces at their ends, which some vocabularies take in.

    A span of nothing but space stays.
    """
    out: Ids = np.clip(spans, 0, len(text))
    for n, (start, end) in enumerate(out.tolist()):
        part = text[start:end]
        if (part[:1].isspace() or part[-1:].isspace()) and part.strip():
            out[n] = start + len(part) - len(part.lstrip()), start + len(part.rstrip())
    return out


def _contents(
    tokenizer: Tokenizer, texts: Sequence[Text], special: bool
) -> list[Tokens | TextError]:
    split = [text for text in texts if is_split(text)]
    # What is no text at all gets its error there.
    strings = [text for text in texts if not is_split(text)]
    of_strings = iter(tokenizer.contents(strings, special=special))  # type: ignore[arg-type]
    of_words = iter(tokenizer.contents_of_split(split))
    return [next(of_words if is_split(text) else of_strings) for text in texts]


def is_split(text: Text) -> bool:
    """Whether a text is given as words."""
    return isinstance(text, list | tuple)


_NOTHING = Tokens(
    np.empty(0, np.int64),
    np.empty((0, 2), np.int64),
    np.empty(0, np.int64),
    np.empty(0, np.int64),
    np.empty(0, np.int64),
)


def _row(framed: Tokens, *, cut: int, places: Ids | None = None, units: Ids | None = None) -> Row:
    none = np.empty(0, np.int64)
    return Row(
        ids=framed.ids,
        types=framed.types,
        cut=cut,
        places=none if places is None else places,
        units=none if units is None else units,
    )


def _pairs(spans: Iterable[Sequence[int]] | Ids) -> Ids:
    return np.array(list(spans), np.int64).reshape(-1, 2)
