"""Heads that find an answer in a context: the start, the end, or that there is none.

Scores are those of BERT's script for SQuAD (Devlin et al. 2019): a span's is its start's plus its
end's, over all windows; that of "no answer" is the one of the first token, in the window where it
is lowest. The softmax runs over all windows together (Clark and Gardner 2018, shared norm).

Legend: K places of a row, N tokens of a context.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from enrobe.engines.base import Array, Engine
from enrobe.errors import CallError, TextError, show
from enrobe.tasks.heads import Floats, longest_row, run_heads
from enrobe.tasks.results import Answer
from enrobe.text.rows import Question, encode_questions
from enrobe.text.tokenizer import Tokenizer

MAX_ANSWER = 30
"""Tokens of the longest answer, as in BERT's script."""


@dataclass(frozen=True)
class Candidates:
    """What a head finds in one context."""

    spans: list[Answer]
    # the best first, all different; empty where the context has no text
    nothing: Answer
    # that there is no answer
    none_probability: float
    # that of no answer against the best span alone: above 0.5 where its score is higher


def answer(
    engine: Engine,
    tokenizer: Tokenizer,
    questions: Sequence[str],
    contexts: Sequence[str],
    name: str,
    *,
    top_k: int = 1,
    max_answer: int = MAX_ANSWER,
    special: bool = True,
) -> list[list[Answer] | TextError]:
    """The best answers to each question, one or more, the best first."""
    threshold = engine.heads[name].no_answer
    found = candidates(
        engine,
        tokenizer,
        questions,
        contexts,
        name,
        top_k=top_k,
        max_answer=max_answer,
        special=special,
    )
    out: list[list[Answer] | TextError] = []
    for one in found:
        if isinstance(one, Candidates):
            answers = ranked(one, threshold)[:top_k]
            out.append(answers or TextError("the context has no text to answer from"))
        else:
            out.append(one)
    return out


def ranked(found: Candidates, threshold: float | None) -> list[Answer]:
    """The answers in their order, given from which probability on there is none.

    None: there is always an answer, and "" is not among them.
    """
    if threshold is None:
        return found.spans
    if not found.spans or found.none_probability > threshold:
        return [found.nothing, *found.spans]
    # The threshold has the first word; the others stand by probability.
    rest = sorted([*found.spans[1:], found.nothing], key=lambda answer: -answer.probability)
    return [found.spans[0], *rest]


def candidates(
    engine: Engine,
    tokenizer: Tokenizer,
    questions: Sequence[str],
    contexts: Sequence[str],
    name: str,
    *,
    top_k: int = 1,
    max_answer: int = MAX_ANSWER,
    special: bool = True,
) -> list[Candidates | TextError]:
    """The best spans of each context, and how likely there is no answer; for tuning, too."""
    for what, value in (("top_k", top_k), ("max_answer", max_answer)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CallError(f"{what} is {show(value)}; allowed: a whole number from 1 on")
    head = engine.heads[name]
    limit = longest_row(engine, head)
    encoded = encode_questions(tokenizer, questions, contexts, limit=limit, special=special)
    rows = [row for entry in encoded if isinstance(entry, Question) for row in entry.rows]
    logits = iter(run_heads(engine, rows, [name]))
    out: list[Candidates | TextError] = []
    for entry, context in zip(encoded, contexts, strict=True):
        if isinstance(entry, TextError):
            out.append(entry)
            continue
        own = [next(logits)[name] for _ in entry.rows]
        found = candidates_of(
            entry, context, own, head.temperature, top_k=top_k, max_answer=max_answer
        )
        out.append(found)
    return out


def candidates_of(
    question: Question,
    context: str,
    logits: Sequence[Array],
    temperature: float,
    *,
    top_k: int = 1,
    max_answer: int = MAX_ANSWER,
) -> Candidates:
    """What a head's outputs for the rows of one question say.

    Shapes: logits of each row (K + 1, 2), of the first token and of the context's.
    """
    values = [value.astype(np.float64) / temperature for value in logits]
    nulls = np.array([value[0] for value in values])
    null = nulls[nulls.sum(axis=1).argmin()]
    whole = np.concatenate([null[None], *(value[1:] for value in values)])
    top = whole.max(axis=0)
    # Natural logs of both sums, of starts and of ends.
    norm = float((top + np.log(np.exp(whole - top).sum(axis=0))).sum())
    spans: list[Answer] = []
    best = -np.inf
    seen = set()
    for score, first, last in _ordered(question, values, max_answer):
        start, end = int(question.spans[first, 0]), int(question.spans[last, 1])
        text = context[start:end].strip()
        start += len(context[start:end]) - len(context[start:end].lstrip())
        end = start + len(text)
        # Windows share tokens, and a character may have several.
        if not text or (start, end) in seen:
            continue
        seen.add((start, end))
        best = max(best, score)
        spans.append(Answer(text, start, end, float(np.exp(score - norm))))
        if len(spans) == top_k:
            break
    nothing = Answer("", 0, 0, float(np.exp(null.sum() - norm)))
    # 1 / (1 + exp(best - null)), safe at either end; 1 where there is no span.
    return Candidates(spans, nothing, float(np.exp(-np.logaddexp(0.0, best - null.sum()))))


def _ordered(
    question: Question, values: Sequence[Floats], max_answer: int
) -> Iterator[tuple[float, int, int]]:
    """(score, first token, last token) of all spans, the best first; of equal ones, the earlier."""
    scores, firsts, lasts = [], [], []
    for row, value in zip(question.rows, values, strict=True):
        starts_K, ends_K = value[1:, 0], value[1:, 1]
        for more in range(min(max_answer, len(row.units))):
            count = len(row.units) - more
            scores.append(starts_K[:count] + ends_K[more:])
            firsts.append(row.units[:count])
            lasts.append(row.units[more:])
    if not scores:
        return
    score, first, last = (np.concatenate(part) for part in (scores, firsts, lasts))
    for n in np.lexsort((last, first, -score)):
        yield float(score[n]), int(first[n]), int(last[n])
