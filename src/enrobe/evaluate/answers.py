"""Exact match and F1 of extracted answers, as the official SQuAD scripts count them.

Rajpurkar et al. 2016 (version 1.1) and 2018 (version 2.0). Both compare answers in lower case,
without ASCII punctuation, then without the words a, an and the, with single spaces; F1 is over the
words that are left, and the best of several gold answers counts. They differ where nothing is left:

    version 1   no word in common is F1 0, be both empty or not; the exact match may still be 1
    version 2   gold answers of which nothing is left do not count; if none is left the only right
                answer is the empty one; an empty side has F1 1 if both are empty, else 0

Legend: N questions.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from enrobe.errors import CallError, show
from enrobe.evaluate.intervals import Floats, Measure, check_rows, mean

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, eq=False)
class AnswerScores:
    """Exact match and F1 over questions, 0 to 1.

    Shapes: each_exact, each_f1, answerable (N,).
    """

    exact: Measure
    f1: Measure
    each_exact: Floats
    each_f1: Floats
    answerable: npt.NDArray[np.bool_]
    # the question has a gold answer

    def part(self, *, answerable: bool) -> "AnswerScores":
        """The questions with an answer alone, or those without (HasAns, NoAns).

        Raises:
            CallError: there are none.
        """
        chosen = self.answerable == answerable
        return _of_rows(self.each_exact[chosen], self.each_f1[chosen], self.answerable[chosen])


@dataclass(frozen=True)
class Threshold:
    """Where to answer nothing: when its probability is above `threshold`."""

    threshold: float
    score: float
    # the mean of exact match or F1 that it gives


def answer_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[str | None], *, version: Literal[1, 2] = 2
) -> AnswerScores:
    """Score answers as the official script of a version does.

    Args:
        gold: for each question its answers; none (version 2): it cannot be answered.
        predicted: the answer to each, "" for none; None: not answered, which counts 0.

    Raises:
        CallError: different numbers of questions, or none; an unknown version.
    """
    check_rows(gold, predicted)
    if version not in (1, 2):
        raise CallError(f"version is {show(version)}; allowed: 1 or 2")
    pairs = list(zip(gold, predicted, strict=True))
    score = _score_1 if version == 1 else _score_2
    values = [(0.0, 0.0) if answer is None else score(answers, answer) for answers, answer in pairs]
    exact_N, f1_N = np.array(values, np.float64).T
    return _of_rows(exact_N, f1_N, np.array([len(answers) > 0 for answers in gold]))


def best_threshold(
    scores: npt.ArrayLike,
    answerable: npt.ArrayLike,
    none_probability: npt.ArrayLike,
    predicted: Sequence[str | None],
) -> Threshold:
    """The no-answer threshold with the best score (the official script's find_best_thresh).

    Args:
        scores: (N,) exact match or F1 of each question's answer.
        answerable: (N,) whether it has one.
        none_probability: (N,) how likely the model finds it that there is none.
        predicted: the answer to each, "" for none.

    Of equal scores the lowest threshold counts; 0 where no answer at all is best.

    Raises:
        CallError: different numbers of questions, or none.
    """
    scores_N = np.asarray(scores, np.float64)
    has_N = np.asarray(answerable, np.bool_)
    probability_N = np.asarray(none_probability, np.float64)
    check_rows(scores_N, has_N, probability_N, predicted)
    # What answering one question more adds to leaving all of them without an answer.
    lost_N = np.array([-1.0 if answer else 0.0 for answer in predicted])
    order = np.argsort(probability_N, kind="stable")
    totals = (~has_N).sum() + np.cumsum(np.where(has_N, scores_N, lost_N)[order])
    best = int(totals.argmax())
    if totals[best] <= (~has_N).sum():
        return Threshold(0.0, float((~has_N).mean()))
    return Threshold(float(probability_N[order[best]]), float(totals[best] / len(scores_N)))


def normalize_answer(text: str) -> str:
    """An answer as it is compared: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _of_rows(exact_N: Floats, f1_N: Floats, answerable_N: npt.NDArray[np.bool_]) -> AnswerScores:
    return AnswerScores(mean(exact_N), mean(f1_N), exact_N, f1_N, answerable_N)


def _score_1(gold: Sequence[str], answer: str) -> tuple[float, float]:
    if not gold:
        raise CallError("a question without a gold answer; fix: version=2")
    given = normalize_answer(answer)
    known = [normalize_answer(text) for text in gold]
    exact = max(float(given == text) for text in known)
    return exact, max(_overlap(text.split(), given.split()) for text in known)


def _score_2(gold: Sequence[str], answer: str) -> tuple[float, float]:
    given = normalize_answer(answer)
    known = [text for text in map(normalize_answer, gold) if text] or [""]
    exact = max(float(given == text) for text in known)
    if not given or known == [""]:
        return exact, exact
    return exact, max(_overlap(text.split(), given.split()) for text in known)


def _overlap(gold: Sequence[str], answer: Sequence[str]) -> float:
    common = (Counter(gold) & Counter(answer)).total()
    if not common:
        return 0.0
    precision, recall = common / len(answer), common / len(gold)
    return 2 * precision * recall / (precision + recall)
