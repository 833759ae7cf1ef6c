"""GLUE, SuperGLUE and XNLI from a folder of their official files, with the official metrics.

    GLUE       Wang et al. 2019a: nine tasks, dev files. Their mean; of a task with two metrics, and
               of MNLI's two files, these are averaged first
    SuperGLUE  Wang et al. 2019b: val.jsonl of eight tasks, averaged likewise. COPA and ReCoRD
               choose among candidates, which no head here does
    XNLI       Conneau et al. 2018: test, else dev; accuracy by language, and their mean

A task is scored by the head of its name, upper or lower case and signs aside: "sst2" is "SST-2".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from enrobe.config import HeadConfig
from enrobe.data.examples import Example, TaskConfig, read_examples
from enrobe.data.labels import Kind
from enrobe.data.records import Records
from enrobe.errors import CallError, nearest, show
from enrobe.evaluate.intervals import Floats, Interval, Measure, mean, plain
from enrobe.evaluate.metrics import outcomes, pearson, spearman
from enrobe.evaluate.outputs import Outputs, read_heads, said_once
from enrobe.tasks.model import Model

Suite = Literal["glue", "superglue", "xnli"]


@dataclass(frozen=True)
class SuiteTask:
    """One task of a suite, as its official files have it."""

    name: str
    files: tuple[str, ...]
    # each is scored, and the scores averaged; of "a|b" the first that is there
    text: tuple[str, ...]
    label: str
    metrics: tuple[str, ...]
    kind: Kind = "classify"
    positive: str = "1"
    # the label that F1 is of
    group: str | None = None
    # a column: rows that are right together (MultiRC), or scored apart (XNLI)
    refused: str = ""
    # why it cannot be scored


_A, _B = "sentence1", "sentence2"
GLUE = (
    SuiteTask("CoLA", ("CoLA/dev.tsv",), ("sentence",), "label", ("matthews",)),
    SuiteTask("SST-2", ("SST-2/dev.tsv",), ("sentence",), "label", ("accuracy",)),
    SuiteTask(
        "MRPC",
        ("MRPC/dev.tsv",),
        ("#1 String", "#2 String"),
        "Quality",
        ("f1", "accuracy"),
    ),
    SuiteTask("STS-B", ("STS-B/dev.tsv",), (_A, _B), "score", ("pearson", "spearman"), "regress"),
    SuiteTask(
        "QQP", ("QQP/dev.tsv",), ("question1", "question2"), "is_duplicate", ("f1", "accuracy")
    ),
    SuiteTask(
        "MNLI",
        ("MNLI/dev_matched.tsv", "MNLI/dev_mismatched.tsv"),
        (_A, _B),
        "gold_label",
        ("accuracy",),
    ),
    SuiteTask("QNLI", ("QNLI/dev.tsv",), ("question", "sentence"), "label", ("accuracy",)),
    SuiteTask("RTE", ("RTE/dev.tsv",), (_A, _B), "label", ("accuracy",)),
    SuiteTask("WNLI", ("WNLI/dev.tsv",), (_A, _B), "label", ("accuracy",)),
)
_CHOICE = "it chooses among candidates, and no head here does"
_NLI = ("premise", "hypothesis")
SUPERGLUE = (
    SuiteTask("BoolQ", ("BoolQ/val.jsonl",), ("question", "passage"), "label", ("accuracy",)),
    SuiteTask("CB", ("CB/val.jsonl",), _NLI, "label", ("accuracy", "macro_f1")),
    SuiteTask("COPA", ("COPA/val.jsonl",), (), "", (), refused=_CHOICE),
    SuiteTask(
        "MultiRC",
        ("MultiRC/val.jsonl",),
        ("passage", "question_answer"),
        "label",
        ("f1", "exact"),
        group="question",
    ),
    SuiteTask("ReCoRD", ("ReCoRD/val.jsonl",), (), "", (), refused=_CHOICE),
    SuiteTask("RTE", ("RTE/val.jsonl",), _NLI, "label", ("accuracy",)),
    SuiteTask("WiC", ("WiC/val.jsonl",), ("marked1", "marked2"), "label", ("accuracy",)),
    SuiteTask("WSC", ("WSC/val.jsonl",), ("marked",), "label", ("accuracy",)),
)
XNLI = (
    SuiteTask(
        "XNLI",
        ("xnli.test.tsv|XNLI-1.0/xnli.test.tsv|xnli.dev.tsv|XNLI-1.0/xnli.dev.tsv",),
        (_A, _B),
        "gold_label",
        ("accuracy",),
        group="language",
    ),
)
SUITES: Mapping[Suite, tuple[SuiteTask, ...]] = {
    "glue": GLUE,
    "superglue": SUPERGLUE,
    "xnli": XNLI,
}


@dataclass(frozen=True)
class PartScore:
    """Scores on one file, or in one language."""

    task: str
    part: str
    # the file's name, or the language
    head: str
    rows: int
    scores: Mapping[str, Interval]
    skipped: int
    # rows that could not be read, or have no label
    error: str | None
    # the first one's


@dataclass(frozen=True)
class SuiteReport:
    """What a model scores in a suite."""

    suite: str
    parts: tuple[PartScore, ...]
    tasks: Mapping[str, float]
    # each task's: the mean over its parts of the mean of its metrics
    missing: Mapping[str, str]
    # tasks that were not scored, and why
    mean: float = field(default=float("nan"))
    # over the tasks that were

    @property
    def skipped(self) -> int:
        """Rows that were left out, over all files."""
        return sum(part.skipped for part in self.parts)

    @property
    def error(self) -> str | None:
        """The first one's error."""
        return next((part.error for part in self.parts if part.error), None)

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        parts = [
            {**vars(part), "scores": {name: plain(s) for name, s in part.scores.items()}}
            for part in self.parts
        ]
        return {**vars(self), "parts": parts, "tasks": dict(self.tasks)} | {
            "missing": dict(self.missing),
            "mean": plain(self.mean),
        }


