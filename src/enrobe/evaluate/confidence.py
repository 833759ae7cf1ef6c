"""How sure a head is of what it says, and whether that is right: the ground of calibration.

Legend: N decisions, C labels.
"""

import numpy as np
import numpy.typing as npt

from enrobe.config import HeadConfig
from enrobe.evaluate.answers import answer_scores
from enrobe.evaluate.heads import gold_answers, gold_tags
from enrobe.evaluate.intervals import Floats
from enrobe.evaluate.metrics import Codes
from enrobe.evaluate.outputs import Outputs, said_answers, said_once, said_tags
from enrobe.tasks.answer import ranked
from enrobe.tasks.heads import sigmoid, softmax


def confidences(head: HeadConfig, outputs: Outputs) -> tuple[Floats, Floats]:
    """Probabilities and whether what they stand for is so, 1 or 0. Shapes: (N,), (N,).

    Of classes the likeliest one's, a row; of tags the same, a word; of several labels each one's;
    of answers the best one's, right where it is an exact match. Of numbers there are none.
    """
    if head.kind == "multilabel":
        logits_NC = np.stack([row.logits[0] for row in outputs.rows])
        values_NC = sigmoid(logits_NC, head.temperature)
        return values_NC.ravel(), multilabel_gold(head, outputs).ravel().astype(np.float64)
    if head.kind == "classify":
        said = said_once(outputs.name, head, outputs)
        right = [
            one.label == row.example.label for one, row in zip(said, outputs.rows, strict=True)
        ]
        return _columns([one.probability or 0.0 for one in said], right)
    if head.kind == "tag":
        return _of_words(head, outputs)
    if head.kind == "answer":
        best = [ranked(one, head.no_answer)[:1] for one in said_answers(head, outputs)]
        gold = [own for own, one in zip(gold_answers(outputs), best, strict=True) if one]
        answers = [one[0] for one in best if one]
        if not answers:
            return _columns([], [])
        exact = answer_scores(gold, [one.text for one in answers]).each_exact
        return _columns([one.probability for one in answers], exact)
    return _columns([], [])


def _of_words(head: HeadConfig, outputs: Outputs) -> tuple[Floats, Floats]:
    values: list[Floats] = []
    right: list[bool] = []
    gold = gold_tags(head, outputs)
    for row, own, (_, tags) in zip(outputs.rows, gold, said_tags(head, outputs), strict=True):
        best_W = softmax(row.logits[0], head.temperature).max(axis=1)
        # A word that is in no row has no probability.
        seen_W = ~np.isnan(best_W)
        values.append(best_W[seen_W])
        right += [a == b for a, b, seen in zip(own, tags, seen_W, strict=True) if seen]
    return _columns(np.concatenate(values), right)


def multilabel_gold(head: HeadConfig, outputs: Outputs) -> Codes:
    """Which of the head's labels each row has, as 0 and 1. Shapes: (N, C)."""
    labels = [row.example.label for row in outputs.rows]
    owns = [label if isinstance(label, tuple) else () for label in labels]
    return np.array([[name in own for name in head.labels] for own in owns], np.int64)


def _columns(values: npt.ArrayLike, right: npt.ArrayLike) -> tuple[Floats, Floats]:
    # A product of probabilities may round to a hair above 1.
    return np.minimum(np.asarray(values, np.float64), 1.0), np.asarray(right, np.float64)
