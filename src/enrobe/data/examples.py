"""Labelled files to examples: what a task reads, one row of it, and all rows with their labels."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

from enrobe.data import labels as values
from enrobe.data.label_sets import LabelSet, has_spans, label_names
from enrobe.data.labels import Kind, Label
from enrobe.data.records import Record, Records, looks_like_data
from enrobe.errors import CallError, TextError, nearest, show


class _OneOrMany:
    """Tells pydantic that a recipe may write one string where there can be several."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        one = handler.generate_schema(get_args(source)[0])
        alone = core_schema.no_info_after_validator_function(lambda value: (value,), one)
        return core_schema.union_schema([alone, handler(source)])


Paths = Annotated[tuple[Path, ...], _OneOrMany()]
Names = Annotated[tuple[str, ...], _OneOrMany()]


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One task: its files, what stands in their columns, and its part in the training.

    Where a tuple may stand, one string may, too: in a recipe and in Python.

    Raises:
        CallError: a value that is not allowed, or two that contradict each other.
    """

    kind: Kind
    train: Paths
    # may be () where nothing is trained
    dev: Paths = ()
    # (): a part of `train` is split off
    test: Paths = ()
    text: Names = ()
    # a column, or the two of a pair; answer: question and context; (): found in the file
    label: Names = ()
    # a column; multilabel: or one 0/1 column for each label; (): found in the file
    id: str | None = None
    # a column that names the row; None: "id", where there is one
    group: str | None = None
    # rows that are equal here stay together in a split
    format: str | None = None
    # a name of records.FORMATS; None: by the file's name
    columns: tuple[str, ...] = ()
    # names for a csv, tsv or CoNLL file without a header
    separator: str = ","
    # between several labels in one cell
    missing: Names = ()
    # further words that stand for no label
    labels: tuple[str, ...] = ()
    # all that are allowed, in the order of the head's outputs; (): those of `train`
    dev_share: float = 0.1
    # of the rows with a label, where no dev file is given
    head: str | None = None
    # tasks that name the same one share it; None: the task has its own
    weight: float = 1.0
    # of its loss
    metric: str | None = None
    # that the best checkpoint is chosen by; None: the kind's own

    def __post_init__(self) -> None:
        for name in ("train", "dev", "test"):
            object.__setattr__(self, name, tuple(Path(p) for p in _several(getattr(self, name))))
        for name in ("text", "label", "missing", "columns", "labels"):
            object.__setattr__(self, name, tuple(_several(getattr(self, name))))
        if self.kind not in get_args(Kind):
            allowed = ", ".join(get_args(Kind))
            hint = nearest(str(self.kind), get_args(Kind))
            raise CallError(f"kind is {show(self.kind)}; allowed: {allowed}{hint}")
        most = {"tag": 1}.get(self.kind, 2)
        if len(self.text) > most:
            raise CallError(f"text names {len(self.text)} columns; a {self.kind} task has {most}")
        if len(self.label) > 1 and self.kind != "multilabel":
            raise CallError(
                f"label names {len(self.label)} columns; allowed for kind multilabel, not "
                f"{self.kind}"
            )
        if self.kind == "answer" and len(self.text) == 1:
            raise CallError("text names 1 column; an answer task has two: question and context")
        if self.labels and self.kind in ("regress", "answer"):
            raise CallError(f"labels are given; a {self.kind} task has none")
        for name in ("label", "labels", "columns", "text"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise CallError(f"{name} is {show(values)}; the same one stands there twice")
        if not self.separator:
            raise CallError("separator is ''; allowed: one character or more")
        if not 0 < self.dev_share < 1:
            raise CallError(f"dev_share is {show(self.dev_share)}; allowed: above 0, below 1")
        if not 0 < self.weight < math.inf:
            raise CallError(f"weight is {show(self.weight)}; allowed: above 0")

    @property
    def all_labels(self) -> tuple[str, ...]:
        """The labels that the configuration itself names; () where they are those of `train`."""
        return self.labels or (self.label if len(self.label) > 1 else ())


def _several(value: Any) -> Sequence[Any]:
    return (value,) if isinstance(value, str | Path) else value


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a labelled file."""

    number: int
    # the line (jsonl) or row of its file, from 1; of a CoNLL file the sentence
    text: str
    # the first text; of an answer task the question; words joined by single spaces
    pair: str | None = None
    # the second text; of an answer task the context
    words: tuple[str, ...] | None = None
    # the text as words, where the file has it so
    label: Label | None = None
    # by kind: see data/labels.py; None: the row has none
    id: str | None = None
    group: str | None = None
    # see TaskConfig
    file: int = 0
    # which of the files it is from