def evaluate_suite(model: Model, suite: Suite, folder: Path) -> SuiteReport:
    """Score a model's heads on a suite's official files; those that are missing are named.

    Args:
        model: with heads that are called like the tasks.
        suite: "glue", "superglue" or "xnli".
        folder: with the files as the suite's own download has them.

    Raises:
        CallError: no such suite or folder, or no task can be scored.
    """
    if suite not in SUITES:
        hint = nearest(str(suite), get_args(Suite))
        raise CallError(f"suite is {show(suite)}; allowed: {', '.join(get_args(Suite))}{hint}")
    if not folder.is_dir():
        raise CallError(f"{folder}: no such folder; {suite} is a folder of its official files")
    parts: list[PartScore] = []
    missing: dict[str, str] = {}
    for task in SUITES[suite]:
        try:
            parts += _scored(model, task, folder)
        except CallError as error:
            missing[task.name] = str(error)
    if not parts:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise CallError(f"{suite}: no task can be scored; {reasons}")
    tasks = {
        name: _mean([_mean([s.value for s in p.scores.values()]) for p in parts if p.task == name])
        for name in dict.fromkeys(part.task for part in parts)
    }
    return SuiteReport(suite, tuple(parts), tasks, missing, _mean([*tasks.values()]))


def _mean(values: Sequence[float]) -> float:
    # A correlation with what is constant counts as 0, as the leaderboards have it.
    return sum(0.0 if value != value else value for value in values) / len(values)


def _scored(model: Model, task: SuiteTask, folder: Path) -> list[PartScore]:
    if task.refused:
        raise CallError(task.refused)
    name = _head_for(model, task)
    head = model.engine.heads[name]
    found = []
    for files in task.files:
        path = _first(folder, files.split("|"))
        text = _columns(task, head, path)
        config = TaskConfig(
            kind=task.kind,
            train=(path,),
            text=text,
            label=(task.label,),
            group=task.group,
        )
        examples = read_examples(config, config.train)
        errors = [bad.error for bad in examples.bad]
        groups: dict[str, list[Example]] = {}
        for example in examples:
            part = str(example.group) if task.name == "XNLI" else path.stem
            groups.setdefault(part, []).append(_renamed(example, head, path))
        for part, rows in groups.items():
            (outputs,) = read_heads(model.engine, model.tokenizer, [(name, rows)])
            measures = {key: _MEASURES[key](task, head, outputs) for key in task.metrics}
            skipped = len(errors) + len(rows) - len(outputs.rows)
            first = (*errors, *outputs.errors, None)[0] if skipped else None
            scores = {key: measure.interval() for key, measure in measures.items()}
            found.append(
                PartScore(task.name, part, name, len(outputs.rows), scores, skipped, first)
            )
            errors = []
    return found


