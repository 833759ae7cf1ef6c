"""What is counted while a labelled file is read: of a text no more than a hash is kept, but for a
sample that is tokenized.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from enrobe.data.examples import BadRow, Example, TaskConfig, each_example
from enrobe.data.label_sets import has_spans, label_names
from enrobe.data.labels import Label
from enrobe.data.splits import text_key
from enrobe.errors import TextError
from enrobe.text.rows import encode_texts
from enrobe.text.tokenizer import Tokenizer

# Rows that are tokenized, drawn at random; of long texts fewer.
_SAMPLE = 2000
_SAMPLE_CHARACTERS = 2_000_000
_BAD_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How numbers are spread; p95: 95 of 100 are not above it."""

    least: float
    mean: float
    median: float
    p95: float
    most: float


@dataclass(frozen=True, kw_only=True)
class TokenSpread(Spread):
    """Lengths of rows in tokens, the special ones included."""

    rows: int
    # that were tokenized: all, or a sample and the longest one
    limit: int
    # the model's longest row
    over_limit: int
    # of those rows


@dataclass(frozen=True)
class Counting:
    """A tokenizer, the longest row of its model, and the model's name."""

    tokenizer: Tokenizer
    limit: int
    name: str


class FileCounts:
    """One file, read to its end."""

    def __init__(self, task: TaskConfig, path: Path, role: str, said: list[str]) -> None:
        """Read it.

        Args:
            task: its columns.
            path: the file.
            role: "train" or "dev"; a dev file need not have the label.
            said: gets what was taken for granted.
        """
        self.path, self.role, self._task = path, role, task
        self.rows = self.bad = self.unlabelled = self.empty = self.duplicates = self.conflicts = 0
        self.labels: Counter[str] = Counter()
        # of tags one a word, of spans one a span
        self.spans = False
        self.bad_rows: list[BadRow] = []
        # the first ones
        self._numbers: list[float] = []
        self._sizes: list[int] = []
        self._seen: dict[int, Any] = {}
        # hash of a text: its first label
        self._parts: set[int] = set()
        self._sample: list[Example] = []
        self._longest: Example | None = None
        # Which rows are tokenized is no secret, and the same ones each time.
        self._chance = random.Random(0)  # noqa: S311
        for row in each_example(task, path, labelled=role == "train", said=said):
            if isinstance(row, Example):
                self._add(row)
            else:
                self.bad += 1
                self.bad_rows += [row] if len(self.bad_rows) < _BAD_SHOWN else []

    def _add(self, row: Example) -> None:
        self.rows += 1
        size = len(row.text) + len(row.pair or "")
        self._sizes.append(size)
        if self._longest is None or size > len(self._longest.text) + len(self._longest.pair or ""):
            self._longest = row
        if len(self._sample) < _SAMPLE:
            self._sample.append(row)
        elif (place := int(self._chance.random() * self.rows)) < _SAMPLE:
            self._sample[place] = row
        self._add_label(row.label)
        if not row.text.strip() or (row.pair is not None and not row.pair.strip()):
            self.empty += 1
            return
        if row.pair is not None:
            self._parts.add(hash(_part(row, self._task)))
        key = hash(text_key(row))
        mark = _mark(row.label, self._task)
        if key not in self._seen:
            self._seen[key] = mark
            return
        self.duplicates += 1
        first = self._seen[key]
        if first is None:
            self._seen[key] = mark
        elif mark is not None and mark != first:
            self.conflicts += 1

    def _add_label(self, label: Label | None) -> None:
        if label is None:
            self.unlabelled += 1
        elif isinstance(label, str):
            self.labels[label] += 1
        elif isinstance(label, float):
            self._numbers.append(label)
        elif self._task.kind == "answer":
            self.labels["with an answer" if label else "without"] += 1
        else:
            self.labels.update(label_names(label))
            self.spans = self.spans or has_spans(label)

    def numbers(self) -> Spread | None:
        """The labels where they are numbers."""
        return _spread(self._numbers)

    def characters(self) -> Spread | None:
        """Lengths of rows in characters, both parts of a pair together."""
        return _spread(self._sizes)

    def tokens(self, counting: Counting) -> TokenSpread | None:
        """Lengths of rows in tokens."""
        rows, characters = [], 0
        for row in self._sample:
            characters += len(row.text) + len(row.pair or "")
            if characters <= _SAMPLE_CHARACTERS:
                rows.append(row)
        longest = self._longest
        # A text of many millions of characters would take minutes.
        if longest is not None and len(longest.text) + len(longest.pair or "") < _SAMPLE_CHARACTERS:
            rows += [] if any(row is longest for row in rows) else [longest]
        sizes = _token_counts(rows, counting)
        spread = _spread(sizes)
        if spread is None:
            return None
        return TokenSpread(
            **vars(spread),
            rows=len(sizes),
            limit=counting.limit,
            over_limit=sum(size > counting.limit for size in sizes),
        )

    def overlap(self, train: "FileCounts") -> tuple[int, int, int | None]:
        """Distinct texts that stand in another file, too; of them those with another label there;
        and distinct parts (see `_part`) that do.
        """
        same = self._seen.keys() & train._seen.keys()
        marks = ((self._seen[key], train._seen[key]) for key in same)
        other = sum(a != b for a, b in marks if a is not None and b is not None)
        parts = len(self._parts & train._parts) if self._parts and train._parts else None
        return len(same), other, parts


def _part(row: Example, task: TaskConfig) -> str | None:
    """What must not be on both sides of a split, either: a context, the first text of a pair."""
    return row.pair if task.kind == "answer" else row.text


def _mark(label: Label | None, task: TaskConfig) -> Any:
    """What two labels have in common that do not contradict each other, in little memory."""
    if task.kind == "answer" and label is not None:
        # Several people answer in other words; whether there is an answer is one or the other.
        return bool(label)
    return hash(label) if isinstance(label, tuple) else label


def _spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    array = np.array(values, np.float64)
    return Spread(
        least=float(array.min()),
        mean=round(float(array.mean()), 2),
        median=float(np.median(array)),
        p95=float(np.percentile(array, 95, method="higher")),
        most=float(array.max()),
    )


def _token_counts(rows: Sequence[Example], counting: Counting) -> list[int]:
    """Tokens of the rows that the tokenizer can read."""
    texts = [row.text if row.words is None else row.words for row in rows]
    paired = bool(rows) and rows[0].pair is not None
    found = encode_texts(
        counting.tokenizer,
        texts,
        [row.pair or "" for row in rows] if paired else None,
        limit=counting.limit,
        special=False,
    )
    return [len(row.ids) + row.cut for row in found if not isinstance(row, TextError)]
