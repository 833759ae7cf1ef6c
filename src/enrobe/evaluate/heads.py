"""Heads against labelled examples: what dev rows are scored by in training, and files afterwards.

What a head says is asked of the code that predicts, so that a score is one of what users get.

Legend: N rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np

from enrobe.config import HeadConfig
from enrobe.data.examples import Example
from enrobe.data.labels import CharSpan, Kind
from enrobe.engines.base import Engine
from enrobe.errors import CallError, nearest, show
from enrobe.evaluate.answers import AnswerScores, answer_scores
from enrobe.evaluate.intervals import Floats, Interval, Measure, intervals_of
from enrobe.evaluate.metrics import Outcomes, multilabel_outcomes, outcomes, pearson, spearman
from enrobe.evaluate.outputs import Outputs, read_heads, said_answers, said_once, said_tags
from enrobe.evaluate.spans import Span, SpanScores, conll_scores, span_scores
from enrobe.tasks.answer import ranked
from enrobe.text.rows import Words
from enrobe.text.tags import OUTSIDE, spans_of_tags, split_tag, tags_of_spans
from enrobe.text.tokenizer import Tokenizer

METRICS: Mapping[Kind, tuple[str, ...]] = {
    "classify": ("accuracy", "macro_f1", "matthews"),
    "multilabel": ("micro_f1", "macro_f1", "accuracy"),
    "regress": ("pearson", "spearman"),
    "tag": ("f1", "accuracy"),
    "answer": ("f1", "exact"),
}
"""What is measured of each kind, the usual one first. `f1` of tags is conlleval's, of spans."""


_PARTS = ("with an answer", "without one")


@dataclass(frozen=True, eq=False)
class HeadScores:
    """Measures of one head; all are over the same rows."""

    measures: Mapping[str, Measure]
    # by the names of METRICS; the first is the usual one
    rows: int
    # that were measured
    skipped: int
    # labelled rows that cannot be read
    error: str | None
    # the first one's


@dataclass(frozen=True)
class LabelScore:
    """One label by itself."""

    f1: Interval
    precision: float | None
    recall: float | None
    # None: of answers
    support: int
    # how often it is there


def check_metric(kind: Kind, labels: Sequence[str], metric: str | None) -> str:
    """The metric that a head is chosen by; None: the usual one of its kind and labels.

    Raises:
        CallError: one that it has not.
    """
    known = METRICS[kind]
    if kind == "tag" and not has_prefixes(labels):
        known = ("accuracy",)
    if metric is None:
        return known[0]
    if metric not in known:
        hint = nearest(metric, known)
        raise CallError(f"metric is {show(metric)}; allowed here: {', '.join(known)}{hint}")
    return metric


def has_prefixes(labels: Sequence[str]) -> bool:
    """Whether tags mean spans by their prefixes (B-, I-, ...), or each its own word."""
    return any(split_tag(label)[0] not in ("", OUTSIDE) for label in labels)


def score_head(
    engine: Engine, tokenizer: Tokenizer, name: str, examples: Sequence[Example]
) -> HeadScores:
    """Score a head on examples of its kind; those without a label are left out.

    Raises:
        CallError: as `read_heads`.
    """
    (outputs,) = read_heads(engine, tokenizer, [(name, examples)])
    return score_outputs(engine.heads[name], outputs)


def score_outputs(head: HeadConfig, outputs: Outputs) -> HeadScores:
    """Score what a head put out.

    A label that the head does not know is one that it never gives: it counts as wrong. A context
    without any text is not answered.
    """
    error = outputs.errors[0] if outputs.errors else None
    measures = _MEASURES[head.kind](head, outputs)
    return HeadScores(measures, len(outputs.rows), len(outputs.errors), error)


def label_scores(head: HeadConfig, outputs: Outputs) -> dict[str, LabelScore]:
    """Each label by itself: of classes, of several labels, of spans by their type.

    Of answers: of the questions that have one and of those that have none, where there are both.
    Of numbers there are none.
    """
    if head.kind == "regress":
        return {}
    if head.kind == "answer":
        return _answer_parts(_answers(head, outputs))
    if head.kind == "tag" and has_prefixes(head.labels):
        spans = _spans_scored(head, outputs)
        found = intervals_of(len(outputs.rows), spans.label_f1s)
        return {
            name: LabelScore(f1, count.precision, count.recall, count.gold)
            for (name, count), f1 in zip(spans.per_label.items(), found, strict=True)
        }
    done = _outcomes(head, outputs)
    found = intervals_of(done.rows, done.label_f1s)
    return {
        str(one.label): LabelScore(f1, one.precision, one.recall, one.support)
        for one, f1 in zip(done.per_label(), found, strict=True)
    }


_Measures = dict[str, Measure]


def _outcomes(head: HeadConfig, outputs: Outputs) -> Outcomes:
    rows: Sequence[Any] = [row.example.label for row in outputs.rows]
    if head.kind == "tag":
        gold, said = gold_tags(head, outputs), [tags for _, tags in said_tags(head, outputs)]
        return outcomes(list(chain(*gold)), list(chain(*said)))
    found = said_once(outputs.name, head, outputs)
    if head.kind == "classify":
        return outcomes([str(label) for label in rows], [str(one.label) for one in found])
    labels = list(dict.fromkeys([*head.labels, *sorted({str(n) for own in rows for n in own})]))
    return multilabel_outcomes(
        [[name in own for name in labels] for own in rows],
        [[name in (one.label or ()) for name in labels] for one in found],
        labels=labels,
    )


