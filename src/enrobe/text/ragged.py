"""The batch type: rows of token ids end to end, without padding.

Legend: T tokens of all rows, B rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Ragged:
    """A batch of rows of token ids.

    Shapes: ids (T,), types (T,), offsets (B+1,); row i is ids[offsets[i]:offsets[i+1]].
    No row is empty: even an empty text is a row of its special tokens.
    """

    ids: Ids
    offsets: Ids
    types: Ids
    # token types; all 0 where a family has none

    def __post_init__(self) -> None:
        assert self.ids.ndim == 1 and self.ids.shape == self.types.shape
        assert self.offsets.ndim == 1 and self.offsets[0] == 0
        assert self.offsets[-1] == len(self.ids)
        assert (np.diff(self.offsets) > 0).all()

    @classmethod
    def from_rows(
        cls, rows: Sequence[npt.ArrayLike], types: Sequence[npt.ArrayLike] | None = None
    ) -> Self:
        """Lay rows (and their token types, else zeros) end to end."""
        arrays = [np.asarray(row, dtype=np.int64) for row in rows]
        ids = np.concatenate([np.empty(0, np.int64), *arrays])
        if types is None:
            flat_types = np.zeros_like(ids)
        else:
            flat_types = np.concatenate(
                [np.empty(0, np.int64), *(np.asarray(row, dtype=np.int64) for row in types)]
            )
        return cls(ids, row_offsets([len(row) for row in arrays]), flat_types)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Ids:
        """Shapes: (B,)."""
        return np.diff(self.offsets)

    def row(self, index: int) -> Ids:
        """The ids of one row."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def positions(self, first: int) -> Ids:
        """Position ids (T,): every row counts up from `first` (EncoderConfig.position_offset)."""
        starts = np.repeat(self.offsets[:-1], self.lengths)
        return np.arange(len(self.ids), dtype=np.int64) - starts + first


def row_offsets(lengths: Sequence[int] | npt.NDArray[np.int64]) -> Ids:
    """Offsets (B+1,) of rows with these lengths."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))]).astype(np.int64)


def plan(
    lengths: Sequence[int] | npt.NDArray[np.int64], *, budget: int, max_rows: int | None = None
) -> list[npt.NDArray[np.intp]]:
    """Group rows of like length into batches, longest first; every row stands in one batch.

    A batch's rows times its longest row stay within `budget` (a longer row stands alone), so that
    the block which attention works on is bounded too, not only the sum of tokens.
    """
    array = np.asarray(lengths, dtype=np.int64)
    # A stable sort: the same input gives the same batches.
    order = np.argsort(-array, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = max(1, int(array[order[start]]))
        rows = max(1, budget // longest)
        if max_rows is not None:
            rows = min(rows, max_rows)
        batches.append(order[start : start + rows])
        start += rows
    return batches
