"""What is in labelled files, and what is wrong with them, before anything is trained.

Two texts are the same here where they differ by case and spaces at most; a pair where both of its
parts are.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from enrobe import hub
from enrobe.checkpoint import read_json
from enrobe.data.examples import TaskConfig
from enrobe.data.guess import guess_task
from enrobe.data.label_sets import LabelSet, in_order
from enrobe.data.labels import Kind
from enrobe.errors import EnrobeError, show
from enrobe.settings import read_config
from enrobe.tasks.data_counts import Counting, FileCounts, Spread, TokenSpread
from enrobe.text.tokenizer import Tokenizer

# A label with fewer rows is hard to learn, and a share of the dev set says little.
_FEW = 5
_NAMES_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """One file."""

    file: str
    role: str
    # train or dev
    rows: int
    # that could be read
    bad: int
    # that could not
    unlabelled: int
    empty: int
    # the text, or a part of a pair, is blank
    duplicates: int
    # rows whose text an earlier one has, too
    conflicts: int
    # those of them that have another label than that one
    labels: dict[str, int]
    # how many rows have each; of tags how many words, of spans how many spans
    numbers: Spread | None
    # the labels, where they are numbers
    characters: Spread | None
    # lengths; of a pair both parts together
    tokens: TokenSpread | None


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Texts of a dev file that a training file has, too; each counts once."""

    train: str
    dev: str
    texts: int
    other_label: int
    # those of them that have another label there
    parts: int | None
    # contexts (answer), or first texts (of pairs), that both have


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """All files of a task."""

    kind: Kind
    text: tuple[str, ...]
    label: tuple[str, ...]
    files: tuple[FileReport, ...]
    overlaps: tuple[Overlap, ...]
    bad_rows: tuple[dict[str, Any], ...]
    # the first of each file: file, row, error
    tokenizer: str | None
    # the model whose tokens are counted
    said: tuple[str, ...]
    # what was taken for granted
    warnings: tuple[str, ...]
    # what should be looked at

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return asdict(self)


def report_data(
    paths: Sequence[Path],
    dev: Sequence[Path] = (),
    *,
    kind: Kind | None = None,
    text: Sequence[str] = (),
    label: Sequence[str] = (),
    format: str | None = None,
    columns: Sequence[str] = (),
    model: str | os.PathLike[str] | None = None,
) -> DataReport:
    """Look at labelled files.

    Args:
        paths: the training files.
        dev: files to be measured on.
        kind: of the task; kind and columns are found in the first file where there is no doubt.
        text: a column, or the two of a pair.
        label: a column; for multilabel also one of 0 and 1 for each label.
        format: a name of records.FORMATS; None: by the files' names.
        columns: names for those of files without a header.
        model: whose tokenizer counts tokens; None: $ENROBE_MODEL, else the built-in one.

    Raises:
        CallError: no such file or column, or doubt.
        HubError, ModelError: `model` is given and has no tokenizer that can be read.
    """
    more = {"format": format, "columns": tuple(columns)}
    guess = guess_task(paths, kind=kind, text=text, label=label, **more)
    task, said = guess.task, [*guess.said]
    counting = _counting(model, said)
    train = [FileCounts(task, path, "train", said) for path in paths]
    held = [FileCounts(task, path, "dev", said) for path in dev]
    every = [*train, *held]
    spans = any(file.spans for file in every)
    found = sum((file.labels for file in train), Counter[str]())
    labels = LabelSet(task.kind, found, allowed=task.all_labels, spans=spans)
    said += labels.said
    files, warnings = [], [*_label_warnings(task, labels)]
    for file in every:
        known = labels.names if file in held else ()
        own = LabelSet(task.kind, file.labels, allowed=task.all_labels, known=known, spans=spans)
        counts = file.labels if task.kind == "answer" else own.counts
        report = _file_report(file, counts, counting)
        files.append(report)
        warnings += _file_warnings(task, report, own)
    overlaps = [_overlap(a, b) for a in train for b in held]
    warnings += [line for overlap in overlaps for line in _overlap_warnings(task, overlap)]
    bad = [(file.path, row) for file in every for row in file.bad_rows]
    return DataReport(
        kind=task.kind,
        text=task.text,
        label=task.label,
        files=tuple(files),
        overlaps=tuple(overlaps),
        bad_rows=tuple({"file": str(p), "row": r.number, "error": r.error} for p, r in bad),
        tokenizer=counting.name if counting else None,
        said=tuple(said),
        warnings=tuple(warnings),
    )


