"""The labelled files of a recipe: read, encoded, and laid out as batches.

Legend: B rows of a batch, C labels.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np

from enrobe.config import HeadConfig
from enrobe.data.examples import Example, TaskConfig
from enrobe.data.masking import Masker
from enrobe.data.packing import Mixture, Place
from enrobe.data.splits import TaskData, load_task, text_key
from enrobe.errors import CallError
from enrobe.evaluate.intervals import Floats
from enrobe.text.ragged import Ids, Ragged
from enrobe.text.tokenizer import Tokenizer
from enrobe.train.finetune_recipe import (
    MASKED,
    FinetuneRecipe,
    FinetuneTable,
    MaskedLMTable,
    head_of,
    shares,
)
from enrobe.train.supervised import TrainRow, count_cut, encode
from enrobe.train.work import say

# Rows of a single text that are worth a remark.
_MANY = 20


def load_tasks(recipe: FinetuneRecipe) -> dict[str, TaskData]:
    """The files of every task; what was taken for granted is said.

    Raises:
        CallError: as `load_task`; nothing to measure on.
    """
    loaded: dict[str, TaskData] = {}
    for name, task in recipe.tasks.items():
        try:
            loaded[name] = data = load_task(task, seed=recipe.seed)
        except CallError as error:
            raise CallError(f"tasks.{name}: {error}") from None
        if all(row.label is None for row in data.dev):
            raise CallError(f"tasks.{name}: no row to measure on has a label")
        for line in data.said:
            say(f"{name}: {line}")
    for names in groups({name: data.task for name, data in loaded.items()}):
        # What one task is measured on, another one that reads the same files does not learn from.
        held = {text_key(r) for n in names if not recipe.tasks[n].dev for r in loaded[n].dev}
        for name in names if len(names) > 1 and held else ():
            train = loaded[name].train
            rows = tuple(row for row in train if text_key(row) not in held)
            loaded[name] = replace(loaded[name], train=replace(train, rows=rows))
    return loaded


def groups(tasks: Mapping[str, TaskConfig]) -> list[list[str]]:
    """Names of the tasks that read the same texts; one that answers questions stands alone."""
    found: dict[object, list[str]] = {}
    for name, task in tasks.items():
        key = (task.train, task.text, task.format, task.columns)
        found.setdefault(name if task.kind == "answer" else key, []).append(name)
    return list(found.values())


def fingerprint(paths: Sequence[Path]) -> list[str]:
    """Hashes of files' content."""
    found = []
    for path in paths:
        with path.open("rb") as file:
            found.append(hashlib.file_digest(file, "sha256").hexdigest())
    return found


