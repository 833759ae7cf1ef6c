"""Texts to rows that fit the model: whole, or in windows whose tokens each count once.

Legend: T tokens of a row, H hidden, S vectors of a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from enrobe.engines.base import Array, Engine, Request, Sums
from enrobe.errors import TextError
from enrobe.text.ragged import Ids, Ragged, plan
from enrobe.text.tokenizer import Tokenizer
from enrobe.text.windows import Window, overlapping

Long = Literal["window", "truncate", "refuse"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Part:
    """A row: a whole text, or a window of it.

    Token t of the text, special tokens not counted, stands at place t + shift of the row.
    """

    text: int
    # its number
    ids: Ids
    # special tokens included
    shift: int
    kept: Window
    # the text's tokens that count from this row; together the parts of a text have each once
    start: int
    stop: int
    # the same as places of the row, with the special tokens at the ends of the text
    first: int
    # the place whose vector stands for the row in cls pooling
    share: float
    # how much of the text is counted from this row


@dataclass(frozen=True, eq=False, kw_only=True)
class Cutter:
    """How texts are cut to rows: one call's settings."""

    tokenizer: Tokenizer
    limit: int
    # the longest row
    long: Long
    prompt: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    # tokens that the texts begin with; every window gets them
    pool_prompt: bool = True

    def cut(self, text: int, ids: Ids) -> list[Part] | TextError:
        """The rows of one text; ids: without special tokens."""
        frame = self.tokenizer.frame_size
        before = self.tokenizer.frame_before
        room = self.limit - frame
        if len(ids) > room and self.long == "refuse":
            return TextError(
                f"{len(ids) + frame} tokens with special ones, and a row has {self.limit}; "
                "fix: long='window'"
            )
        if self.long == "truncate":
            ids = ids[:room]
        # Where the text's first letters joined the prompt's last, the tokens differ.
        lead = _shared(self.prompt, ids) if len(ids) > room else 0
        skip = 0 if self.pool_prompt else before + len(self.prompt)
        parts = []
        for (a, b), (c, d) in overlapping(len(ids) - lead, room - lead):
            begin, end, kept = a + lead, b + lead, (c + lead if c else 0, d + lead)
            row = self.tokenizer.frame_ids(np.concatenate([ids[:lead], ids[begin:end]]))
            shift = before + lead - begin
            # A window's own tokens begin here; the prompt in front of them is the first one's.
            start = shift + kept[0] if c else min(skip, len(row) - 1)
            parts.append(
                Part(
                    text=text,
                    ids=row,
                    shift=shift,
                    kept=kept,
                    start=start,
                    stop=shift + kept[1] if d < len(ids) - lead else len(row),
                    first=0 if self.pool_prompt else (before + lead if c else start),
                    share=(d - c) / (len(ids) - lead) if len(ids) > lead else 1.0,
                )
            )
        return parts


def _shared(a: Ids, b: Ids) -> int:
    """How many ids two rows have in common at their start."""
    size = min(len(a), len(b))
    differ = np.flatnonzero(a[:size] != b[:size])
    return int(differ[0]) if len(differ) else size


def run_parts(
    engine: Engine, parts: Sequence[Part], layers: Sequence[int], *, first: bool = False
) -> Iterator[tuple[Part, Array]]:
    """Each part with its vectors (T, H), averaged over layers; longest parts first.

    first: the vector at `part.first` is enough (1, H), and may be all that is computed.
    """
    picked = first and tuple(layers) == (engine.config.num_layers,)
    request = Request(layers=tuple(sorted(layers)), picked=picked)
    for group, batch in _batches(parts, engine.budget):
        places = batch.offsets[:-1] + np.array([part.first for part in group], np.int64)
        out = engine.run(batch, request, places if picked else None)
        states = [out.hidden[layer] for layer in request.layers]
        hidden_TH = _average([s[places] for s in states] if first and not picked else states)
        for n, part in enumerate(group):
            rows = slice(n, n + 1) if first else slice(batch.offsets[n], batch.offsets[n + 1])
            yield part, hidden_TH[rows]


def sum_parts(
    engine: Sums, parts: Sequence[Part], layers: Sequence[int]
) -> Iterator[tuple[Part, Array]]:
    """Each part with the sum (H,) of its vectors that are counted, averaged over layers."""
    # As no states are handed over, a batch may be large: at its end threads wait for each other.
    for group, batch in _batches(parts, 4 * engine.budget):
        counted = [(part.start, part.stop) for part in group]
        spans = batch.offsets[:-1, None] + np.array(counted, np.int64)
        sums_BH = _average(engine.sums(batch, sorted(layers), spans))
        yield from zip(group, sums_BH, strict=True)


def _batches(parts: Sequence[Part], budget: int) -> Iterator[tuple[list[Part], Ragged]]:
    for places in plan([len(part.ids) for part in parts], budget=budget):
        group = [parts[i] for i in places]
        yield group, Ragged.from_rows([part.ids for part in group])


def _average(states: Sequence[Array]) -> Array:
    if len(states) == 1:
        return states[0]
    total: Array = np.add(states[0], states[1])
    for state in states[2:]:
        total += state
    total /= np.float32(len(states))
    return total
