"""Which columns hold text and label, and what kind of task it is, where a file leaves no doubt.

What is taken for granted is said in a sentence. Where there is doubt, the error lists the columns,
what is in them, and the line that settles it.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from enrobe.data.examples import TaskConfig, missing_column
from enrobe.data.labels import Kind, finite
from enrobe.data.records import Records
from enrobe.errors import CallError, show

# Rows that are looked at.
_ROWS = 2000
_PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question", "sentence"),
    ("#1 String", "#2 String"),
)
_TEXTS = ("text", "sentence", "tokens", "words", "utterance")
_LABELS = (
    *("label", "labels", "gold_label", "class", "intent", "category", "score", "Quality"),
    *("is_duplicate", "tags", "ner_tags", "pos_tags", "slots", "entities", "spans"),
)
_NAMES = ("id", "idx", "index", "guid", "uid", "pairID", "title", "lang", "language", "")
_ANSWERS = ("answers", "answer")
# More different words than this share of the rows are no classes.
_DIFFERENT = 0.5
_FEW_ROWS = 20
# The share of rows that decides; the others are bad rows.
_MOSTLY = 0.9


@dataclass(frozen=True)
class Guess:
    """A task with its columns, and the sentences that say what was not given."""

    task: TaskConfig
    said: tuple[str, ...]


def complete(task: TaskConfig) -> Guess:
    """Find the columns that a task leaves out.

    Raises:
        CallError: no such file, or there is doubt.
    """
    given = {name: getattr(task, name) for name in ("text", "label", "format", "columns")}
    files = (*task.train, *task.dev, *task.test)
    found = guess_task(files, kind=task.kind, **given)
    return Guess(replace(task, text=found.task.text, label=found.task.label), found.said)


def guess_task(
    paths: Path | Sequence[Path],
    *,
    kind: Kind | None = None,
    text: Sequence[str] = (),
    label: Sequence[str] = (),
    **rest: Any,
) -> Guess:
    """The task that files are made for.

    Args:
        paths: its training files; the first is looked at.
        kind, text, label: what is known.
        rest: other fields of TaskConfig.

    Raises:
        CallError: no such file, a column that it lacks, or doubt.
    """
    files = (paths,) if isinstance(paths, Path) else tuple(paths)
    if not files:
        raise CallError("no file is named; fix: --train FILE, or train = in the recipe")
    records = Records(files[0], format=rest.get("format"), columns=rest.get("columns", ()))
    file = _File(records)
    for name in (*text, *label):
        if name not in file.columns:
            raise missing_column(file.name, name, file.columns)
    answers = [name for name in _ANSWERS if name in file.columns]
    texts: tuple[str, ...] = tuple(text) or file.texts(kind, label)
    found = kind
    if kind is None and not label and texts == ("question", "context") and answers:
        found = "answer"
    if found == "answer":
        labels = tuple(label) or tuple(answers[:1])
    else:
        labels = tuple(label) or file.labels(kind, texts)
    found = found or file.kind(texts, labels)
    task = TaskConfig(kind=found, train=files, text=texts, label=labels, **rest)
    new = [
        *([] if kind else [f"kind {found}"]),
        *([] if text else [f"text {_names(texts)}"]),
        *([] if label else [f"label {_names(labels)}"] if labels else ["no label"]),
    ]
    said = (f"{file.name}: read as {', '.join(new)}",) if new else ()
    return Guess(task, said)


def _names(columns: Sequence[str]) -> str:
    return " and ".join(repr(name) for name in columns)


class _File:
    """What the first rows of a file hold."""

    def __init__(self, records: Records) -> None:
        self.name = records.name
        self.conll = records.format in ("conll", "conllu")
        self.rows = [dict(row.values) for row in islice(_good(records), _ROWS)]
        if not self.rows:
            raise CallError(f"{self.name}: no row can be read")
        self.columns = list(dict.fromkeys(name for row in self.rows for name in row))
        self.shapes = {name: _shape(self.values(name)) for name in self.columns}

    def values(self, name: str) -> list[Any]:
        found = (row.get(name) for row in self.rows)
        some = (value for value in found if value is not None and value != "")
        return [value for value in some if not (isinstance(value, float) and math.isnan(value))]

    def texts(self, kind: Kind | None, label: Sequence[str]) -> tuple[str, ...]:
        """The text columns, or CallError."""
        if self.conll:
            return ("tokens",)
        answers = any(name in self.columns for name in _ANSWERS) and not label
        both = {"question", "context"} <= {*self.columns}
        if both and (kind == "answer" or (kind is None and answers)):
            return ("question", "context")
        readable = ("text", "words")
        free = [n for n in self.columns if self.shapes[n] in readable and n not in label]
        pairs = [pair for pair in _PAIRS if {*pair} <= {*free} and kind != "tag"]
        paired = {name for pair in pairs for name in pair}
        singles = [(name,) for name in _TEXTS if name in free and name not in paired]
        found: list[tuple[str, ...]] = [*pairs, *singles]
        if not found:
            found = [(n,) for n in free if n not in (*_LABELS, *_NAMES)]
        if len(found) != 1:
            raise self._doubt("the text", "text", found)
        return found[0]

    def labels(self, kind: Kind | None, texts: Sequence[str]) -> tuple[str, ...]:
        """The label column, () where there is nothing but text, or CallError."""
        free = [name for name in self.columns if name not in texts]
        if self.conll:
            found = [name for name in free if self.shapes[name] == "words"]
            found = found if len(found) == 1 else [name for name in found if name in _LABELS]
        else:
            fit = [name for name in free if self._fits(name, kind, texts)]
            found = [name for name in fit if name in _LABELS]
            found = found or [name for name in fit if name not in _NAMES]
        if not found and all(name in _NAMES for name in free):
            return ()
        if len(found) != 1:
            raise self._doubt("the label", "label", [(name,) for name in found])
        return (found[0],)

    def _fits(self, name: str, kind: Kind | None, texts: Sequence[str]) -> bool:
        shape = self.shapes[name]
        if kind == "tag":
            return shape in ("words", "spans", "list") or self._tags_in(name, texts)
        if kind == "multilabel":
            return shape in ("words", "list", "text")
        if kind in ("classify", "regress"):
            return shape == "number" or (kind == "classify" and shape in ("text", "true or false"))
        return True

    def _tags_in(self, name: str, texts: Sequence[str]) -> bool:
        """Whether a cell has as many words as its text, and more than one."""
        if self.shapes[name] != "text" or len(texts) != 1 or self.shapes[texts[0]] != "text":
            return False
        cells = [(row.get(texts[0]), row.get(name)) for row in self.rows]
        pairs = [(a, b) for a, b in cells if isinstance(a, str) and isinstance(b, str) and b]
        sizes = [(len(text.split()), len(tags.split())) for text, tags in pairs]
        return _mostly(a == b for a, b in sizes) and any(b > 1 for _, b in sizes)

    def kind(self, texts: Sequence[str], labels: Sequence[str]) -> Kind:
        """What the label is made for, or CallError."""
        if not labels:
            return "classify"
        if len(labels) > 1:
            return "multilabel"
        (name,) = labels
        shape, values = self.shapes[name], self.values(name)
        if shape == "spans" or self.conll:
            return "tag"
        if shape == "words" or shape == "list":
            both = [(row.get(texts[0]), row.get(name)) for row in self.rows]
            lists = [(words, tags) for words, tags in both if isinstance(tags, list)]
            alike = (isinstance(words, list) and len(words) == len(tags) for words, tags in lists)
            return "tag" if _mostly(alike) else "multilabel"
        if shape == "true or false":
            return "classify"
        if shape == "number":
            return self._kind_of_numbers(name, values)
        if shape == "text":
            if self._tags_in(name, texts):
                return "tag"
            different = len({str(value) for value in values})
            if len(values) >= _FEW_ROWS and different > _DIFFERENT * len(values):
                raise self._doubt_of_kind(name, f"{different} different texts")
            return "classify"
        raise self._doubt_of_kind(name, shape)

    def _kind_of_numbers(self, name: str, values: Sequence[Any]) -> Kind:
        numbers = {float(value) for value in values if _what(value) == "number"}
        if not all(number.is_integer() for number in numbers):
            return "regress"
        if numbers <= set(range(max(2, len(numbers)))):
            return "classify"
        low, high = (int(f(numbers)) for f in (min, max))
        raise self._doubt_of_kind(name, f"whole numbers from {low} to {high}")

    def _doubt(self, what: str, option: str, found: Sequence[Sequence[str]]) -> CallError:
        shown = ", ".join(f"{name!r} ({self.shapes[name]})" for name in self.columns[:20])
        names = [",".join(names) for names in found] or ["COLUMN"]
        ways = " or ".join(f"--{option} {name}" for name in names[:3])
        first = ", ".join(f'"{name}"' for name in (found[0] if found else ("COLUMN",)))
        first = f"[{first}]" if "," in first else first
        return CallError(
            f"{self.name}: which column is {what}? it has: {shown}; fix: {ways} (in a recipe: "
            f"{option} = {first})"
        )

    def _doubt_of_kind(self, name: str, holds: str) -> CallError:
        return CallError(
            f"{self.name}: what kind of task? label {show(name)} holds {holds}; fix: --kind "
            'classify, or --kind regress, multilabel or tag (in a recipe: kind = "classify")'
        )


def _good(records: Records) -> Iterator[Any]:
    return (row for row in records if row.error is None)


def _shape(values: Sequence[Any]) -> str:
    """What a column holds, in a word or two; a bad row here and there changes nothing."""
    counts = Counter(_what(value) for value in values if value != [])
    if not counts:
        return "list" if values else "nothing"
    shape, count = counts.most_common(1)[0]
    if count >= _MOSTLY * counts.total():
        return shape
    return "text" if {*counts} <= {"text", "number"} else "values of several types"


def _what(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float | str) and finite(str(value)) is not None:
        return "number"
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        return "table"
    if all(isinstance(item, str) for item in value):
        return "words"
    return "spans" if all(_is_span(item) for item in value) else "list"


def _is_span(item: Any) -> bool:
    if isinstance(item, Mapping):
        return {"start", "end", "label"} <= {*item}
    return isinstance(item, list) and len(item) == 3 and isinstance(item[2], str)


def _mostly(flags: Iterable[bool]) -> bool:
    found = list(flags)
    return bool(found) and sum(found) >= _MOSTLY * len(found)
