"""F1 of spans: as conlleval counts them in tags, or of spans that are given.

conlleval (Tjong Kim Sang, version of 2004-01-26, the script of the CoNLL shared tasks) reads IOB1,
IOB2, IOE1 and IOE2 alike, and never refuses a tag. What it does with broken ones is part of every
published score, so it is done the same way here:

    a tag is all before its first hyphen, its type all after: B-a-b is B of a-b
    I after O, or after another type, begins a chunk; so does every B
    another prefix (S, L, U, ...) begins or ends one only where the type changes
    E after I ends with its own token only where E, I or O follows
    a chunk is right where both sides begin it and end it together, with the same type

Legend: N sentences, R samples, K types.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from enrobe.errors import CallError
from enrobe.evaluate.intervals import Floats, Measure, check_rows

Span = tuple[int, int, str]
_Tag = tuple[str, str]

# (previous prefix, prefix) that end a chunk of the same type; those with an O after it only end.
_ENDS = frozenset({"BB", "IB", "BO", "IO", "EE", "EI", "EO"})
_STARTS = frozenset({"BB", "IB", "OB", "OI", "EE", "EI", "OE"})
_NO_CHUNK = ("O", ".")
_ALONE = ("[", "]")
_OUTSIDE: _Tag = ("O", "")


@dataclass(frozen=True)
class SpanCounts:
    """Spans of one type, or of all."""

    correct: int
    gold: int
    predicted: int

    @property
    def precision(self) -> float:
        """Of the predicted spans, the share that is right; 0 without any."""
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Of the spans that are there, the share that was found; 0 without any."""
        return self.correct / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """Their harmonic mean, conlleval's FB1."""
        both = self.gold + self.predicted
        return 2 * self.correct / both if both else 0.0


@dataclass(frozen=True, eq=False)
class SpanScores:
    """All spans together, each type by itself, and F1 as a measure over sentences."""

    total: SpanCounts
    per_label: dict[str, SpanCounts]
    f1: Measure
    tag_accuracy: float | None
    # the share of tags that are right; None where spans were given
    label_f1s: Callable[[Floats], Floats]
    # counts (R, N) of the sentences -> F1 (R, K) of each type, in the order of `per_label`


def conll_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> SpanScores:
    """Score tags as conlleval does.

    Args:
        gold, predicted: for each sentence its tags ("B-PER", "I-PER", "O", ...).

    Raises:
        CallError: sentences or tags do not pair up.
    """
    check_rows(gold, predicted)
    for number, (a, b) in enumerate(zip(gold, predicted, strict=True)):
        if len(a) != len(b):
            raise CallError(f"sentence {number}: {len(a)} tags and {len(b)} predicted ones")
    found: list[dict[str, Counter[str]]] = [
        {"correct": Counter(), "gold": Counter(), "predicted": Counter()} for _ in gold
    ]
    for number, kind, label in _counted(gold, predicted):
        found[number][kind][label] += 1
    pairs = [
        (a, b) for x, y in zip(gold, predicted, strict=True) for a, b in zip(x, y, strict=True)
    ]
    right = sum(_split(a) == _split(b) for a, b in pairs)
    return _scores(found, right / len(pairs) if pairs else 0.0)


def span_scores(gold: Sequence[Sequence[Span]], predicted: Sequence[Sequence[Span]]) -> SpanScores:
    """Score spans (start, end, label) that are given: right where all three are equal.

    Args:
        gold, predicted: for each text its spans; one that stands there twice counts once.

    Raises:
        CallError: different numbers of texts, or none.
    """
    check_rows(gold, predicted)
    found = []
    for spans, guesses in zip(gold, predicted, strict=True):
        there, claimed = set(spans), set(guesses)
        kinds = {"correct": there & claimed, "gold": there, "predicted": claimed}
        found.append({kind: Counter(label for _, _, label in s) for kind, s in kinds.items()})
    return _scores(found, None)


def _scores(found: Sequence[dict[str, Counter[str]]], tag_accuracy: float | None) -> SpanScores:
    kinds = ("correct", "gold", "predicted")
    sums = {kind: sum((row[kind] for row in found), Counter[str]()) for kind in kinds}
    labels = sorted({*sums["gold"], *sums["predicted"]})
    per_label = np.array(
        [[[row[kind][name] for row in found] for name in labels] for kind in kinds], np.float64
    ).reshape(len(kinds), len(labels), len(found))

    def of(counts_RN: Floats) -> Floats:
        return _f1(*(counts_RN @ kind_KN.sum(axis=0) for kind_KN in per_label))

    def label_f1s(counts_RN: Floats) -> Floats:
        return _f1(*(counts_RN @ kind_KN.T for kind_KN in per_label))

    return SpanScores(
        total=SpanCounts(*(sums[kind].total() for kind in kinds)),
        per_label={name: SpanCounts(*(sums[kind][name] for kind in kinds)) for name in labels},
        f1=Measure(len(found), of),
        tag_accuracy=tag_accuracy,
        label_f1s=label_f1s,
    )


def _f1(correct: Floats, gold: Floats, predicted: Floats) -> Floats:
    both = gold + predicted
    result: Floats = np.divide(2 * correct, both, out=np.zeros_like(both), where=both > 0)
    return result


def _counted(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> Iterator[tuple[int, str, str]]:
    """(sentence, "gold" | "predicted" | "correct", type) of every chunk, in one run over all.

    What is open is carried from one sentence to the next past an O, as in the script: there a
    chunk of unknown prefixes may end where no rule sees it.
    """
    last_a = last_b = _OUTSIDE
    open_ = False
    number = 0
    for number, (tags, guesses) in enumerate(zip(gold, predicted, strict=True)):
        pairs = [(_split(x), _split(y)) for x, y in zip(tags, guesses, strict=True)]
        for a, b in [*pairs, (_OUTSIDE, _OUTSIDE)]:
            if open_:
                a_ends, b_ends = _ends(last_a, a), _ends(last_b, b)
                if a_ends and b_ends and last_a[1] == last_b[1]:
                    yield number, "correct", last_a[1]
                    open_ = False
                elif a_ends != b_ends or a[1] != b[1]:
                    open_ = False
            a_starts, b_starts = _starts(last_a, a), _starts(last_b, b)
            if a_starts:
                yield number, "gold", a[1]
            if b_starts:
                yield number, "predicted", b[1]
            open_ = open_ or (a_starts and b_starts and a[1] == b[1])
            last_a, last_b = a, b
    if open_:
        yield number, "correct", last_a[1]


def _split(tag: str) -> _Tag:
    prefix, _, label = tag.partition("-")
    return prefix, label


def _ends(last: _Tag, tag: _Tag) -> bool:
    changes = last[0] not in _NO_CHUNK and last[1] != tag[1]
    return changes or last[0] in _ALONE or _pair(last, tag) in _ENDS


def _starts(last: _Tag, tag: _Tag) -> bool:
    changes = tag[0] not in _NO_CHUNK and last[1] != tag[1]
    return changes or tag[0] in _ALONE or _pair(last, tag) in _STARTS


def _pair(last: _Tag, tag: _Tag) -> str:
    return last[0] + tag[0] if len(last[0]) == len(tag[0]) == 1 else ""
