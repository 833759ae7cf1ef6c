"""A model against a file: what `enrobe evaluate` runs."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from enrobe.config import SEQUENCE_KINDS
from enrobe.data.examples import Examples, TaskConfig, read_examples
from enrobe.data.guess import Guess, complete
from enrobe.errors import CallError, TextError, nearest, show
from enrobe.evaluate.confidence import confidences
from enrobe.evaluate.heads import LabelScore, label_scores, score_outputs
from enrobe.evaluate.intervals import Interval, intervals, plain
from enrobe.evaluate.metrics import calibration_error
from enrobe.evaluate.outputs import read_heads
from enrobe.evaluate.rows import Rows, as_number, read_rows
from enrobe.evaluate.similarity import (
    BitextReport,
    Embedding,
    Progress,
    StsReport,
    evaluate_bitext,
    evaluate_sts,
)
from enrobe.tasks.heads import choose
from enrobe.tasks.model import Model

Task = Literal["sts", "bitext"]
Report = StsReport | BitextReport
_Report = TypeVar("_Report", StsReport, BitextReport)


def evaluate_file(
    model: Model,
    data: str | os.PathLike[str],
    *,
    task: Task,
    text: Sequence[str],
    label: str | None = None,
    embedding: Embedding | None = None,
    progress: Progress | None = None,
) -> Report:
    """Evaluate a model on a file of rows.

    Args:
        data: csv, tsv, jsonl (gz and xz of them) or parquet.
        task: "sts" correlates the similarity of pairs with their scores; "bitext" looks for each
            text's other half among all of them.
        text: the names of the two text columns.
        label: for sts the column of scores.
        embedding: pool, layers, normalize, prompt as in `Model.embed`.
        progress: called now and then with how far it is.

    A row that cannot be read is left out; the report has their number, and the first one's error.

    Raises:
        CallError: an argument is wrong, or the file has no row that can be read.
        ModelError: the folder's sentence-transformers files cannot be used.
    """
    if task not in get_args(Task):
        hint = nearest(str(task), get_args(Task))
        raise CallError(f"task is {show(task)}; allowed: {', '.join(get_args(Task))}{hint}")
    if len(text) != 2 or text[0] == text[1]:
        raise CallError(f"task {task} takes two text columns, not {len(text)}; fix: --text A,B")
    if task == "sts" and label is None:
        raise CallError("task sts takes a column of scores; fix: --label C")
    if task == "bitext" and label is not None:
        raise CallError("task bitext takes no label; fix: leave out --label")
    rows = read_rows(Path(data), text, label)
    if task == "sts":
        rows, scores = scored(rows)
        done = evaluate_sts(
            model, pairs(rows), scores, embedding=embedding, errors="collect", progress=progress
        )
        return _with_errors(done, rows)
    done_bitext = evaluate_bitext(
        model, pairs(rows), embedding=embedding, errors="collect", progress=progress
    )
    return _with_errors(done_bitext, rows)


@dataclass(frozen=True)
class HeadReport:
    """Scores of one head on a labelled file, the usual one of its kind first."""

    head: str
    kind: str
    rows: int
    # with a label, that could be read
    scores: Mapping[str, Interval]
    labels: Mapping[str, LabelScore]
    # each by itself; of answers the questions with one and those without; of numbers none
    calibration: Interval | None
    # the expected calibration error; of numbers none
    skipped: int
    # rows that could not be read
    error: str | None
    # the first one's
    said: tuple[str, ...]
    # what was taken for granted
    majority: float | None = None
    # accuracy of giving the commonest label always, for classes and for tags of given words

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        values = {key: plain(value) for key, value in vars(self).items()}
        tables = {"scores": self.scores, "labels": self.labels}
        return values | {
            key: {name: plain(one) for name, one in table.items()} for key, table in tables.items()
        }


def evaluate_head(
    model: Model,
    data: str | os.PathLike[str],
    *,
    head: str | None = None,
    text: Sequence[str] = (),
    label: Sequence[str] = (),
) -> HeadReport:
    """Score a head of a model on a labelled file, with bootstrap intervals.

    Args:
        data: csv, tsv, jsonl, json (SQuAD's too), conll, conllu, parquet; gz and xz of them.
        head: its name; None: the only one.
        text: the text column, or the two of a pair; (): those that the head was trained on.
        label: its column; (): what the file leaves no doubt of.

    A row without a label is left out; one whose label the head does not know counts as wrong.

    Raises:
        CallError: an argument is wrong, or no row has a label and can be read.
        ModelError: the model has no head that was trained on labels.
    """
    name = choose(model.engine, head, (*SEQUENCE_KINDS, "tag", "answer"))
    guess, known = _read_as(model, data, name, text, label)
    examples = read_examples(guess.task, guess.task.train, labels=known)
    own = model.engine.heads[name]
    (outputs,) = read_heads(model.engine, model.tokenizer, [(name, examples)])
    done = score_outputs(own, outputs)
    found = intervals([*done.measures.values()])
    sure = confidences(own, outputs)
    unseen = tuple(
        f"{n} labels {show(key)} are none of the head's" for key, n in examples.unseen.items()
    )
    errors = [*(bad.error for bad in examples.bad), *([done.error] if done.error else [])]
    return HeadReport(
        head=name,
        kind=own.kind,
        rows=done.rows,
        scores=dict(zip(done.measures, found, strict=True)),
        labels=label_scores(own, outputs),
        calibration=calibration_error(*sure).interval() if len(sure[0]) else None,
        skipped=len(examples.bad) + done.skipped,
        error=errors[0] if errors else None,
        said=(*guess.said, *examples.said, *unseen),
        majority=_majority(model.engine.heads[name].kind, examples),
    )


def labelled(
    model: Model,
    data: str | os.PathLike[str],
    head: str,
    text: Sequence[str] = (),
    label: Sequence[str] = (),
) -> tuple[TaskConfig, tuple[str, ...]]:
    """How `evaluate_head` reads a file for a head: a task, and the labels that it knows.

    Raises:
        CallError: as `evaluate_head`.
    """
    guess, known = _read_as(model, data, head, text, label)
    return guess.task, known


def _read_as(
    model: Model,
    data: str | os.PathLike[str],
    head: str,
    text: Sequence[str],
    label: Sequence[str],
) -> tuple[Guess, tuple[str, ...]]:
    own = model.engine.heads[head]
    assert own.kind != "mlm"
    task = TaskConfig(
        kind=own.kind,
        train=(Path(data),),
        text=tuple(text) or own.text,
        label=tuple(label),
    )
    return complete(task), () if own.kind == "regress" else own.labels


def _majority(kind: str, examples: Examples) -> float | None:
    labelled = [row for row in examples if row.label is not None]
    labels: list[Any] = []
    if kind == "classify":
        labels = [row.label for row in labelled]
    elif kind == "tag" and all(row.words is not None for row in labelled):
        labels = [tag for row in labelled if isinstance(row.label, tuple) for tag in row.label]
    return Counter(labels).most_common(1)[0][1] / len(labels) if labels else None


def pairs(rows: Rows) -> list[tuple[str, str]]:
    """The two texts of every row."""
    return [(first, second) for first, second in rows.texts]


def scored(rows: Rows) -> tuple[Rows, list[float]]:
    """The rows whose label is a number, and those numbers.

    Raises:
        CallError: there are none.
    """
    kept = Rows(errors=list(rows.errors))
    scores = []
    for number, texts, label in zip(rows.numbers, rows.texts, rows.labels, strict=True):
        try:
            scores.append(as_number(label))
        except TextError as error:
            kept.errors.append(f"row {number}: {error}")
            continue
        kept.numbers.append(number)
        kept.texts.append(texts)
        kept.labels.append(label)
    if not scores:
        raise CallError(f"no row has a number for its score; the first: {kept.errors[0]}")
    return kept, scores


def _with_errors(report: _Report, rows: Rows) -> _Report:
    if not rows.errors:
        return report
    return replace(report, skipped=report.skipped + len(rows.errors), error=rows.errors[0])
