"""Texts that nobody has labelled, for a teacher to answer: given ones, or rows with other words.

A word becomes the mask or, as often, a word of another row (Tang et al. 2019, arXiv:1903.12136;
Jiao et al. 2020, arXiv:1909.10351, replace words by likelier ones). A teacher has learned the
answers of its own rows by heart, which says little more than their labels; here it has to tell
what it knows.

Legend: T tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from enrobe.data.masking import word_starts
from enrobe.errors import CallError, show
from enrobe.text.ragged import Ids
from enrobe.text.tokenizer import Tokenizer
from enrobe.train.supervised import Array, TrainRow


@dataclass(frozen=True, kw_only=True)
class AugmentTable:
    """Rows without labels; one of them goes along with each labelled row.

    Raises:
        CallError: a value is not allowed.
    """

    copies: int = 0
    # different ones of each row with other words, in turn by epoch
    words: float = 0.2
    # the share of a row's words that others take the place of
    files: tuple[Path, ...] = ()
    # texts of the same kind: txt, jsonl, csv, tsv, parquet, gz and xz of these; patterns
    column: str | None = None
    # that holds the text; None: "text", or the only one

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.copies or self.files)

    def __post_init__(self) -> None:
        if self.copies < 0:
            raise CallError(f"copies is {show(self.copies)}; allowed: 0 or more")
        if not 0 < self.words <= 1:
            raise CallError(f"words is {show(self.words)}; allowed: above 0, up to 1")
        if self.column is not None and not self.files:
            raise CallError(f"column is {show(self.column)} and no files are given")


def other_words(
    rows: Sequence[TrainRow], tokenizer: Tokenizer, *, share: float, limit: int, seed: int
) -> list[TrainRow]:
    """As many rows, some of whose words are others; a row of special tokens alone stays.

    Targets are those of the rows that they were made from, whatever they now say.

    Args:
        rows: words begin where their spelling says so, and at a row's places.
        tokenizer: theirs.
        share: of words that are replaced; at least one of a row.
        limit: of a row in tokens; one that words of more pieces would make longer gets masks.
        seed: chooses which, and by what.
    """
    rng = np.random.default_rng(seed)
    starts = word_starts(tokenizer)
    cut = [_words(row, starts, tokenizer.special_ids) for row in rows]
    pool = [ids for words in cut for ids, special in words if not special]
    mask = np.array([tokenizer.mask_id], np.int64)
    made = []
    for row, words in zip(rows, cut, strict=True):
        own = [n for n, (_, special) in enumerate(words) if not special]
        hit = rng.random(len(own)) < share
        if own and not hit.any():
            hit[rng.integers(len(own))] = True
        new = [ids for ids, _ in words]
        places = np.array(own, np.int64)[hit]
        for n in places:
            new[n] = mask if rng.random() < 0.5 else pool[rng.integers(len(pool))]
        if sum(map(len, new)) > limit:
            for n in places:
                new[n] = mask
        made.append(_row(row, words, new))
    return made


def _words(
    row: TrainRow, starts: npt.NDArray[np.bool_], special_ids: Ids
) -> list[tuple[Ids, bool]]:
    """A row's words in order, each with whether it is a special token."""
    special = np.isin(row.ids, special_ids)
    begins = starts[row.ids] | special
    begins[1:] |= special[:-1]
    begins[row.places] = True
    begins[0] = True
    at = np.flatnonzero(begins)
    return list(zip(np.split(row.ids, at[1:]), special[at].tolist(), strict=True))


def _row(row: TrainRow, words: Sequence[tuple[Ids, bool]], new: Sequence[Ids]) -> TrainRow:
    before = np.cumsum([0, *(len(ids) for ids, _ in words)])
    after = np.cumsum([0, *map(len, new)])
    numbers = np.searchsorted(before, row.places)
    types = [np.full(len(ids), row.types[start]) for ids, start in zip(new, before, strict=False)]
    return replace(
        row,
        ids=np.concatenate(new).astype(row.ids.dtype),
        types=np.concatenate(types).astype(row.types.dtype),
        places=after[numbers].astype(row.places.dtype),
        soft={},
    )


def as_answered(row: TrainRow, soft: Mapping[str, Array], kinds: Mapping[str, str]) -> TrainRow:
    """The row with a teacher's answers, and the likeliest of them as its targets.

    Args:
        row: of other words.
        soft: by task, as `TrainRow.soft`.
        kinds: each task's; any but "answer".
    """
    targets = {}
    for name, logits in soft.items():
        kind, old = kinds[name], np.asarray(row.targets[name])
        if kind == "regress":
            found = logits
        elif kind == "multilabel":
            found = logits > 0
        else:
            found = logits.argmax(-1)
        targets[name] = np.asarray(found).astype(old.dtype).reshape(old.shape)
    return replace(row, targets=targets, soft=soft)
