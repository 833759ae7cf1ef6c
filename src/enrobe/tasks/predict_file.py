"""A file's rows to what a model's heads say of each: what `enrobe predict` writes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from enrobe.config import SEQUENCE_KINDS, HeadConfig, HeadKind
from enrobe.data.records import Record, Records
from enrobe.data.streams import Stream
from enrobe.errors import CallError, TextError, nearest, show
from enrobe.tasks.answer import MAX_ANSWER, answer
from enrobe.tasks.heads import choose
from enrobe.tasks.model import Model
from enrobe.tasks.predict import heads_for, predict, predict_all
from enrobe.tasks.results import Answer, Prediction, Span
from enrobe.tasks.tag import tag
from enrobe.text.rows import Text

_LABELLED: tuple[HeadKind, ...] = (*SEQUENCE_KINDS, "tag", "answer")
_TEXT_COLUMNS = ("text", "tokens", "words", "sentence")
_ANSWER_COLUMNS = ("question", "context")
_NAMES_SHOWN = 20


@dataclass(frozen=True)
class Input:
    """One row: its text, or the two of a pair, or a question and its context."""

    parts: tuple[Text, ...]
    error: str | None = None

    @property
    def text(self) -> str:
        """All of it in one string."""
        return "\n".join(p if isinstance(p, str) else " ".join(p) for p in self.parts)


@dataclass(frozen=True)
class Predicted:
    """What is written of one row."""

    asked: dict[str, Any]
    # text, or question
    said: dict[str, Any]
    # of one sequence head the fields of its Prediction; spans, answers or heads of the others
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """One record of JSON lines."""
        return {**self.asked, **self.said, "error": self.error}

    @property
    def cut(self) -> bool:
        """Whether a row had no room for all of a text."""
        heads = self.said.get("heads", {}).values()
        return any(isinstance(s, dict) and s.get("cut") for s in (self.said, *heads))


class Inputs:
    """The rows of a file, or of standard input; `share` tells how much of it is read."""

    def __init__(self, path: str, columns: Sequence[str], wanted: Sequence[str]) -> None:
        """Open a file.

        Args:
            path: what `data.records` reads; "-" is standard input: a text a line, or JSON lines
                where several columns, or any, are named.
            columns: the columns that are named in the call; (): `wanted`, or a usual name.
            wanted: those that the head was trained on, or needs.

        Raises:
            CallError: no such file; while reading: no such column.
        """
        self._columns = tuple(columns)
        self._wanted = tuple(wanted)
        self._source: Records | Stream = Stream(None) if path == "-" else Records(path)
        self.name = self._source.name

    @property
    def share(self) -> float | None:
        """How much of the file has been read, 0 to 1; None where the size is not known."""
        return self._source.share

    def __iter__(self) -> Iterator[Input]:
        records = iter(self._records())
        # The first row that can be read tells which columns there are.
        waiting: list[Record] = []
        for record in records:
            waiting.append(record)
            if record.error is None:
                break
        readable = bool(waiting) and waiting[-1].error is None
        columns = self._chosen(waiting[-1].values) if readable else self._columns
        for record in chain(waiting, records):
            yield _input(record, columns)

    def _records(self) -> Iterator[Record]:
        if isinstance(self._source, Records):
            yield from self._source
            return
        as_json = bool(self._columns) or len(self._wanted) > 1
        for number, line, wrong in self._source.lines():
            if wrong or not as_json:
                yield Record(number, {"text": line}, wrong)
            elif line.strip():
                try:
                    values = json.loads(line)
                    if not isinstance(values, dict):
                        raise ValueError(f"holds {type(values).__name__}")
                    yield Record(number, values)
                except (ValueError, RecursionError) as error:
                    yield Record(number, {}, f"line {number}: not a JSON object ({error})")

    def _chosen(self, there: Mapping[str, Any]) -> tuple[str, ...]:
        has = ", ".join(list(there)[:_NAMES_SHOWN])
        needed = self._columns or (self._wanted if len(self._wanted) > 1 else ())
        for name in needed:
            if name not in there:
                fix = "" if self._columns else "; fix: --text A,B"
                hint = nearest(name, there)
                raise CallError(f"{self.name}: no column {name!r}; it has: {has}{hint}{fix}")
        if needed:
            return needed
        if self._wanted and self._wanted[0] in there:
            return self._wanted
        for name in _TEXT_COLUMNS:
            if name in there:
                return (name,)
        if len(there) == 1:
            return tuple(there)
        raise CallError(f"{self.name}: which column is the text? it has: {has}; fix: --text NAME")


def _input(record: Record, columns: Sequence[str]) -> Input:
    if record.error is not None:
        shown = tuple(str(record.values.get(name, "")) for name in columns) or ("",)
        return Input(shown, record.error)
    parts: list[Text] = []
    error = None
    for name in columns:
        value: Any = record.values.get(name)
        words = isinstance(value, list) and all(isinstance(word, str) for word in value)
        if words or isinstance(value, str):
            parts.append(value)
        else:
            parts.append("")
            has = f"is {show(value)}" if name in record.values else "is missing"
            error = f"row {record.number}: column {name!r} {has}; allowed: a string or words"
    return Input(tuple(parts), error)


class FilePredictor:
    """What a model says of rows, by one head or by all."""

    def __init__(self, model: Model, head: str | None, columns: Sequence[str] = ()) -> None:
        """Choose the heads.

        Args:
            model: it has a head that was trained on labels.
            head: its name; None: all of them, or the only one.
            columns: the columns that are named in the call.

        Raises:
            CallError: no such head; not as many columns as it reads.
            ModelError: the model has no head that was trained on labels.
        """
        self._engine, self._tokenizer = model.engine, model.tokenizer
        heads = {n: h for n, h in model.engine.heads.items() if h.kind in _LABELLED}
        self.name: str | None = head
        if head is not None or len(heads) < 2 or all(h.kind == "answer" for h in heads.values()):
            self.name = choose(model.engine, head, _LABELLED)
        self._head: HeadConfig | None = None if self.name is None else heads[self.name]
        kind = self._head.kind if self._head else None
        self.wanted = self._columns_of(list(heads.values()), columns)
        count = len(columns) or len(self.wanted) or 1
        allowed = {"answer": (2,), "tag": (1,)}.get(str(kind), (1, 2))
        if count not in allowed:
            what = "question and context" if kind == "answer" else "one text column"
            raise CallError(f"--text names {show(list(columns))}; a {kind} head reads {what}")
        self._pairs = count == 2
        if self.name is None:
            heads_for(model.engine, pairs=self._pairs)

    def _columns_of(self, heads: Sequence[HeadConfig], named: Sequence[str]) -> tuple[str, ...]:
        if self._head is not None:
            usual = _ANSWER_COLUMNS if self._head.kind == "answer" else ()
            return self._head.text or usual
        # All heads in one pass read the same columns: those of most of them.
        known = [head.text for head in heads if head.text and head.kind != "answer"]
        return max(known, key=known.count) if known and not named else ()

    def run(self, rows: Sequence[Input]) -> list[Predicted]:
        """What is said of each row."""
        firsts = [row.parts[0] for row in rows]
        seconds = [row.parts[1] for row in rows] if self._pairs else None
        found: Sequence[Any]
        if self.name is None:
            found = predict_all(self._engine, self._tokenizer, firsts, seconds)
        elif self._head is not None and self._head.kind == "tag":
            found = tag(self._engine, self._tokenizer, firsts, self.name)
        elif self._head is not None and self._head.kind == "answer":
            asked, contexts = ([_joined(t) for t in ts] for ts in (firsts, seconds or ()))
            found = answer(
                self._engine, self._tokenizer, asked, contexts, self.name, max_answer=MAX_ANSWER
            )
        else:
            assert self.name is not None
            found = predict(self._engine, self._tokenizer, firsts, seconds, self.name)
        return [
            self.failed(row, str(one)) if isinstance(one, TextError) else self._said(row, one)
            for row, one in zip(rows, found, strict=True)
        ]

    def failed(self, row: Input, error: str | None = None) -> Predicted:
        """What is written of a row that cannot be processed."""
        kind = self._head.kind if self._head else None
        empty = {None: "heads", "tag": "spans", "answer": "answers"}.get(kind)
        said: dict[str, Any]
        if empty is not None:
            said = {empty: {} if kind is None else []}
        else:
            said = _fields(Prediction.failed(str(self.name), ""))
        return Predicted(self._asked(row), said, error or row.error)

    def _asked(self, row: Input) -> dict[str, Any]:
        if self._head is not None and self._head.kind == "answer":
            return {"question": row.parts[0]}
        return {"text": row.parts[0] if len(row.parts) == 1 else list(row.parts)}

    def _said(self, row: Input, found: Any) -> Predicted:
        asked = self._asked(row)
        if isinstance(found, Prediction):
            return Predicted(asked, _fields(found))
        if isinstance(found, dict):
            return Predicted(asked, {"heads": {name: _plain(one) for name, one in found.items()}})
        key = "answers" if self._head and self._head.kind == "answer" else "spans"
        return Predicted(asked, {key: _plain(found)})


def _plain(found: Prediction | Sequence[Span | Answer]) -> Any:
    return _fields(found) if isinstance(found, Prediction) else [_fields(one) for one in found]


def _fields(found: Prediction | Span | Answer) -> dict[str, Any]:
    """The fields of a result; its error is the row's."""
    return {key: value for key, value in found.to_dict().items() if key != "error"}


def _joined(text: Text) -> str:
    return text if isinstance(text, str) else " ".join(text)
