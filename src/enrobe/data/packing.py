"""Rows for training from a corpus, each found by its number, and the order in which they come.

Nothing here holds a row's tokens or a list of rows: a row is computed from the mapped shards when
it is asked for, and the order is a function of (seed, position). To go on after an interruption it
is enough to know the position.
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from enrobe.data.corpus import Corpus, Shard
from enrobe.errors import CallError, show
from enrobe.text.ragged import Ids, row_offsets
from enrobe.text.tokenizer import Tokenizer

# Two special tokens and room for a separator and a token on either side of it.
_SHORTEST = 5
# Documents a step of the index of `Documents`.
_BLOCK = 1024
_LONGEST_PERIOD = 2**17
_ROUNDS = 8
_MASK = 2**64 - 1


class FullSentences:
    """Rows filled across documents: FULL-SENTENCES of RoBERTa (Liu et al. 2019, section 4.2).

    All documents in order, a separator after each but the last, are one stream, and row i is its
    i-th piece of `length` - 2 tokens between <s> and </s>. A separator that would stand at the
    border of a row is left out, since <s> and </s> already part the documents there; so a row has
    up to `length` tokens.
    """

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, *, length: int = 512) -> None:
        """Rows of up to `length` tokens; CallError for an empty corpus or a length below 5."""
        _check(corpus, length)
        self._shards = corpus.shards
        self._tokenizer = tokenizer
        self._room = length - tokenizer.frame_size
        # Where each shard begins in the stream, which has a token more a document.
        self._starts = row_offsets([len(s.tokens) + len(s.ends) for s in corpus.shards])
        # The last document has no separator after it.
        self._stop = int(self._starts[-1]) - 1

    def __len__(self) -> int:
        return -(-self._stop // self._room)

    def row(self, index: int) -> Ids:
        """The ids of one row, special tokens included."""
        _check_row(index, len(self))
        start = index * self._room
        stop = min(start + self._room, self._stop)
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        parts = []
        while start < stop:
            base, end = int(self._starts[number]), int(self._starts[number + 1])
            if start < end:
                parts.append(self._piece(self._shards[number], start - base, min(stop, end) - base))
                start = min(stop, end)
            number += 1
        ids = np.concatenate(parts)
        separator = self._tokenizer.last_id
        # No text has this id: a corpus holds no special tokens.
        ids = ids[int(ids[0] == separator) : len(ids) - int(ids[-1] == separator)]
        return self._tokenizer.frame_ids(ids)

    def _piece(self, shard: Shard, start: int, stop: int) -> Ids:
        """Positions start to stop of one shard's stream, separators included."""
        first, last = (self._documents_before(shard, place) for place in (start, stop))
        # As many separators as documents stand before a place; what is left are tokens.
        tokens = shard.tokens[start - first : stop - last].astype(np.int64)
        places = shard.ends[first:last] - (start - first)
        return np.insert(tokens, places, self._tokenizer.last_id)

    def _documents_before(self, shard: Shard, place: int) -> int:
        """How many documents, separators included, end at or before a place of the stream."""
        ends = shard.ends
        return bisect_right(range(len(ends)), place, key=lambda i: int(ends[i]) + i + 1)