class BadRow(NamedTuple):
    """A row that could not be read."""

    file: int
    number: int
    error: str


@dataclass(frozen=True, eq=False)
class Examples(Sequence[Example]):
    """The rows of a task's files that could be read, in their order, and their labels."""

    rows: tuple[Example, ...]
    labels: tuple[str, ...] = ()
    # in the order of the head's outputs; () for regress and answer. For spans the tags of BIO
    bad: tuple[BadRow, ...] = ()
    unseen: Mapping[str, int] = field(default_factory=dict)
    # labels that rows have and `labels` has not, with their counts
    said: tuple[str, ...] = ()
    # what was taken for granted, in sentences to print

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.rows)


def read_examples(
    task: TaskConfig,
    paths: Sequence[Path],
    *,
    labels: Sequence[str] = (),
    labelled: bool = True,
) -> Examples:
    """Read files of a task.

    Args:
        task: its columns; `text` and `label` are filled in (see guess.complete).
        paths: the files.
        labels: those that another file has, for a dev set: rows with others are kept and counted
            in `unseen`. Where `task.labels` says which are allowed, rows with others are bad.
        labelled: False: the label column need not be there.

    Raises:
        CallError: no such column, or no row that can be read.
    """
    rows: list[Example] = []
    bad: list[BadRow] = []
    said: list[str] = []
    for file, path in enumerate(paths):
        for row in each_example(task, path, file=file, labelled=labelled, said=said):
            (rows if isinstance(row, Example) else bad).append(row)  # type: ignore[arg-type]
    if not rows:
        names = ", ".join(str(path) for path in paths)
        first = f"no row can be read; the first: {bad[0].error}" if bad else "no rows"
        raise CallError(f"{names}: {first}")
    settled = LabelSet(
        task.kind,
        Counter(name for row in rows for name in label_names(row.label)),
        allowed=task.all_labels,
        known=labels,
        spans=any(has_spans(row.label) for row in rows),
    )
    if settled.changed:
        rows = [replace(row, label=settled.rename(row.label)) for row in rows]
    if settled.refused:
        good = [(row, settled.wrong(row.label)) for row in rows]
        for row, wrong in good:
            bad += [BadRow(row.file, row.number, f"row {row.number}: {wrong}")] if wrong else []
        rows = [row for row, wrong in good if not wrong]
        if not rows:
            raise CallError(f"{paths[0]}: no row can be read; the first: {bad[0].error}")
    said += settled.said
    return Examples(tuple(rows), settled.names, tuple(bad), settled.unseen, tuple(said))


def each_example(
    task: TaskConfig,
    path: Path,
    *,
    file: int = 0,
    labelled: bool = True,
    said: list[str] | None = None,
) -> Iterator[Example | BadRow]:
    """The rows of one file in constant memory, labels as they stand there (see `LabelSet`).

    Raises:
        CallError: as `read_examples`; a column is known to be missing with the first row, or for
            JSON at the end.
    """
    assert task.text, "the columns are not known"
    records = Records(path, format=task.format, columns=task.columns)
    reader = _Reader(task, file)
    for record in records:
        if reader.count == 0 and records.format not in ("json", "jsonl") and not record.error:
            reader.check(records.name, record.values, labelled)
        yield reader.read(record)
    if said is not None:
        said += records.notes
        if reader.repaired:
            said.append(
                f"{records.name}: {reader.repaired} answers stood elsewhere in their context than "
                "the file says; their places were put right"
            )
    if reader.sample is not None:
        known = dict.fromkeys((*reader.seen, *reader.sample))
        reader.check(records.name, known, labelled)


