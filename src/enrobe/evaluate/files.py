"""A model against a file: what `enrobe evaluate` runs."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar, get_args

from enrobe.errors import CallError, TextError, nearest, show
from enrobe.evaluate.rows import Rows, as_number, read_rows
from enrobe.evaluate.similarity import (
    BitextReport,
    Embedding,
    Progress,
    StsReport,
    evaluate_bitext,
    evaluate_sts,
)
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
