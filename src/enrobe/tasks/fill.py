"""Fill masks: marginals, joint fillings, words of several pieces, given targets.

A word of n pieces is scored in a row that has n masks in its place, and its probability is the
chain-rule product over them (`search`). So each number of pieces shares out a probability of 1,
and words of different numbers of pieces are compared as if each number were as likely as another.

Legend: V vocabulary, M masks of one row.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from enrobe.engines.base import Array, Engine
from enrobe.errors import CallError, TextError, show
from enrobe.tasks.masked import MaskedRow, run_best, run_masked, windowed
from enrobe.tasks.results import Candidate, Fill, JointFill, Mask
from enrobe.tasks.search import Blank, search
from enrobe.text.ragged import Ids
from enrobe.text.tokenizer import Tokenizer
from enrobe.text.tokens import Tokens
from enrobe.text.windows import Window

Result = TypeVar("Result")

_MASK_SPELLINGS = ("<mask>", "[MASK]")


@dataclass(frozen=True, kw_only=True)
class FillOptions:
    """Checked once a call; see `Model.fill`."""

    top_k: int = 5
    targets: tuple[str, ...] | None = None
    joint: bool = False
    max_pieces: int = 1
    special: bool = True

    def __post_init__(self) -> None:
        for name in ("top_k", "max_pieces"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise CallError(f"{name} is {show(value)}; allowed: a whole number from 1")
        if self.max_pieces > 10:
            raise CallError(f"max_pieces is {self.max_pieces}; allowed: 1 to 10")
        if self.targets is not None:
            if not self.targets or not all(isinstance(t, str) for t in self.targets):
                raise CallError(f"targets is {show(self.targets)}; allowed: one word or more")
            if len(set(self.targets)) < len(self.targets):
                raise CallError(f"targets {show(self.targets)} names a word twice")
            if self.joint or self.max_pieces > 1:
                other = "joint" if self.joint else "max_pieces"
                raise CallError(f"targets and {other} exclude each other; leave one out")
        if self.joint and self.max_pieces > 1:
            raise CallError("joint fills one piece a mask; leave max_pieces at 1")

    @property
    def beam(self) -> int:
        """Width of the search; wider than the answer, as good fillings can start badly."""
        return max(10, 2 * self.top_k)


@dataclass(frozen=True)
class MaskedText:
    """A text that has masks: its ids without special tokens, and where the masks are."""

    text: str
    ids: Ids
    places: tuple[int, ...]
    # among the ids
    spans: tuple[Window, ...]
    # in characters

    def after_space(self, mask: int) -> bool:
        """Whether a space stands before a mask; a word there then has it in its first piece."""
        start = self.spans[mask][0]
        return start > 0 and self.text[start - 1].isspace()


def fill(
    engine: Engine, tokenizer: Tokenizer, texts: Sequence[str], options: FillOptions
) -> list[Fill | TextError]:
    """One Fill a text, in order; a text that cannot be filled has its TextError there."""
    if options.top_k > engine.config.vocab_size:
        raise CallError(f"top_k is {options.top_k}; the vocabulary has {engine.config.vocab_size}")
    prepared = prepare(tokenizer, texts, special=options.special)
    items = [item for item in prepared if isinstance(item, MaskedText)]
    answers: Sequence[Fill | TextError]
    if options.targets is not None:
        answers = _score_targets(engine, tokenizer, items, options.targets)
    elif options.max_pieces > 1:
        answers = _fill_words(engine, tokenizer, items, options)
    elif options.joint:
        answers = _fill_joint(engine, tokenizer, items, options)
    else:
        answers = _fill_marginal(engine, tokenizer, items, options.top_k)
    left = iter(answers)
    return [next(left) if isinstance(item, MaskedText) else item for item in prepared]


def distribution(
    engine: Engine, tokenizer: Tokenizer, texts: Sequence[str]
) -> list[Array | TextError]:
    """Probabilities (M, V) of each text's masks, float32, each row summing to 1."""
    prepared = prepare(tokenizer, texts)
    items = [item for item in prepared if isinstance(item, MaskedText)]

    def exponentials(rows: Sequence[MaskedRow]) -> list[list[Array]]:
        return run_masked(engine, rows, lambda _, values_MV: [*np.exp(values_MV)])

    found = iter(marginals(engine, tokenizer, items, exponentials))
    return [np.stack(next(found)) if isinstance(i, MaskedText) else i for i in prepared]


