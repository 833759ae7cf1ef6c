"""What heads put out for labelled rows: one pass of the encoder for all heads that share texts.

Scores, temperatures, thresholds and reports are made of it, by the code that predicts.

Legend: C outputs of a head, W words, K places of a row that an answer head answers for.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from enrobe.config import HeadConfig
from enrobe.data.examples import Example
from enrobe.engines.base import Array, Engine
from enrobe.errors import CallError, TextError, show
from enrobe.tasks.answer import Candidates, candidates_of
from enrobe.tasks.heads import longest_row, run_heads
from enrobe.tasks.predict import check_columns, prediction
from enrobe.tasks.results import Prediction
from enrobe.tasks.tag import merged, tags_of
from enrobe.text.rows import (
    Question,
    Row,
    Text,
    Words,
    encode_questions,
    encode_texts,
    encode_to_tag,
)
from enrobe.text.tokenizer import Tokenizer

_Key = tuple[str, str | None, tuple[str, ...] | None]


@dataclass(frozen=True, eq=False)
class Output:
    """A labelled row, how it was encoded, and a head's logits for it, before any temperature.

    Shapes: logits of a sequence head one array (C,), of a tag head one (W, C) with NaN for a word
    that is in no row, of an answer head one for each row of the question (K + 1, 2).
    """

    example: Example
    entry: Row | Words | Question
    logits: tuple[Array, ...]


@dataclass(frozen=True, eq=False)
class Outputs:
    """Those of one head for the labelled rows of a task that can be read."""

    name: str
    # the head's
    rows: tuple[Output, ...]
    errors: tuple[str, ...] = ()
    # of labelled rows that cannot be read


def read_heads(
    engine: Engine, tokenizer: Tokenizer, asked: Sequence[tuple[str, Sequence[Example]]]
) -> list[Outputs]:
    """Run heads on labelled rows; rows without a label are left out.

    Heads whose rows have texts in common, and whose longest row is the same, take one pass of the
    encoder over the texts of all.

    Args:
        engine: the model.
        tokenizer: its own.
        asked: (head, its rows).

    Raises:
        CallError: a head was trained on pairs and the rows are single texts, or the opposite; no
            row has a label and can be read.
    """
    groups: list[_Group] = []
    places = []
    for name, examples in asked:
        head = engine.heads[name]
        labelled = [example for example in examples if example.label is not None]
        if head.is_sequence and labelled:
            check_columns(name, head, pairs=labelled[0].pair is not None)
        joined = _Group(longest_row(engine, head), head.kind == "answer")
        keys = [_key(example) for example in labelled]
        for group in groups:
            if joined.like(group) and not group.keys.keys().isdisjoint(keys):
                joined = group
                break
        else:
            groups.append(joined)
        joined.add(name, head, keys)
        places.append((joined, name, labelled))
    for group in groups:
        group.run(engine, tokenizer)
    return [group.outputs(name, labelled) for group, name, labelled in places]


class _Group:
    """Heads that read the same texts, and these texts."""

    def __init__(self, limit: int, questions: bool) -> None:
        self.keys: dict[_Key, int] = {}
        self._limit, self._questions = limit, questions
        self._heads: dict[str, HeadConfig] = {}
        self._entries: Sequence[Row | Words | Question | TextError] = ()
        self._logits: list[dict[str, tuple[Array, ...]]] = []

    def like(self, other: "_Group") -> bool:
        return (self._limit, self._questions) == (other._limit, other._questions)

    def add(self, name: str, head: HeadConfig, keys: Iterable[_Key]) -> None:
        self._heads[name] = head
        for key in keys:
            self.keys.setdefault(key, len(self.keys))

    def run(self, engine: Engine, tokenizer: Tokenizer) -> None:
        if not self.keys:
            return
        texts: list[Text] = [text if words is None else words for text, _, words in self.keys]
        seconds = [pair or "" for _, pair, _ in self.keys]
        entries: Sequence[Row | Words | Question | TextError]
        if self._questions:
            questions = [text for text, _, _ in self.keys]
            entries = encode_questions(tokenizer, questions, seconds, limit=self._limit)
        elif any(head.kind == "tag" for head in self._heads.values()):
            entries = encode_to_tag(tokenizer, texts, limit=self._limit)
        else:
            paired = any(pair is not None for _, pair, _ in self.keys)
            entries = encode_texts(tokenizer, texts, seconds if paired else None, limit=self._limit)
        rows = [row for entry in entries for row in _rows(entry)]
        found = iter(run_heads(engine, rows, list(self._heads)))
        self._entries = entries
        for entry in entries:
            own = [next(found) for _ in _rows(entry)]
            self._logits.append(
                {
                    name: self._of(head, entry, [v[name] for v in own])
                    for name, head in self._heads.items()
                }
                if own
                else {}
            )

    def _of(self, head: HeadConfig, entry: Any, logits: Sequence[Array]) -> tuple[Array, ...]:
        if head.kind == "answer":
            return tuple(logits)
        # A sequence head reads the first window of a text that is tagged, too.
        return (merged(entry, logits),) if head.kind == "tag" else (logits[0],)

    def outputs(self, name: str, labelled: Sequence[Example]) -> Outputs:
        rows, errors = [], []
        for example in labelled:
            number = self.keys[_key(example)]
            entry = self._entries[number]
            if isinstance(entry, TextError):
                errors.append(str(entry))
            else:
                rows.append(Output(example, entry, self._logits[number][name]))
        if not rows:
            first = f"; the first: {errors[0]}" if errors else ""
            raise CallError(f"head {show(name)}: no row has a label and can be read{first}")
        return Outputs(name, tuple(rows), tuple(errors))


def _key(example: Example) -> _Key:
    return example.text, example.pair, example.words


def _rows(entry: Row | Words | Question | TextError) -> list[Row]:
    if isinstance(entry, TextError):
        return []
    return [entry] if isinstance(entry, Row) else entry.rows


# --- what they say ------------------------------------------------------------------------------


def said_once(name: str, head: HeadConfig, outputs: Outputs) -> list[Prediction]:
    """What a sequence head says of each row."""
    out = []
    for row in outputs.rows:
        first = row.entry.rows[0] if isinstance(row.entry, Words) else row.entry
        assert isinstance(first, Row)
        out.append(prediction(name, head, row.logits[0], first.cut))
    return out


def said_tags(head: HeadConfig, outputs: Outputs) -> list[tuple[Words, list[str]]]:
    """The words of each row, and a tag head's tag of each."""
    out = []
    for row in outputs.rows:
        assert isinstance(row.entry, Words)
        out.append((row.entry, tags_of(row.entry, row.logits[0], head.labels)))
    return out


def said_answers(head: HeadConfig, outputs: Outputs) -> list[Candidates]:
    """What an answer head finds in each row's context."""
    out = []
    for row in outputs.rows:
        assert isinstance(row.entry, Question)
        context = row.example.pair or ""
        out.append(candidates_of(row.entry, context, row.logits, head.temperature))
    return out
