"""Heads against labelled examples: what dev rows are scored by in training, and files afterwards.

What a head says is asked of the code that predicts, so that a score is one of what users get.

Legend: N rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from enrobe.config import HeadConfig
from enrobe.data.examples import Example
from enrobe.data.labels import CharSpan, Kind
from enrobe.engines.base import Engine
from enrobe.errors import CallError, TextError, nearest, show
from enrobe.evaluate.answers import answer_scores
from enrobe.evaluate.intervals import Floats, Measure
from enrobe.evaluate.metrics import multilabel_outcomes, outcomes, pearson, spearman
from enrobe.evaluate.spans import Span, conll_scores, span_scores
from enrobe.tasks.answer import answer
from enrobe.tasks.predict import predict
from enrobe.tasks.tag import word_tags
from enrobe.text.rows import Text, Words
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

    A label that the head does not know is one that it never gives: it counts as wrong.

    Raises:
        CallError: no row has a label and can be read.
    """
    head = engine.heads[name]
    labelled = [example for example in examples if example.label is not None]
    texts: list[Text] = [row.text if row.words is None else row.words for row in labelled]
    found: Sequence[Any]
    if head.kind == "answer":
        questions = [row.text for row in labelled]
        found = answer(engine, tokenizer, questions, [row.pair or "" for row in labelled], name)
    elif head.kind == "tag":
        found = word_tags(engine, tokenizer, texts, name)
    else:
        paired = any(row.pair is not None for row in labelled)
        seconds: list[Text] | None = [row.pair or "" for row in labelled] if paired else None
        found = predict(engine, tokenizer, texts, seconds, name)
    errors = [one for one in found if isinstance(one, TextError)]
    both = [
        (row, one)
        for row, one in zip(labelled, found, strict=True)
        if not isinstance(one, TextError)
    ]
    if not both:
        first = f"; the first: {errors[0]}" if errors else ""
        raise CallError(f"head {show(name)}: no row has a label and can be read{first}")
    rows, said = [row for row, _ in both], [one for _, one in both]
    measures = _MEASURES[head.kind](head, rows, said)
    return HeadScores(measures, len(rows), len(errors), str(errors[0]) if errors else None)


_Rows = Sequence[Example]
_Measures = dict[str, Measure]


def _classify(head: HeadConfig, rows: _Rows, said: Sequence[Any]) -> _Measures:
    done = outcomes([str(row.label) for row in rows], [one.label for one in said])
    return {"accuracy": done.accuracy(), "macro_f1": done.macro_f1(), "matthews": done.matthews()}


def _multilabel(head: HeadConfig, rows: _Rows, said: Sequence[Any]) -> _Measures:
    gold = [row.label if isinstance(row.label, tuple) else () for row in rows]
    names = list(dict.fromkeys([*head.labels, *sorted({str(n) for own in gold for n in own})]))
    done = multilabel_outcomes(
        [[name in own for name in names] for own in gold],
        [[name in one.label for name in names] for one in said],
        labels=names,
    )
    return {"micro_f1": done.micro_f1(), "macro_f1": done.macro_f1(), "accuracy": done.accuracy()}


def _regress(head: HeadConfig, rows: _Rows, said: Sequence[Any]) -> _Measures:
    gold = np.array([row.label for row in rows], np.float64)
    values = np.array([one.value for one in said], np.float64)
    return {"pearson": pearson(values, gold), "spearman": spearman(values, gold)}


def _tag(head: HeadConfig, rows: _Rows, said: Sequence[tuple[Words, list[str]]]) -> _Measures:
    gold = [_gold_tags(row, words) for row, (words, _) in zip(rows, said, strict=True)]
    tags = [own for _, own in said]
    pairs = zip(gold, tags, strict=True)
    right_N = np.array([sum(map(str.__eq__, a, b)) for a, b in pairs], np.float64)
    words_N = np.array([len(own) for own in gold], np.float64)

    def of(counts_RN: Floats) -> Floats:
        result: Floats = counts_RN @ right_N / np.maximum(counts_RN @ words_N, 1)
        return result

    accuracy = Measure(len(rows), of)
    if not has_prefixes(head.labels):
        return {"accuracy": accuracy}
    if all(row.words is not None for row in rows):
        f1 = conll_scores(gold, tags).f1
    else:
        # Spans of characters are compared as they are, not as far as words show them.
        spans = [_spans(words, own) for words, own in said]
        there = [
            [tuple(span) for span in row.label]
            if row.words is None and isinstance(row.label, tuple)
            else _spans(words, own)
            for row, (words, _), own in zip(rows, said, gold, strict=True)
        ]
        f1 = span_scores(there, spans).f1  # type: ignore[arg-type]  # CharSpans
    return {"f1": f1, "accuracy": accuracy}


def _gold_tags(row: Example, words: Words) -> list[str]:
    label: Any = row.label
    if row.words is None:
        spans = [span for span in label if isinstance(span, CharSpan)]
        return tags_of_spans(words.spans, spans)
    return list(label)


def _spans(words: Words, tags: Sequence[str]) -> list[Span]:
    return [
        (int(words.spans[first, 0]), int(words.spans[stop - 1, 1]), label)
        for first, stop, label in spans_of_tags(tags)
    ]


def _answer(head: HeadConfig, rows: _Rows, said: Sequence[Any]) -> _Measures:
    labels: list[Any] = [row.label for row in rows]
    gold = [[one.text for one in label] for label in labels]
    possible = all(gold) and head.no_answer is None
    done = answer_scores(gold, [one[0].text for one in said], version=1 if possible else 2)
    return {"f1": done.f1, "exact": done.exact}


_MEASURES: Mapping[str, Callable[[HeadConfig, _Rows, Any], _Measures]] = {
    "classify": _classify,
    "multilabel": _multilabel,
    "regress": _regress,
    "tag": _tag,
    "answer": _answer,
}