def _counting(model: str | os.PathLike[str] | None, said: list[str]) -> Counting | None:
    """The tokenizer of a model; where none is named, it may be missing."""
    try:
        folder = hub.resolve(model)
        config = read_config(read_json(folder / "config.json")).encoder
        tokenizer = Tokenizer.from_folder(folder, config.family, config.vocab_size)
    except EnrobeError as error:
        if model is not None:
            raise
        said.append(f"tokens are not counted: {error}")
        return None
    return Counting(tokenizer, config.max_tokens, str(model or folder.name))


def _file_report(file: FileCounts, counts: dict[str, int], counting: Counting | None) -> FileReport:
    return FileReport(
        file=str(file.path),
        role=file.role,
        rows=file.rows,
        bad=file.bad,
        unlabelled=file.unlabelled,
        empty=file.empty,
        duplicates=file.duplicates,
        conflicts=file.conflicts,
        labels={name: counts[name] for name in in_order(counts)},
        numbers=file.numbers(),
        characters=file.characters(),
        tokens=file.tokens(counting) if counting else None,
    )


def _overlap(train: FileCounts, dev: FileCounts) -> Overlap:
    texts, other, parts = dev.overlap(train)
    return Overlap(
        train=str(train.path), dev=str(dev.path), texts=texts, other_label=other, parts=parts
    )


# --- what should be looked at ---------------------------------------------------------------------


def _label_warnings(task: TaskConfig, labels: LabelSet) -> list[str]:
    out = []
    if task.kind == "classify" and len(labels.counts) == 1:
        out.append(f"one label only: {show(next(iter(labels.counts)))}")
    alike: dict[str, list[str]] = {}
    for name in labels.counts:
        alike.setdefault(name.casefold(), []).append(name)
    for names in alike.values():
        if len(names) > 1:
            shown = " and ".join(show(name) for name in sorted(names))
            out.append(f"labels that differ by case alone: {shown}")
    rare = [name for name, count in labels.counts.items() if count < _FEW]
    if rare and task.kind != "answer":
        out.append(f"{_number(len(rare), 'label')} with fewer than {_FEW} rows: {_few(rare)}")
    return out


def _file_warnings(task: TaskConfig, file: FileReport, labels: LabelSet) -> list[str]:
    out = []
    if file.bad:
        out.append(f"{file.bad:,} of {file.rows + file.bad:,} rows cannot be read")
    if file.rows and file.unlabelled == file.rows and task.label:
        out.append("no row has a label")
    elif file.unlabelled and task.label:
        out.append(f"{_number(file.unlabelled, 'row')} without a label")
    if file.empty:
        out.append(f"{_number(file.empty, 'row')} with a blank text")
    if file.conflicts:
        out.append(
            f"{_number(file.conflicts, 'row')} with the text of another row and another label"
        )
    if labels.unseen:
        out.append(f"labels that train lacks: {_few(labels.unseen)}")
    if file.tokens and file.tokens.over_limit:
        over = f"{file.tokens.over_limit:,} of {file.tokens.rows:,} rows"
        read = "are read in windows" if task.kind in ("tag", "answer") else "are cut"
        out.append(f"{over} are longer than {file.tokens.limit} tokens and {read}")
    return [f"{file.file}: {line}" for line in out]


def _overlap_warnings(task: TaskConfig, overlap: Overlap) -> list[str]:
    out = []
    if overlap.texts:
        other = f", {overlap.other_label:,} with another label" if overlap.other_label else ""
        out.append(f"{_number(overlap.texts, 'text')} stand in {overlap.train}, too{other}")
    if overlap.parts:
        what = "context" if task.kind == "answer" else "first text"
        out.append(f"{_number(overlap.parts, what)} of pairs stand in {overlap.train}, too")
    return [f"{overlap.dev}: {line}" for line in out]


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _few(names: Sequence[str] | dict[str, int]) -> str:
    shown = ", ".join(show(name) for name in list(names)[:_NAMES_SHOWN])
    return shown + (", …" if len(names) > _NAMES_SHOWN else "")