def prepare(
    tokenizer: Tokenizer, texts: Sequence[str], *, special: bool = True
) -> list[MaskedText | TextError]:
    """Tokenize texts and find their masks; a text without one becomes a TextError."""
    out: list[MaskedText | TextError] = []
    for text, tokens in zip(texts, tokenizer.contents(texts, special=special), strict=True):
        if isinstance(tokens, TextError):
            out.append(tokens)
            continue
        places = np.flatnonzero(tokens.ids == tokenizer.mask_id)
        if not len(places):
            out.append(_no_mask(text, tokenizer, special))
        else:
            spans = tuple(_mask_span(text, tokens, int(place)) for place in places)
            out.append(MaskedText(text, tokens.ids, tuple(int(p) for p in places), spans))
    return out


def _mask_span(text: str, tokens: Tokens, place: int) -> tuple[int, int]:
    """A mask that takes the space to its left has it in its span: not what the user wrote."""
    start, end = (int(value) for value in tokens.spans[place])
    while start < end and text[start].isspace():
        start += 1
    return start, end


def _no_mask(text: str, tokenizer: Tokenizer, special: bool) -> TextError:
    token = tokenizer.mask_token
    if not special and token in text:
        return TextError(f"special=False reads {token} as plain text, so there is no mask to fill")
    other = next((name for name in _MASK_SPELLINGS if name != token and name in text), None)
    if other:
        return TextError(f"no mask in the text: it has {other}, this model's mask is {token}")
    return TextError(f"no mask in {show(text)}; write {token} where a word is missing")


def _candidate(tokenizer: Tokenizer, ids: Sequence[int], log_probability: float) -> Candidate:
    return Candidate(
        word=tokenizer.word(ids),
        token_ids=tuple(ids),
        tokens=tokenizer.pieces(ids),
        probability=math.exp(log_probability),
        log_probability=log_probability,
    )


# --- one piece a mask ---------------------------------------------------------------------------


def marginals(
    engine: Engine,
    tokenizer: Tokenizer,
    items: Sequence[MaskedText],
    run: Callable[[Sequence[MaskedRow]], list[list[Result]]],
) -> list[list[Result]]:
    """What `run` makes of each mask of each text, with all its masks open."""
    rows: list[MaskedRow] = []
    owners: list[int] = []
    for index, item in enumerate(items):
        spans = [(place, place + 1) for place in item.places]
        for row in windowed(tokenizer, item.ids, spans, engine.config.max_tokens):
            rows.append(row)
            owners.append(index)
    found = run(rows)
    # Windows come in the order of the text, and so do the masks in each.
    out: list[list[Result]] = [[] for _ in items]
    for index, values in zip(owners, found, strict=True):
        out[index] += values
    return out


def _fill_marginal(
    engine: Engine, tokenizer: Tokenizer, items: Sequence[MaskedText], count: int
) -> list[Fill]:
    found = marginals(engine, tokenizer, items, lambda rows: run_best(engine, rows, count))
    return _fills(
        items,
        [
            [
                tuple(
                    _candidate(tokenizer, (int(i),), float(log))
                    for i, log in zip(ids, logs, strict=True)
                )
                for ids, logs in masks
            ]
            for masks in found
        ],
    )


def _fills(
    items: Sequence[MaskedText], found: Sequence[Sequence[Sequence[Candidate]]]
) -> list[Fill]:
    return [
        Fill(
            item.text,
            tuple(
                Mask(start, end, tuple(candidates))
                for (start, end), candidates in zip(item.spans, masks, strict=True)
            ),
        )
        for item, masks in zip(items, found, strict=True)
    ]


# --- several places together --------------------------------------------------------------------


def _fill_joint(
    engine: Engine, tokenizer: Tokenizer, items: Sequence[MaskedText], options: FillOptions
) -> list[Fill | TextError]:
    fills = _fill_marginal(engine, tokenizer, items, options.top_k)
    longest = engine.config.max_tokens
    out: list[Fill | TextError] = []
    for item, plain in zip(items, fills, strict=True):
        apart = item.places[-1] - item.places[0] + 1
        room = longest - tokenizer.frame_size
        fits = apart <= room
        out.append(
            plain
            if fits
            else TextError(f"masks stand {apart} tokens apart; joint filling reaches {room}")
        )
    able = [n for n, result in enumerate(out) if isinstance(result, Fill)]
    blanks = []
    for n in able:
        item = items[n]
        (row,) = windowed(tokenizer, item.ids, [(item.places[0], item.places[-1] + 1)], longest)
        blanks.append(Blank(MaskedRow(row.ids, np.flatnonzero(row.ids == tokenizer.mask_id))))
    for n, fillings in zip(able, search(engine, blanks, options.beam), strict=True):
        joint = tuple(
            JointFill(tuple(tokenizer.word((i,)) for i in filling.ids), filling.log_probability)
            for filling in fillings[: options.top_k]
        )
        out[n] = replace(fills[n], joint=joint)
    return out