def _classify(head: HeadConfig, outputs: Outputs) -> _Measures:
    done = _outcomes(head, outputs)
    return {"accuracy": done.accuracy(), "macro_f1": done.macro_f1(), "matthews": done.matthews()}


def _multilabel(head: HeadConfig, outputs: Outputs) -> _Measures:
    done = _outcomes(head, outputs)
    return {"micro_f1": done.micro_f1(), "macro_f1": done.macro_f1(), "accuracy": done.accuracy()}


def _regress(head: HeadConfig, outputs: Outputs) -> _Measures:
    gold = np.array([row.example.label for row in outputs.rows], np.float64)
    values = np.array([one.value for one in said_once(outputs.name, head, outputs)], np.float64)
    return {"pearson": pearson(values, gold), "spearman": spearman(values, gold)}


def _tag(head: HeadConfig, outputs: Outputs) -> _Measures:
    gold, tags = gold_tags(head, outputs), [own for _, own in said_tags(head, outputs)]
    pairs = zip(gold, tags, strict=True)
    right_N = np.array([sum(map(str.__eq__, a, b)) for a, b in pairs], np.float64)
    words_N = np.array([len(own) for own in gold], np.float64)

    def of(counts_RN: Floats) -> Floats:
        result: Floats = counts_RN @ right_N / np.maximum(counts_RN @ words_N, 1)
        return result

    accuracy = Measure(len(gold), of)
    if not has_prefixes(head.labels):
        return {"accuracy": accuracy}
    return {"f1": _spans_scored(head, outputs).f1, "accuracy": accuracy}


def _spans_scored(head: HeadConfig, outputs: Outputs) -> SpanScores:
    said = said_tags(head, outputs)
    gold, tags = gold_tags(head, outputs), [own for _, own in said]
    if all(row.example.words is not None for row in outputs.rows):
        return conll_scores(gold, tags)
    # Spans of characters are compared as they are, not as far as words show them.
    there: list[Any] = [
        [tuple(span) for span in row.example.label]
        if row.example.words is None and isinstance(row.example.label, tuple)
        else _spans(words, own)
        for row, (words, _), own in zip(outputs.rows, said, gold, strict=True)
    ]
    return span_scores(there, [_spans(words, own) for words, own in said])


def gold_tags(head: HeadConfig, outputs: Outputs) -> list[list[str]]:
    """The tags that the words of each row should have."""
    out = []
    for row, (words, _) in zip(outputs.rows, said_tags(head, outputs), strict=True):
        label: Any = row.example.label
        if row.example.words is None:
            spans = [span for span in label if isinstance(span, CharSpan)]
            label = tags_of_spans(words.spans, spans)
        out.append(list(label))
    return out


def _spans(words: Words, tags: Sequence[str]) -> list[Span]:
    return [
        (int(words.spans[first, 0]), int(words.spans[stop - 1, 1]), label)
        for first, stop, label in spans_of_tags(tags)
    ]


def gold_answers(outputs: Outputs) -> list[list[str]]:
    """The answers to each question; none where it has none."""
    labels: list[Any] = [row.example.label for row in outputs.rows]
    return [[one.text for one in label] for label in labels]


def _answers(head: HeadConfig, outputs: Outputs) -> AnswerScores:
    gold = gold_answers(outputs)
    best = [ranked(one, head.no_answer)[:1] for one in said_answers(head, outputs)]
    version: Literal[1, 2] = 1 if all(gold) and head.no_answer is None else 2
    return answer_scores(gold, [one[0].text if one else None for one in best], version=version)


def _answer(head: HeadConfig, outputs: Outputs) -> _Measures:
    done = _answers(head, outputs)
    return {"f1": done.f1, "exact": done.exact}


def _answer_parts(done: AnswerScores) -> dict[str, LabelScore]:
    parts_NP = np.stack([done.answerable, ~done.answerable], axis=1).astype(np.float64)
    if not parts_NP.any(axis=0).all():
        return {}

    def of(counts_RN: Floats) -> Floats:
        rows_RP = counts_RN @ parts_NP
        none_RP = np.full_like(rows_RP, np.nan)
        sums_RP = counts_RN @ (done.each_f1[:, None] * parts_NP)
        result: Floats = np.divide(sums_RP, rows_RP, out=none_RP, where=rows_RP > 0)
        return result

    found = intervals_of(len(parts_NP), of)
    return {
        name: LabelScore(f1, None, None, int(support))
        for name, f1, support in zip(_PARTS, found, parts_NP.sum(axis=0), strict=True)
    }


_MEASURES: Mapping[str, Callable[[HeadConfig, Outputs], _Measures]] = {
    "classify": _classify,
    "multilabel": _multilabel,
    "regress": _regress,
    "tag": _tag,
    "answer": _answer,
}