class Documents:
    """Rows that never cross a document: <s> piece </s>.

    A document of more than `length` - 2 tokens is cut into pieces of that size and a last, shorter
    one; rows are ragged. The index holds two numbers for every 1,024 documents.
    """

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, *, length: int = 512) -> None:
        """Read once where the documents end; CallError as for `FullSentences`."""
        _check(corpus, length)
        self._shards = corpus.shards
        self._tokenizer = tokenizer
        self._room = length - tokenizer.frame_size
        blocks, rows = [], []
        for number, shard in enumerate(corpus.shards):
            for first in range(0, len(shard.ends), _BLOCK):
                blocks.append((number, first))
                rows.append(int(self._rows(self._bounds(shard, first)).sum()))
        self._blocks = np.array(blocks, np.int64)
        self._starts = row_offsets(rows)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def row(self, index: int) -> Ids:
        """The ids of one row, special tokens included."""
        _check_row(index, len(self))
        block = int(np.searchsorted(self._starts, index, side="right")) - 1
        number, first = self._blocks[block]
        shard = self._shards[number]
        bounds = self._bounds(shard, int(first))
        starts = row_offsets(self._rows(bounds))
        place = index - int(self._starts[block])
        document = int(np.searchsorted(starts, place, side="right")) - 1
        start = int(bounds[document]) + (place - int(starts[document])) * self._room
        stop = min(start + self._room, int(bounds[document + 1]))
        return self._tokenizer.frame_ids(shard.tokens[start:stop].astype(np.int64))

    def _bounds(self, shard: Shard, first: int) -> npt.NDArray[np.int64]:
        """Where the documents of a block begin, and where its last one ends."""
        begin = shard.ends[first - 1 : first] if first else np.zeros(1, np.int64)
        return np.concatenate([begin, shard.ends[first : first + _BLOCK]])

    def _rows(self, bounds: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many rows each document of a block gives."""
        return -(-np.diff(bounds) // self._room)


def _check(corpus: Corpus, length: int) -> None:
    if length < _SHORTEST:
        raise CallError(f"rows of {show(length)} tokens; allowed: {_SHORTEST} or more")
    if not corpus.documents:
        raise CallError(f"{corpus.folder}: no document in it has any text")


def _check_row(index: int, count: int) -> None:
    if not 0 <= index < count:
        raise IndexError(f"row {index} of {count}")


# --- order ------------------------------------------------------------------------------------


def permute(index: int, size: int, *key: int) -> int:
    """Where `index` goes in a pseudo-random permutation of range(size) that `key` chooses.

    A bijection for every size >= 1, computed in constant time and memory: a Feistel network over
    two halves that need not be powers of two, walked until it ends inside the range (Black and
    Rogaway 2002, "Ciphers with arbitrary finite domains", methods 2 and 3).
    """
    assert 0 <= index < size
    width = math.isqrt(size - 1) + 1
    height = -(-size // width)
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * _ROUNDS).digest()
    keys = np.frombuffer(digest, "<u8").tolist()
    # width * height < size + width: one walk is nearly always enough.
    while True:
        left, right = divmod(index, height)
        for number, secret in enumerate(keys):
            if number % 2:
                right = (right + _mix(secret ^ left)) % height
            else:
                left = (left + _mix(secret ^ right)) % width
        index = left * height + right
        if index < size:
            return index


def _mix(value: int) -> int:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014): each bit depends on all."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


class Place(NamedTuple):
    """Which row stands at a position of a mixture."""

    source: int
    epoch: int
    # how often this source was gone through before
    row: int


class Mixture:
    """An endless stream of the rows of several sources, each in its share.

    Of the first p rows, source k has p * weight[k] / sum(weights) within one row, whatever p; of
    any p rows in succession, within two. Each source goes through all its rows in a random order,
    then again in another: one with a high weight may be in its third epoch while another is still
    in its first. With a single source this is a plain shuffled epoch after the other.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], *, seed: int) -> None:
        """Plan the schedule.

        Args:
            sizes: how many rows each source has.
            weights: each source's share of the rows, in any unit: 4, 3, 1, 0.2.
            seed: chooses the order of the rows.

        Raises:
            CallError: no source, an empty one, weights that are not positive numbers, or weights of
                so many digits that their ratio takes over 131,072 rows to come out even.
        """
        if not sizes or len(sizes) != len(weights):
            raise CallError(f"{len(sizes)} sources and {len(weights)} weights; allowed: one each")
        if min(sizes) < 1:
            raise CallError("a source without a row cannot be mixed in; fix: leave it out")
        self._sizes, self._seed = tuple(sizes), seed
        self._shares = _ratio(weights)
        self._period = sum(self._shares)
        self._schedule = _schedule(self._shares)
        # How many rows of the same source stand before a place of the schedule.
        self._before = np.empty(self._period, np.uint32)
        for source, share in enumerate(self._shares):
            self._before[self._schedule == source] = np.arange(share)

    def at(self, position: int) -> Place:
        """The row at a position, counted from 0; constant time, and nothing is remembered."""
        assert position >= 0
        turns, place = divmod(position, self._period)
        source = int(self._schedule[place])
        number = turns * self._shares[source] + int(self._before[place])
        epoch, index = divmod(number, self._sizes[source])
        return Place(source, epoch, permute(index, self._sizes[source], self._seed, epoch, source))


def _ratio(weights: Sequence[float]) -> tuple[int, ...]:
    """The weights as the smallest whole numbers in the same ratio."""
    try:
        # Through its digits, 0.2 is a fifth and not the nearest binary fraction.
        exact = [Fraction(str(weight)) for weight in weights]
    except ValueError:
        exact = []
    if not exact or min(exact) <= 0:
        shown = ", ".join(show(weight) for weight in weights)
        raise CallError(f"weights {shown}; allowed: positive numbers")
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    divisor = math.gcd(*whole)
    ratio = tuple(weight // divisor for weight in whole)
    if sum(ratio) > _LONGEST_PERIOD:
        raise CallError(
            f"weights come out even after {sum(ratio)} rows; allowed: {_LONGEST_PERIOD}; "
            "fix: write them with fewer digits"
        )
    return ratio


def _schedule(shares: Sequence[int]) -> npt.NDArray[np.uint32]:
    """One period, (sum(shares),): which source each row is of.

    The j-th row of a source may stand from floor(j / share) on and must by ceil((j + 1) / share):
    of those that may, the one that must first. Such a schedule always exists (Baruah et al. 1996,
    "Proportionate progress", theorem 1), and keeps every source within one row of its share.
    """
    period = sum(shares)
    taken = [0] * len(shares)
    out = np.empty(period, np.uint32)
    for place in range(period):
        _, source = min(
            (-(-(taken[k] + 1) * period // share), k)
            for k, share in enumerate(shares)
            if taken[k] * period // share <= place
        )
        taken[source] += 1
        out[place] = source
    return out