def _opened(
    engine: Engine, tokenizer: Tokenizer, item: MaskedText, mask: int, pieces: int
) -> MaskedRow:
    """The row in which one mask of a text gives way to several."""
    place = item.places[mask]
    masks = np.full(pieces, tokenizer.mask_id, np.int64)
    ids = np.concatenate([item.ids[:place], masks, item.ids[place + 1 :]])
    (row,) = windowed(tokenizer, ids, [(place, place + pieces)], engine.config.max_tokens)
    return row


def _each_mask(items: Sequence[MaskedText]) -> Iterator[tuple[int, int]]:
    return ((n, mask) for n, item in enumerate(items) for mask in range(len(item.places)))


def _fill_words(
    engine: Engine, tokenizer: Tokenizer, items: Sequence[MaskedText], options: FillOptions
) -> list[Fill]:
    """Words of one to `max_pieces` pieces; of several spellings of a word, the tokenizer's own."""
    size = engine.config.vocab_size
    later = tokenizer.continues(size)
    special = np.isin(np.arange(size), tokenizer.special_ids)
    blanks, owners = [], []
    for n, mask in _each_mask(items):
        first = tokenizer.begins(size, after_space=items[n].after_space(mask))
        # A word of one piece may also be a sign such as a comma; a word's later piece it is not.
        alone = (first | ~later) & ~special
        for pieces in range(1, options.max_pieces + 1):
            row = _opened(engine, tokenizer, items[n], mask, pieces)
            allowed = (alone,) if pieces == 1 else (first, *[later] * (pieces - 1))
            blanks.append(Blank(row, allowed=allowed))
            owners.append((n, mask))
    found: list[list[list[Candidate]]] = [[[] for _ in item.places] for item in items]
    for (n, mask), fillings in zip(owners, search(engine, blanks, options.beam), strict=True):
        after_space = items[n].after_space(mask)
        for filling in fillings:
            candidate = _candidate(tokenizer, filling.ids, filling.log_probability)
            own = len(filling.ids) == 1
            if own or tokenizer.word_ids(candidate.word, after_space=after_space) == filling.ids:
                found[n][mask].append(candidate)
    for masks in found:
        for candidates in masks:
            candidates.sort(key=lambda c: (-c.log_probability, len(c.token_ids), c.token_ids))
            del candidates[options.top_k :]
    return _fills(items, found)


def _score_targets(
    engine: Engine, tokenizer: Tokenizer, items: Sequence[MaskedText], targets: Sequence[str]
) -> list[Fill]:
    room = engine.config.max_tokens - tokenizer.frame_size
    ids = {
        (target, space): _target_ids(tokenizer, target, space, room)
        for target in targets
        for space in (False, True)
    }
    blanks, keys = [], []
    for n, mask in _each_mask(items):
        for target in targets:
            forced = ids[target, items[n].after_space(mask)]
            row = _opened(engine, tokenizer, items[n], mask, len(forced))
            blanks.append(Blank(row, forced=forced))
            keys.append((n, mask, forced))
    found: list[list[list[Candidate]]] = [[[] for _ in item.places] for item in items]
    for (n, mask, forced), fillings in zip(keys, search(engine, blanks, beam=1), strict=True):
        (filling,) = fillings
        found[n][mask].append(_candidate(tokenizer, forced, filling.log_probability))
    return _fills(items, [[_over_set(mask, targets) for mask in masks] for masks in found])


def _target_ids(tokenizer: Tokenizer, target: str, after_space: bool, room: int) -> tuple[int, ...]:
    try:
        ids = tokenizer.word_ids(target, after_space=after_space)
    except TextError as error:
        raise CallError(f"target {show(target)}: {error}") from None
    if tokenizer.unk_id in ids:
        raise CallError(f"target {show(target)} is not in the model's vocabulary")
    if len(ids) > room:
        raise CallError(f"target {show(target)} has {len(ids)} tokens; allowed: {room}")
    return ids


def _over_set(candidates: Sequence[Candidate], targets: Sequence[str]) -> list[Candidate]:
    best = max(candidate.log_probability for candidate in candidates)
    total = sum(math.exp(candidate.log_probability - best) for candidate in candidates)
    return [
        replace(
            candidate, word=target, probability=math.exp(candidate.log_probability - best) / total
        )
        for candidate, target in zip(candidates, targets, strict=True)
    ]