def _columns(task: SuiteTask, head: HeadConfig, path: Path) -> tuple[str, ...]:
    """Those that the head was trained on, in their order, where the file has them."""
    there = next((record.values for record in Records(path) if record.error is None), {})
    known = len(head.text) == len(task.text) and all(name in there for name in head.text)
    return head.text if known else task.text


def _head_for(model: Model, task: SuiteTask) -> str:
    heads = {n: h for n, h in model.engine.heads.items() if h.kind == task.kind}
    for name in heads:
        if _plain(name) == _plain(task.name):
            return name
    # XNLI is one task, so a model's only head is meant; and it may be called after MNLI.
    if task.name == "XNLI":
        for name in heads:
            if _plain(name) in ("mnli", "nli") or len(heads) == 1:
                return name
    has = ", ".join(model.engine.heads) or "none"
    raise CallError(f"no {task.kind} head is called {task.name.lower()!r}; the model's: {has}")


def _plain(name: str) -> str:
    return "".join(sign for sign in name.casefold() if sign.isalnum())


def _first(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise CallError(f"no file {folder / names[0]}")


_SPELLINGS = (("1", "true"), ("0", "false"), ("contradiction", "contradictory"))


def _renamed(example: Example, head: HeadConfig, path: Path) -> Example:
    """With the label as the head spells it: 1 may be True, or LABEL_1 there.

    Raises:
        CallError: the head knows no such label.
    """
    if head.kind != "classify" or example.label is None:
        return example
    wanted = _spelled(str(example.label))
    for label in head.labels:
        if _spelled(label) == wanted:
            return replace(example, label=label)
    raise CallError(
        f"{path.name} has the label {show(example.label)}, and the head "
        f"{', '.join(map(show, head.labels))}"
    )


def _spelled(label: str) -> str:
    label = label.casefold().removeprefix("label_")
    return next((first for first, *others in _SPELLINGS if label in others), label)


# --- metrics ------------------------------------------------------------------------------------


def _both(task: SuiteTask, head: HeadConfig, outputs: Outputs) -> tuple[list[str], list[str]]:
    said = said_once(outputs.name, head, outputs)
    gold = [_spelled(str(row.example.label)) for row in outputs.rows]
    return gold, [_spelled(str(one.label)) for one in said]


def _numbers(head: HeadConfig, outputs: Outputs) -> tuple[Floats, Floats]:
    said = np.array([one.value for one in said_once(outputs.name, head, outputs)], np.float64)
    return said, np.array([row.example.label for row in outputs.rows], np.float64)


def _f1(task: SuiteTask, head: HeadConfig, outputs: Outputs) -> Measure:
    gold, said = _both(task, head, outputs)
    return outcomes(gold, said, labels=[task.positive]).f1(task.positive)


def _exact(task: SuiteTask, head: HeadConfig, outputs: Outputs) -> Measure:
    """The share of questions all of whose answers are judged rightly."""
    gold, said = _both(task, head, outputs)
    right: dict[str, bool] = {}
    for row, a, b in zip(outputs.rows, gold, said, strict=True):
        group = str(row.example.group)
        right[group] = right.get(group, True) and a == b
    return mean([*right.values()])


_MEASURES: Mapping[str, Callable[[SuiteTask, HeadConfig, Outputs], Measure]] = {
    "accuracy": lambda *given: outcomes(*_both(*given)).accuracy(),
    "macro_f1": lambda *given: outcomes(*_both(*given)).macro_f1(),
    "matthews": lambda *given: outcomes(*_both(*given)).matthews(),
    "f1": _f1,
    "exact": _exact,
    "pearson": lambda _, head, outputs: pearson(*_numbers(head, outputs)),
    "spearman": lambda _, head, outputs: spearman(*_numbers(head, outputs)),
}
