"""What a trained head is given after training: a temperature, and where it says yes or nothing.

All of it is fitted to labelled rows that the weights did not learn from; what is measured on these
same rows afterwards is a little too good.

Legend: N decisions, C outputs, P places of all questions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from enrobe.config import HeadConfig
from enrobe.engines.base import Array
from enrobe.evaluate.answers import answer_scores, best_threshold
from enrobe.evaluate.confidence import confidences, multilabel_gold
from enrobe.evaluate.heads import gold_answers, gold_tags, score_outputs
from enrobe.evaluate.intervals import Floats
from enrobe.evaluate.metrics import Codes, calibration_error
from enrobe.evaluate.outputs import Outputs, said_answers
from enrobe.tasks.heads import sigmoid
from enrobe.text.rows import Question, answer_places

# Temperatures that are looked at; a head that asks for more is wrong in another way.
_LOWEST, _HIGHEST = 0.05, 20.0
_GRID = 25
_GOLDEN = (5**0.5 - 1) / 2
_HALF = 0.5


@dataclass(frozen=True)
class Change:
    """A number before and after."""

    before: float
    after: float


@dataclass(frozen=True)
class Tuning:
    """What was fitted, and what that does to the same rows."""

    head: HeadConfig
    # with what was fitted
    rows: int = 0
    # that it was fitted to; 0: there is nothing to fit
    likelihood: Change | None = None
    # the mean negative log-likelihood of a label, natural log
    calibration: Change | None = None
    # the expected calibration error
    scores: Mapping[str, Change] = field(default_factory=dict)
    # by metric, where a threshold was found
    kept: bool = True
    # False: the head's own metric was lower with that threshold, and it is not used


def tune(head: HeadConfig, outputs: Outputs) -> Tuning:
    """Fit a head's temperature, and the thresholds of its kind, to labelled rows.

    The temperature minimises the negative log-likelihood of the labels (Guo et al. 2017), with
    1 / (N + 1) of each label shared out among all outputs, so that rows which are all right do not
    ask for certainty. It changes no label, no tag and no order of answers.

    Of several labels, the threshold of each is where its F1 is highest; among equals the one
    nearest to 0.5. Of answers, that of "no answer" is the official SQuAD script's for the metric
    that the head was chosen by. Neither is used where the head's metric is lower with it.
    """
    plain = replace(
        head,
        temperature=1.0,
        thresholds=(),
        no_answer=None if head.no_answer is None else _HALF,
    )
    loss = _loss(plain, outputs)
    if loss is None:
        return Tuning(plain)
    warm = replace(plain, temperature=_lowest(loss))
    tuned, kept, scores = warm, True, {}
    found = _with_thresholds(warm, outputs)
    if found is not None:
        before, after = (score_outputs(one, outputs).measures for one in (warm, found))
        scores = {name: Change(before[name].value, after[name].value) for name in before}
        metric = head.metric if head.metric in scores else next(iter(scores))
        kept = scores[metric].after >= scores[metric].before
        tuned = found if kept else warm
    errors = (calibration_error(*confidences(one, outputs)).value for one in (plain, tuned))
    return Tuning(
        tuned,
        rows=len(outputs.rows),
        likelihood=Change(loss(1.0, 0.0), loss(tuned.temperature, 0.0)),
        calibration=Change(*errors),
        scores=scores,
        kept=kept,
    )


# --- temperature --------------------------------------------------------------------------------

_Loss = Callable[..., float]
"""(temperature, share of a label that goes to all outputs) -> the mean over labels."""


def _loss(head: HeadConfig, outputs: Outputs) -> _Loss | None:
    """None: there is no label that the head knows, or the head gives numbers."""
    if head.kind == "regress":
        return None
    if head.kind == "answer":
        return _answer_loss(outputs)
    logits_NC, gold_N = _decisions(head, outputs)
    if not len(gold_N):
        return None

    def loss(temperature: float, share: float = 1 / (len(gold_N) + 1)) -> float:
        z_NC = logits_NC / temperature
        top_N = z_NC.max(axis=1)
        whole_N = top_N + np.log(np.exp(z_NC - top_N[:, None]).sum(axis=1))
        of_gold_N = z_NC[np.arange(len(gold_N)), gold_N]
        there = (1 - share) * of_gold_N + share * z_NC.mean(axis=1)
        return float((whole_N - there).mean())

    return loss


def _decisions(head: HeadConfig, outputs: Outputs) -> tuple[Floats, Codes]:
    """Logits (N, C) of all choices between labels, and the right one (N,)."""
    codes = {label: code for code, label in enumerate(head.labels)}
    logits: list[Array] = []
    gold: list[int] = []
    if head.kind == "multilabel":
        z_N = np.concatenate([row.logits[0] for row in outputs.rows]).astype(np.float64)
        return np.stack([np.zeros_like(z_N), z_N], axis=1), multilabel_gold(head, outputs).ravel()
    if head.kind == "classify":
        for row in outputs.rows:
            if row.example.label in codes:
                logits.append(row.logits[0][None])
                gold.append(codes[str(row.example.label)])
    else:
        for row, tags in zip(outputs.rows, gold_tags(head, outputs), strict=True):
            known = [n for n, tag in enumerate(tags) if tag in codes]
            # A word that is in no row has no number.
            known = [n for n in known if not np.isnan(row.logits[0][n, 0])]
            logits.append(row.logits[0][known])
            gold += [codes[tags[n]] for n in known]
    width = (0, len(head.labels))
    return np.concatenate([np.empty(width), *logits]).astype(np.float64), np.array(gold, np.int64)


def _answer_loss(outputs: Outputs) -> _Loss | None:
    """The likelihood of first and last token over all windows of a question together."""
    whole: list[Floats] = []
    right: list[Floats] = []
    for row in outputs.rows:
        assert isinstance(row.entry, Question)
        nulls = np.array([own[0] for own in row.logits], np.float64)
        null = nulls[nulls.sum(axis=1).argmin()]
        places = np.concatenate([null[None], *(own[1:] for own in row.logits)])
        for side, gold in enumerate(_gold_places(row.entry, row.example.label)):
            if gold.any():
                whole.append(places[:, side])
                right.append(places[gold, side])
    if not whole:
        return None
    mean_N = np.array([own.mean() for own in whole])

    def loss(temperature: float, share: float = 1 / (len(whole) + 1)) -> float:
        all_N, gold_N = (_log_sums(values, temperature) for values in (whole, right))
        return float((all_N - (1 - share) * gold_N - share * mean_N / temperature).mean())

    return loss


def _gold_places(question: Question, label: Any) -> tuple[Any, Any]:
    """Where an answer begins, and where one ends, among the null and the places of all rows."""
    counts = [len(row.units) for row in question.rows]
    first, last = (np.zeros(1 + sum(counts), np.bool_) for _ in range(2))
    if not label:
        first[0] = last[0] = True
    at = 1
    for row, count in zip(question.rows, counts, strict=True):
        for answer in label:
            stop = answer.start + len(answer.text)
            begins, ends = answer_places(row, question.spans, answer.start, stop)
            if begins:
                first[at + begins - int(row.places[0])] = True
                last[at + ends - int(row.places[0])] = True
        at += count
    return first, last


def _log_sums(groups: Sequence[Floats], temperature: float) -> Floats:
    """log sum exp of each group."""
    starts = np.cumsum([0, *(len(group) for group in groups[:-1])])
    z_P = np.concatenate(groups).astype(np.float64) / temperature
    top_N = np.maximum.reduceat(z_P, starts)
    sizes = np.diff([*starts, len(z_P)])
    result: Floats = top_N + np.log(np.add.reduceat(np.exp(z_P - np.repeat(top_N, sizes)), starts))
    return result


def _lowest(loss: _Loss) -> float:
    """The temperature of the lowest loss: the best of a grid, then a golden-section search."""
    grid = np.geomspace(_LOWEST, _HIGHEST, _GRID)
    best = int(np.argmin([loss(value) for value in grid]))
    low, high = np.log(grid[max(best - 1, 0)]), np.log(grid[min(best + 1, _GRID - 1)])
    a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_a, at_b = loss(np.exp(a)), loss(np.exp(b))
    while high - low > 1e-4:
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - _GOLDEN * (high - low)
            at_a = loss(np.exp(a))
        else:
            low, a, at_a = a, b, at_b
            b = low + _GOLDEN * (high - low)
            at_b = loss(np.exp(b))
    return float(f"{np.exp((low + high) / 2):.4g}")


# --- thresholds ---------------------------------------------------------------------------------


def _with_thresholds(head: HeadConfig, outputs: Outputs) -> HeadConfig | None:
    """The head with thresholds; None: its kind has none, or the rows say nothing of them."""
    if head.kind == "multilabel":
        logits_NC = np.stack([row.logits[0] for row in outputs.rows])
        values_NC = sigmoid(logits_NC, head.temperature)
        gold_NC = multilabel_gold(head, outputs)
        found = tuple(
            f1_threshold(values, gold) for values, gold in zip(values_NC.T, gold_NC.T, strict=True)
        )
        return None if set(found) == {_HALF} else replace(head, thresholds=found)
    if head.kind == "answer" and head.no_answer is not None:
        threshold = _no_answer(head, outputs)
        return None if threshold is None else replace(head, no_answer=threshold)
    return None


def f1_threshold(values: Floats, gold: Any) -> float:
    """From which probability on a label is given for the highest F1; 0.5 where it is never there.

    Args:
        values: (N,) its probability in each row.
        gold: (N,) 1 or True where the row has it.
    """
    gold_N = np.asarray(gold, np.float64)
    if not gold_N.sum():
        return _HALF
    order = np.argsort(-values, kind="stable")
    sorted_N = values[order]
    right_N = np.cumsum(gold_N[order])
    f1_N = 2 * right_N / (np.arange(1, len(values) + 1) + gold_N.sum())
    # Rows of the same probability are given the label together.
    last_N = np.append(sorted_N[1:] != sorted_N[:-1], True)
    best = np.flatnonzero(last_N & (f1_N >= f1_N[last_N].max()))
    below = np.append(sorted_N, 0.0)
    between = [
        _HALF if low < _HALF <= high else float((low + high) / 2)
        for high, low in ((sorted_N[n], below[n + 1]) for n in best)
    ]
    return min(between, key=lambda value: abs(value - _HALF))


def _no_answer(head: HeadConfig, outputs: Outputs) -> float | None:
    gold = gold_answers(outputs)
    if all(gold) or not any(gold):
        return None
    found = said_answers(head, outputs)
    said = [one.spans[0].text if one.spans else "" for one in found]
    scores = answer_scores(gold, said)
    each = scores.each_exact if head.metric == "exact" else scores.each_f1
    none_N = np.array([one.none_probability for one in found])
    best = best_threshold(each, scores.answerable, none_N, said).threshold
    # Halfway to the next question that is not answered: rounding elsewhere changes no answer.
    above = none_N[none_N > best]
    return float((best + above.min()) / 2) if len(above) else float(best)