class _Reader:
    """Records of one file to examples."""

    def __init__(self, task: TaskConfig, file: int) -> None:
        self._task, self._file = task, file
        self._missing = {*task.missing, *(("-",) if task.label == ("gold_label",) else ())}
        self.count = self.repaired = 0
        self.seen: set[str] = set()
        # which of the task's columns a record had
        self.sample: Mapping[str, Any] | None = None
        # the first record that could be read, for its columns

    def check(self, name: str, columns: Mapping[str, Any], labelled: bool) -> None:
        wanted = [*self._task.text, *(self._task.label if labelled else ())]
        if labelled and not self._task.label and self._task.kind == "answer":
            wanted += ["answers"] if "answer" not in columns else []
        for column in wanted:
            if column not in columns:
                raise missing_column(name, column, columns)

    def read(self, record: Record) -> Example | BadRow:
        self.count += 1
        if record.error:
            return BadRow(self._file, record.number, record.error)
        if self.sample is None:
            self.sample = record.values
        try:
            return self._example(record)
        except TextError as error:
            return BadRow(self._file, record.number, f"row {record.number}: {error}")

    def _example(self, record: Record) -> Example:
        task, row = self._task, record.values
        if len(self.seen) < len(task.text) + len(task.label):
            self.seen.update(name for name in (*task.text, *task.label) if name in row)
        text, words = _text(row, task.text[0], cells=task.kind == "tag")
        pair = _text(row, task.text[1])[0] if len(task.text) == 2 else None
        label: Label | None = None
        if task.kind == "answer":
            assert pair is not None
            label, repaired = self._answers(row, pair)
            self.repaired += repaired
        elif self._is_missing(row):
            pass
        elif task.kind == "tag":
            label, words = values.tags(row.get(task.label[0]), text, words)
        elif len(task.label) > 1:
            label = values.marked({name: row.get(name) for name in task.label})
        elif task.kind == "multilabel":
            label = values.several(row.get(task.label[0]), task.separator)
        elif task.kind == "classify":
            label = values.one_label(row.get(task.label[0]))
        else:
            label = values.number(row.get(task.label[0]))
        return Example(
            number=record.number,
            text=" ".join(words) if words is not None else text,
            pair=pair,
            words=words,
            label=label,
            id=_name(row, task.id or "id"),
            group=_name(row, task.group) if task.group else None,
            file=self._file,
        )

    def _is_missing(self, row: Mapping[str, Any]) -> bool:
        if not self._task.label:
            return True
        if not self._missing:
            return False
        cells = [row.get(name) for name in self._task.label]
        return all(
            isinstance(cell, str | int | float) and values.one_label(cell) in self._missing
            for cell in cells
        )

    def _answers(self, row: Mapping[str, Any], context: str) -> tuple[Label | None, bool]:
        column = self._task.label[0] if self._task.label else "answers"
        if column not in row and not self._task.label:
            column = "answer"
        impossible = values.one_label(row.get("is_impossible"))
        return values.answers(
            row.get(column),
            row.get("answer_start"),
            context,
            impossible=str(impossible).lower() in ("true", "1"),
        )


def _text(
    row: Mapping[str, Any], name: str, *, cells: bool = False
) -> tuple[str, tuple[str, ...] | None]:
    """A text and, where the file has it as words, these."""
    if name not in row:
        shown = ", ".join(list(row)[:20])
        raise TextError(f"no column {name!r}; it has: {shown}{nearest(name, row)}")
    value = row[name]
    words: tuple[str, ...] | None = None
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        words = tuple(value)
    elif isinstance(value, str) and cells:
        words = values.as_words(value)
    text = " ".join(words) if words is not None else value
    if not isinstance(text, str):
        raise TextError(f"column {name!r} is {show(value)}; allowed: a text or a list of words")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            wrong = f"half of a surrogate pair (character {error.start})"
            raise TextError(f"column {name!r} holds {wrong}; not valid Unicode") from None
    return text, words


def _name(row: Mapping[str, Any], column: str) -> str | None:
    value = row.get(column)
    return None if value is None or isinstance(value, list | dict) else str(value)


def missing_column(name: str, column: str, columns: Iterable[str]) -> CallError:
    """The error of a file without a column."""
    names = [str(known) for known in columns]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    hint = nearest(column, names)
    if not hint and looks_like_data(names):
        hint = (
            "; if the first line is no header: --columns text,label (in a recipe: columns = [...])"
        )
    return CallError(
        f"{name}: no column {show(column)}; it has: {', '.join(names[:20])}{more}{hint}"
    )
