"""Dynamic masking: which tokens of a row are to be predicted, drawn anew every epoch.

As in RoBERTa (Liu et al. 2019, section 4.1), masks are made as rows are read. Every draw is a hash
of (seed, epoch, row, place in the row), so a row gets the same pattern whatever batch, order or
process it comes in, and a run that goes on later needs no state.

Legend: T tokens of all rows, B rows, V vocabulary, U units (what is taken whole: tokens or words),
A anchors (words at which a span may begin), M places to predict.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from enrobe.errors import CallError, nearest, show
from enrobe.text.ragged import Ids, Ragged
from enrobe.text.tokenizer import Tokenizer

Unit = Literal["token", "word", "span"]
Schedule = Literal["linear", "cosine"]
UNITS: tuple[Unit, ...] = ("token", "word", "span")
SCHEDULES: tuple[Schedule, ...] = ("linear", "cosine")

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating[Any]]
Hashes = npt.NDArray[np.uint64]

# SpanBERT's lengths in words (Joshi et al. 2020, section 3.1): geometric, none above 10.
_SPAN_P = 0.2
_SPAN_LONGEST = 10

# A sort key holds the row in the batch, a random score, and the unit's number in its row. Their
# widths are fixed: else a tie of scores could be settled differently in another batch.
_ROW_BITS, _SCORE_BITS, _UNIT_BITS = 18, 28, 18

# What a draw is for: each purpose has random numbers of its own.
_ORDER, _ROUNDING, _LENGTH, _TREATMENT, _REPLACEMENT = range(5)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """What share of the tokens is to be predicted, in what units, and what stands in their place.

    Raises:
        CallError: a value is not allowed, or two contradict each other.
    """

    unit: Unit = "token"
    # token; word: all pieces of a word or none; span: up to 10 words in sequence
    rate: float = 0.15
    # share of a row's tokens, special tokens not counted
    final_rate: float | None = None
    # the rate at the end of the run (Ankner et al. 2023); None: `rate` throughout
    schedule: Schedule = "linear"
    # the way from `rate` to `final_rate`: linear, cosine
    mask_share: float = 0.8
    # of the chosen units: become the mask token
    random_share: float = 0.1
    # of the chosen units: become random tokens; what is left over stays as it is
    static: bool = False
    # every epoch has the pattern of epoch 0, to compare with

    def __post_init__(self) -> None:
        for name, known in {"unit": UNITS, "schedule": SCHEDULES}.items():
            value = getattr(self, name)
            if value not in known:
                hint = nearest(str(value), known)
                raise CallError(f"{name} is {show(value)}; allowed: {', '.join(known)}{hint}")
        for name in ("rate", "final_rate", "mask_share", "random_share"):
            value, is_rate = getattr(self, name), name.endswith("rate")
            if (name, value) == ("final_rate", None):
                continue
            if not _is_share(value) or (is_rate and not value):
                what = "a number above 0, at most 1" if is_rate else "a number from 0 to 1"
                raise CallError(f"{name} is {show(value)}; allowed: {what}")
        if self.mask_share + self.random_share > 1:
            raise CallError(
                f"mask_share {self.mask_share} and random_share {self.random_share} make "
                f"{self.mask_share + self.random_share:g}; allowed: at most 1 together"
            )
        if type(self.static) is not bool:
            raise CallError(f"static is {show(self.static)}; allowed: True, False")
        if self.static and self.final_rate is not None:
            given = f"static is True and final_rate is {self.final_rate}"
            raise CallError(f"{given}; a static pattern has one rate: leave out one of the two")

    def rate_at(self, progress: float) -> float:
        """The rate at a moment of the run: 0 is its beginning, 1 its end.

        Linear: rate + (final_rate - rate) * progress.
        Cosine: rate + (final_rate - rate) * (1 - cos(pi * progress)) / 2.

        Raises:
            CallError: progress is not a number from 0 to 1.
        """
        if not _is_share(progress):
            raise CallError(f"progress is {show(progress)}; allowed: a number from 0 to 1")
        if self.final_rate is None:
            return self.rate
        if self.schedule == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.rate * (1 - progress) + self.final_rate * progress


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and 0 <= value <= 1


@dataclass(frozen=True, eq=False)
class Masked:
    """A batch to train on; its row offsets are those of the batch it was made from.

    Shapes: ids (T,), positions (M,), targets (M,).
    """

    ids: Ids
    # what the model sees
    positions: Ids
    # indices into `ids` of the places to predict, ascending
    targets: Ids
    # the original ids there


def word_starts(tokenizer: Tokenizer) -> Bools:
    """Which ids begin a word by their spelling (V,); no special token does.

    WordPiece continues words with `##`; Unigram begins them with `▁`, byte-level BPE with the white
    space that a piece carries. The first word after a special token may lack the sign: `Masker`
    sees to that. Chinese has no sign at all, so to the latter two a clause is one word.
    """
    last = max(tokenizer.vocab_size - 1, *tokenizer.special_ids.tolist())
    pieces = tokenizer.pieces(range(last + 1))
    if tokenizer.kind == "WordPiece":
        starts = [not piece.startswith("##") for piece in pieces]
    else:
        # No byte is spelled `▁`, and beside `▁` a Ġ is the Maltese letter. Spelled as bytes, the
        # space, tab, line feed and carriage return are Ġ ĉ Ċ č.
        signs = ("▁",) if any(piece[:1] == "▁" for piece in pieces) else ("Ġ", "ĉ", "Ċ", "č")
        starts = [piece.startswith(signs) for piece in pieces]
    out = np.array(starts, bool)
    out[tokenizer.special_ids] = False
    return out


class Masker:
    """Masks batches. Safe to use from several threads: nothing in it changes."""

    def __init__(self, config: MaskingConfig, tokenizer: Tokenizer, *, seed: int) -> None:
        """Work out once what masking needs to know of the vocabulary.

        Raises:
            CallError: the seed is not a whole number from 0 to 2**63 - 1.
        """
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise CallError(f"seed is {show(seed)}; allowed: a whole number from 0 to 2**63 - 1")
        self.config = config
        self._seed = seed
        self._mask_id = tokenizer.mask_id
        starts_V = word_starts(tokenizer)
        self._plain_V = np.ones(len(starts_V), bool)
        self._plain_V[tokenizer.special_ids] = False
        self._starts_V = self._plain_V if config.unit == "token" else starts_V
        self._plain_ids = np.flatnonzero(self._plain_V)

    def __call__(
        self, batch: Ragged, rows: npt.ArrayLike, epochs: npt.ArrayLike, *, progress: float = 0.0
    ) -> Masked:
        """Mask a batch; the batch itself stays as it is.

        Of a row's N tokens that are not special, rate * N are chosen in the mean (fractions are
        rounded at random), but one unit at least. Special tokens are neither chosen nor drawn.

        Args:
            batch: the rows, special tokens included.
            rows: each row's number (B,), unique in the whole corpus (all sources), from 0.
            epochs: the epoch, from 0; one for all rows, or one each (B,).
            progress: see `MaskingConfig.rate_at`.

        Raises:
            CallError: an id is not in the vocabulary, or progress is not a number from 0 to 1.
        """
        for odd in (int(batch.ids.min(initial=0)), int(batch.ids.max(initial=0))):
            if not 0 <= odd < len(self._plain_V):
                raise CallError(f"token id {odd}; the vocabulary has 0 to {len(self._plain_V) - 1}")
        rows_B = np.asarray(rows, np.int64)
        epochs_B = np.asarray(0 if self.config.static else epochs, np.int64)
        assert rows_B.shape == (len(batch),) and epochs_B.shape in ((), rows_B.shape)
        keys_B = _row_keys(self._seed, epochs_B, rows_B)
        units = _units(batch, self._plain_V[batch.ids], self._starts_V[batch.ids])
        taken, leader = self._choose(units, keys_B, self.config.rate_at(progress))

        # The pieces of a word, and the words of a span, share the treatment of their leader.
        size = units.size[taken]
        draws = _draw(keys_B, _TREATMENT, units.row[leader], units.place[leader])
        lot_M = np.repeat(_fraction(draws), size)
        nth_M = np.arange(len(lot_M)) - np.repeat(np.cumsum(size) - size, size)
        positions = np.repeat(units.start[taken], size) + nth_M
        mask, random = self.config.mask_share, self.config.random_share
        ids = batch.ids.copy()
        ids[positions[lot_M < mask]] = self._mask_id
        other = positions[(lot_M >= mask) & (lot_M < mask + random)]
        row = np.searchsorted(batch.offsets, other, side="right") - 1
        draws = _draw(keys_B, _REPLACEMENT, row, other - batch.offsets[row])
        ids[other] = self._plain_ids[(_fraction(draws) * len(self._plain_ids)).astype(np.int64)]
        return Masked(ids, positions, batch.ids[positions])

    def _choose(self, units: "_Units", keys_B: Hashes, rate: float) -> tuple[Ids, Ids]:
        """The chosen units, ascending, and for each the unit whose treatment it gets."""
        budget_B = rate * np.bincount(units.row, units.size, len(keys_B))
        none_B = np.zeros(len(keys_B), np.int64)
        rounding_B = _fraction(_draw(keys_B, _ROUNDING, np.arange(len(keys_B)), none_B))
        order = leader = _shuffled(units, keys_B)
        if self.config.unit == "span":
            # A span covers its anchor at least: anchors beyond a full budget are never reached.
            anchors = order[_within(units, order, budget_B, none_B)]
            draws = _draw(keys_B, _LENGTH, units.row[anchors], units.place[anchors])
            order, leader = _spans(anchors, _span_lengths(_fraction(draws)), units.adjoins)
        fits = _within(units, order, budget_B, rounding_B)
        leader_U = np.full(len(units.start), -1)
        leader_U[order[fits]] = leader[fits]
        taken = np.flatnonzero(leader_U >= 0)
        return taken, leader_U[taken]


class _Units(NamedTuple):
    """What may be chosen, as it stands in the batch; shapes (U,)."""

    start: Ids  # its first token in the batch
    size: Ids  # its tokens, which stand in sequence
    row: Ids  # its row in the batch
    place: Ids  # its first token in that row
    adjoins: Bools  # whether another unit of that row ends right before it


def _units(batch: Ragged, plain_T: Bools, starts_T: Bools) -> _Units:
    adjoins_T = np.roll(plain_T, 1)
    adjoins_T[batch.offsets[:-1]] = False
    start = np.flatnonzero(plain_T & (starts_T | ~adjoins_T))
    size = np.diff(np.cumsum(plain_T)[start], append=np.count_nonzero(plain_T) + 1)
    row = np.repeat(np.arange(len(batch)), batch.lengths)[start]
    return _Units(start, size, row, start - batch.offsets[row], adjoins_T[start])


def _shuffled(units: _Units, keys_B: Hashes) -> Ids:
    """The units (U,), those of each row in random order."""
    counts_B = np.bincount(units.row, minlength=len(keys_B))
    assert len(counts_B) <= 2**_ROW_BITS and counts_B.max(initial=0) <= 2**_UNIT_BITS
    first_U = (np.cumsum(counts_B) - counts_B)[units.row]
    # Sorting plain numbers that end in what is wanted is several times faster than an argsort.
    key = _draw(keys_B, _ORDER, units.row, units.place)
    key >>= np.uint64(64 - _SCORE_BITS)
    key |= units.row.astype(np.uint64) << np.uint64(_SCORE_BITS)
    key <<= np.uint64(_UNIT_BITS)
    key |= (np.arange(len(first_U)) - first_U).astype(np.uint64)
    key.sort()
    return (key & np.uint64(2**_UNIT_BITS - 1)).astype(np.int64) + first_U


def _within(units: _Units, order: Ids, budget_B: Floats, rounding_B: Floats | Ids) -> Bools:
    """Which of these units fit into the budget of tokens of their row, taken in this order.

    One that oversteps it is taken with the probability (budget left) / (its size): that makes the
    budget the expected count. The first unit of a row is always taken.
    """
    row, size = units.row[order], units.size[order]
    first: Bools = np.diff(row, prepend=-1) != 0
    before = np.cumsum(size) - size
    before -= before[first][np.cumsum(first) - 1]
    return first | (before + rounding_B[row] * size < budget_B[row])


def _span_lengths(fraction: Floats) -> Ids:
    """Uniform numbers from 0 up to 1 to lengths of spans in words, of the same shape."""
    law = (1 - _SPAN_P) ** np.arange(_SPAN_LONGEST)
    return np.searchsorted(np.cumsum(law / law.sum())[:-1], fraction, side="right") + 1


def _spans(anchors: Ids, lengths: Ids, adjoins: Bools) -> tuple[Ids, Ids]:
    """Let spans grow from anchors, passing over an anchor that an earlier span covers.

    Args:
        anchors: distinct words (A,), row after row, the earlier before the later.
        lengths: words that the span of each is to have (A,).
        adjoins: whether a span may come from the word before (U,).

    Returns:
        The words that spans cover, in the order in which that happens, and the anchor of each.
    """
    time = np.argsort(anchors)
    word = anchors[time]
    barriers = np.append(np.flatnonzero(~adjoins), len(adjoins))
    end = np.minimum(word + lengths[time], barriers[np.searchsorted(barriers, word, side="right")])
    # Whether an anchor is passed over depends on earlier anchors alone, so repeating this settles.
    kept = np.ones(len(word), bool)
    while True:
        passed = np.zeros(len(word), bool)
        for d in range(1, _SPAN_LONGEST):
            passed[d:] |= kept[:-d] & (word[d:] < end[:-d]) & (time[:-d] < time[d:])
        if (kept != passed).all():
            break
        kept = ~passed
    word, end, time = word[kept], end[kept], time[kept]
    when_U = np.full(len(adjoins), len(adjoins) * _SPAN_LONGEST)
    for d in range(_SPAN_LONGEST):
        far = word + d < end
        at = word[far] + d
        when_U[at] = np.minimum(when_U[at], time[far] * _SPAN_LONGEST + d)
    words = np.flatnonzero(when_U < len(adjoins) * _SPAN_LONGEST)
    words = words[np.argsort(when_U[words])]
    return words, anchors[when_U[words] // _SPAN_LONGEST]


# --- random numbers ---------------------------------------------------------------------------


def _mix(state: Hashes) -> Hashes:
    """The last step of SplitMix64 (Steele, Lea and Flood 2014), done in place."""
    state ^= state >> np.uint64(30)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    state ^= state >> np.uint64(27)
    state *= np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return state


def _row_keys(seed: int, epochs: Ids, rows_B: Ids) -> Hashes:
    """What all random numbers of a row follow from (B,)."""
    key = _mix(np.array([seed], np.uint64) + _GOLDEN)
    key = _mix((key ^ epochs.astype(np.uint64)) + _GOLDEN)
    return _mix((key ^ rows_B.astype(np.uint64)) + _GOLDEN)


def _draw(keys_B: Hashes, purpose: int, row: Ids, place: Ids) -> Hashes:
    """64 random bits for each row in the batch and place in the row, of one shape."""
    lanes_B = _mix((keys_B ^ np.uint64(purpose)) + _GOLDEN)
    # SplitMix64's sequence, with the place for its counter.
    state = place.astype(np.uint64)
    state *= _GOLDEN
    state += lanes_B[row]
    return _mix(state)


def _fraction(draws: Hashes) -> Floats:
    """From 0 up to 1, in steps of 2**-32: coarse enough that adding a count loses nothing."""
    return (draws >> np.uint64(32)) * 2.0**-32