class Plan:
    """The rows of all tasks and the batches that they make, each a function of its number."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        tasks: Mapping[str, TaskData],
        heads: Mapping[str, HeadConfig],
        table: FinetuneTable,
        *,
        limit: int,
        seed: int,
        masked_lm: MaskedLMTable | None = None,
    ) -> None:
        """Encode them.

        Args:
            tokenizer: the model's.
            tasks: their files, read.
            heads: each task's.
            table: how long and how wide.
            limit: the longest row in tokens.
            seed: chooses the order and the masks.
            masked_lm: how all texts are masked as one more source; None: they are not.

        Raises:
            CallError: a group of tasks has no row that can be read.
        """
        self.sources: dict[str, list[TrainRow]] = {}
        self.beside: dict[str, list[TrainRow]] = {}
        # rows of which one goes along with each of a source's, in turn; see `augment`
        for names in groups({name: data.task for name, data in tasks.items()}):
            title = " and ".join(names)
            given: dict[str, Sequence[Example]] = {name: tasks[name].train for name in names}
            encoded = encode(tokenizer, heads, given, limit=limit)
            if not encoded.rows:
                raise CallError(f"{title}: no row can be learned from")
            if encoded.cut:
                say(f"{title}: {encoded.cut} texts of train are longer than {limit} tokens; cut")
            if encoded.unreadable:
                say(f"{title}: {encoded.unreadable} texts of train cannot be read; left out")
            if encoded.most >= _MANY and encoded.most > len(encoded.rows) / 10:
                what = f"{encoded.most:,} of {len(encoded.rows):,} rows"
                say(f"{title}: one text of train fills {what}; is it meant to?")
            for name in names:
                if cut := count_cut(tokenizer, heads[name], tasks[name].dev.rows, limit=limit):
                    say(f"{name}: {cut} texts of dev are longer than {limit} tokens; cut")
            self.sources[title] = encoded.rows
        self._masker = None
        if masked_lm is not None:
            self._masker = Masker(masked_lm, tokenizer, seed=seed)
            self.sources[MASKED] = _texts(self.sources.values(), tokenizer)
        sizes = {name: len(rows) for name, rows in self.sources.items()}
        weights = shares(sizes, table)
        self._titles, self._rows = list(self.sources), list(self.sources.values())
        self._mixture = Mixture([*sizes.values()], [weights[name] for name in sizes], seed=seed)
        cap = table.sampling_cap
        self.epoch = sum(min(size, cap or size) for size in sizes.values())
        # rows that count as once through all data
        bounds = list(_bounds(max(1, ceil(self.epoch * table.epochs)), self._length, table))
        self._bounds = bounds
        self.steps = len(bounds) - 1
        self.steps_an_epoch = max(1, round(self.steps / table.epochs))

    def batch(self, step: int) -> list[TrainRow]:
        """The rows of a step."""
        places = [self._mixture.at(at) for at in range(self._bounds[step], self._bounds[step + 1])]
        if self._masker is None:
            rows = [self._rows[place.source][place.row] for place in places]
            return rows + [row for place in places for row in self._beside(place)]
        last = len(self._rows) - 1
        rows = [self._rows[place.source][place.row] for place in places if place.source < last]
        texts = [place for place in places if place.source == last]
        return rows + (self._masked(texts, step / self.steps) if texts else [])

    def _beside(self, place: Place) -> list[TrainRow]:
        """The row that goes along with one, if there are any."""
        rows = self.beside.get(self._titles[place.source])
        number = place.epoch * len(self._rows[place.source]) + place.row
        return [rows[number % len(rows)]] if rows else []

    def _masked(self, places: Sequence[Place], progress: float) -> list[TrainRow]:
        """Rows with masks, a function of the seed, the epoch and the row alone."""
        assert self._masker is not None
        rows = [self._rows[place.source][place.row] for place in places]
        batch = Ragged.from_rows([row.ids for row in rows])
        masked = self._masker(
            batch, [p.row for p in places], [p.epoch for p in places], progress=progress
        )
        bounds = np.searchsorted(masked.positions, batch.offsets)
        out = []
        for number, row in enumerate(rows):
            start, stop = batch.offsets[number], batch.offsets[number + 1]
            own = slice(bounds[number], bounds[number + 1])
            targets = {MASKED: masked.targets[own]}
            at = masked.positions[own] - start
            out.append(TrainRow(masked.ids[start:stop], row.types, at, targets))
        return out

    def used_words(self) -> Ids:
        """Ids that rows have, each once. Shapes: (U,)."""
        every = [*self._rows, *self.beside.values()]
        found: Ids = np.unique(np.concatenate([row.ids for rows in every for row in rows]))
        return found

    def class_counts(self, name: str, width: int) -> Floats:
        """How often each class of a classify or tag task is a target. Shapes: (C,)."""
        counts = np.zeros(width)
        for rows in self._rows:
            own = [row.targets[name].reshape(-1) for row in rows if name in row.targets]
            if own:
                counts += np.bincount(np.concatenate(own), minlength=width)
        return counts

    def _length(self, position: int) -> int:
        place = self._mixture.at(position)
        return len(self._rows[place.source][place.row].ids)


def _texts(sources: Iterable[Sequence[TrainRow]], tokenizer: Tokenizer) -> list[TrainRow]:
    """The different rows of all sources that have a token to mask, without targets."""
    found: dict[bytes, TrainRow] = {}
    for rows in sources:
        for row in rows:
            if not np.isin(row.ids, tokenizer.special_ids).all():
                bare = TrainRow(row.ids, row.types, row.places[:0])
                found.setdefault(row.ids.tobytes() + row.types.tobytes(), bare)
    if not found:
        raise CallError(f"{MASKED}: no text has a token that can be masked; fix: leave it out")
    return list(found.values())


def _bounds(total: int, length: Callable[[int], int], table: FinetuneTable) -> Iterator[int]:
    """The positions at which batches begin, and the end."""
    tokens = 0
    yield 0
    if table.batch_tokens is None:
        yield from range(table.rows, total, table.rows)
    else:
        for at in range(total):
            tokens += length(at)
            # The first row of a batch is in it, however long.
            if tokens > table.batch_tokens and tokens > length(at):
                yield at
                tokens = length(at)
    yield total


def all_labels(names: Sequence[str], tasks: Mapping[str, TaskData]) -> tuple[str, ...]:
    """The labels of a head that several tasks may share: those of the first, then others."""
    return tuple(dict.fromkeys(label for name in names for label in tasks[name].train.labels))


def tasks_of_heads(recipe: FinetuneRecipe) -> dict[str, list[str]]:
    """For each head the tasks that train it."""
    found: dict[str, list[str]] = {}
    for name, task in recipe.tasks.items():
        found.setdefault(head_of(name, task), []).append(name)
    return found
