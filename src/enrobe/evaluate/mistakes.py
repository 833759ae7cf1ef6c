"""What a head gets wrong: the mistakes it is surest of, and which labels it takes for which."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from enrobe.config import HeadConfig
from enrobe.evaluate.answers import answer_scores
from enrobe.evaluate.heads import gold_answers, gold_tags, has_prefixes
from enrobe.evaluate.outputs import Output, Outputs, said_answers, said_once, said_tags
from enrobe.tasks.answer import ranked
from enrobe.tasks.heads import softmax
from enrobe.text.rows import Words
from enrobe.text.tags import split_tag

MISTAKES = 20


@dataclass(frozen=True)
class Mistake:
    """One thing that was said and is wrong."""

    text: str
    # of a pair both, with " ⏐ " between; of tags the word in its surroundings
    label: str
    # what it should be
    said: str
    probability: float | None
    # of what was said; of several labels of the wrong decision; None of numbers
    number: int
    # the row in its file


@dataclass(frozen=True, eq=False)
class Confusion:
    """How often each label was taken for each. Shapes: counts (C, C), labels down, said across."""

    labels: tuple[str, ...]
    counts: npt.NDArray[np.int64]

    def pairs(self) -> list[tuple[str, str, int]]:
        """(label, said, how often) of what was confused, the most frequent first."""
        wrong_CC = self.counts * (1 - np.eye(len(self.labels), dtype=np.int64))
        places = np.argwhere(wrong_CC)
        order = sorted(places.tolist(), key=lambda at: -wrong_CC[at[0], at[1]])
        return [(self.labels[a], self.labels[b], int(wrong_CC[a, b])) for a, b in order]


def mistakes(head: HeadConfig, outputs: Outputs, *, most: int = MISTAKES) -> list[Mistake]:
    """The mistakes with the highest probability; of numbers those that are furthest off."""
    found = {
        "classify": _classes,
        "multilabel": _several,
        "regress": _numbers,
        "tag": _tags,
        "answer": _answers,
    }[head.kind](head, outputs)
    # Stable: of equal ones the first row's.
    found.sort(key=lambda item: -item[0])
    return [mistake for _, mistake in found[:most]]


_Ranked = list[tuple[float, Mistake]]


def _text(row: Output) -> str:
    return row.example.text if row.example.pair is None else _joined(row)


def _joined(row: Output) -> str:
    return f"{row.example.text} ⏐ {row.example.pair}"


def _classes(head: HeadConfig, outputs: Outputs) -> _Ranked:
    out = []
    said = said_once(outputs.name, head, outputs)
    for row, one in zip(outputs.rows, said, strict=True):
        if one.label != row.example.label:
            sure = one.probability or 0.0
            mistake = Mistake(
                _text(row), str(row.example.label), str(one.label), sure, row.example.number
            )
            out.append((sure, mistake))
    return out


def _several(head: HeadConfig, outputs: Outputs) -> _Ranked:
    out = []
    said = said_once(outputs.name, head, outputs)
    for row, one in zip(outputs.rows, said, strict=True):
        label: Any = row.example.label
        given: Any = one.label
        wrong = {*label} ^ {*given}
        if not wrong:
            continue
        # The surest wrong decision about one label.
        sure = max(
            one.probabilities[name] if name in given else 1 - one.probabilities.get(name, 0.0)
            for name in wrong
        )
        mistake = Mistake(_text(row), _listed(label), _listed(given), sure, row.example.number)
        out.append((sure, mistake))
    return out


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels) or "(none)"


def _numbers(head: HeadConfig, outputs: Outputs) -> _Ranked:
    out = []
    said = said_once(outputs.name, head, outputs)
    for row, one in zip(outputs.rows, said, strict=True):
        value: Any = one.value
        label: Any = row.example.label
        mistake = Mistake(_text(row), f"{label:g}", f"{value:.3g}", None, row.example.number)
        out.append((abs(value - label), mistake))
    return [item for item in out if item[0] > 0]


def _tags(head: HeadConfig, outputs: Outputs) -> _Ranked:
    out = []
    gold = gold_tags(head, outputs)
    for row, own, (words, tags) in zip(outputs.rows, gold, said_tags(head, outputs), strict=True):
        best_W = softmax(row.logits[0], head.temperature).max(axis=1)
        wrong = [n for n in range(len(own)) if own[n] != tags[n] and not np.isnan(best_W[n])]
        if not wrong:
            continue
        # One word a text: the surest.
        n = max(wrong, key=lambda word: best_W[word])
        mistake = Mistake(
            _around(row, words, n), own[n], tags[n], float(best_W[n]), row.example.number
        )
        out.append((float(best_W[n]), mistake))
    return out


def _around(row: Output, words: Words, n: int) -> str:
    """A word with some of what stands around it, marked."""
    if row.example.words is not None:
        own = row.example.words
        before, word, after = " ".join(own[:n]), own[n], " ".join(own[n + 1 :])
    else:
        text = row.example.text
        start, end = (int(place) for place in words.spans[n])
        before, word, after = text[:start], text[start:end], text[end:]
    before = before if len(before) <= 60 else "…" + before[-60:]
    after = after if len(after) <= 60 else after[:60] + "…"
    return f"{before} [{word}] {after}".strip()


def _answers(head: HeadConfig, outputs: Outputs) -> _Ranked:
    out = []
    found = [ranked(one, head.no_answer)[:1] for one in said_answers(head, outputs)]
    gold = gold_answers(outputs)
    f1 = answer_scores(gold, [one[0].text if one else None for one in found]).each_f1
    for row, own, one, score in zip(outputs.rows, gold, found, f1, strict=True):
        # What overlaps is a matter of taste.
        if one and score == 0:
            label = " / ".join(dict.fromkeys(own)) or "(no answer)"
            said = one[0].text or "(no answer)"
            mistake = Mistake(row.example.text, label, said, one[0].probability, row.example.number)
            out.append((one[0].probability, mistake))
    return out


def confusion(head: HeadConfig, outputs: Outputs) -> Confusion | None:
    """Of classes, and of tags by word (by their types, where they have B- and I-); else None."""
    if head.kind == "classify":
        gold = [str(row.example.label) for row in outputs.rows]
        said = [str(one.label) for one in said_once(outputs.name, head, outputs)]
        names: Sequence[str] = head.labels
    elif head.kind == "tag":
        bare = has_prefixes(head.labels)
        tags = [tag for own in gold_tags(head, outputs) for tag in own]
        guesses = [tag for _, own in said_tags(head, outputs) for tag in own]
        gold, said, names = (
            [_type(tag, bare) for tag in own] for own in (tags, guesses, head.labels)
        )
    else:
        return None
    labels = list(dict.fromkeys([*names, *sorted({*gold})]))
    codes = {label: code for code, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(counts, ([codes[label] for label in gold], [codes[label] for label in said]), 1)
    return Confusion(tuple(labels), counts)


def _type(tag: str, bare: bool) -> str:
    prefix, label = split_tag(tag)
    return label or prefix if bare else tag
