"""Exact match and F1 as the SQuAD scripts define them: cases worked by hand."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enrobe.errors import CallError
from enrobe.evaluate.answers import answer_scores, best_threshold, normalize_answer

NORMAL = {
    "The  U.S.\tArmy!": "us army",
    "a an the": "",
    "theatre, Anna and A.": "theatre anna and",
    "an-other": "another",
    "don't": "dont",
    "“Été”": "“été”",
    "x\u00a0the\u00a0y": "x y",
    "": "",
}


@pytest.mark.parametrize(("text", "expected"), NORMAL.items())
def test_normal_form(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


# gold answers, answer, (exact, F1) of version 1 and of version 2.
CASES: dict[str, tuple[list[str], str, tuple[float, float], tuple[float, float]]] = {
    "equal": (["The Cat."], "cat", (1, 1), (1, 1)),
    # one of two words of the answer, one of one of the gold one: 2 (1/2) 1 / (3/2)
    "too long": (["cat"], "black cat", (0, 2 / 3), (0, 2 / 3)),
    "nothing in common": (["cat"], "dog", (0, 0), (0, 0)),
    "words count as often as they are there": (["x x y"], "x y y", (0, 2 / 3), (0, 2 / 3)),
    "the best of several": (["black cat", "cat"], "cat", (1, 1), (1, 1)),
    "the best of each, of different ones": (["big black cat", "dog"], "cat", (0, 0.5), (0, 0.5)),
    "no answer where there is one": (["cat"], "", (0, 0), (0, 0)),
    # Nothing is left of either: equal, but no word in common.
    "articles alone": (["The"], "a", (1, 0), (1, 1)),
    "articles alone, answered": (["The"], "cat", (0, 0), (0, 0)),
    "one gold answer of which nothing is left": (["--", "cat"], "!", (1, 0), (0, 0)),
}


@pytest.mark.parametrize(("gold", "answer", "first", "second"), CASES.values(), ids=CASES)
def test_by_hand(
    gold: list[str], answer: str, first: tuple[float, float], second: tuple[float, float]
) -> None:
    for version, expected in ((1, first), (2, second)):
        scores = answer_scores([gold], [answer], version=version)  # type: ignore[arg-type]
        assert (scores.exact.value, scores.f1.value) == pytest.approx(expected), version


def test_questions_without_an_answer() -> None:
    gold = [["cat"], [], [], ["dog"]]
    scores = answer_scores(gold, ["cat", "", "cat", None])
    assert list(scores.each_exact) == [1, 1, 0, 0]
    assert scores.exact.value == scores.f1.value == 0.5
    assert scores.part(answerable=True).exact.value == 0.5
    assert scores.part(answerable=False).exact.value == 0.5
    assert scores.f1.interval(rounds=50).low >= 0
    # What is left of "the" is no answer.
    assert answer_scores([[]], ["the"]).exact.value == 1


def test_a_threshold_by_hand() -> None:
    # Answering none: 2 of 5. In order of probability: +1, +0.5, -1, +0 (no answer given), +1.
    found = best_threshold(
        [1, 0.5, 0, 1, 1],
        [True, True, False, False, True],
        [0.1, 0.2, 0.3, 0.4, 0.9],
        ["a", "b", "c", "", "d"],
    )
    assert (found.threshold, found.score) == pytest.approx((0.2, 3.5 / 5))
    # Only where answering is worse than leaving all without an answer is it 0.
    none = best_threshold([0, 0], [False, True], [0.5, 0.6], ["x", "y"])
    assert (none.threshold, none.score) == (0, 0.5)


Questions = list[tuple[float, bool, float, str]]
CHANCE = st.sampled_from([0.0, 0.25, 0.5, 1.0])


@given(st.lists(st.tuples(CHANCE, st.booleans(), CHANCE, st.sampled_from(["", "x"])), min_size=1))
@settings(deadline=None)
def test_no_threshold_beats_the_best_one(rows: Questions) -> None:
    scores, has, probability, answers = (list(column) for column in zip(*rows, strict=True))
    found = best_threshold(scores, has, probability, answers)  # type: ignore[arg-type]

    def at(threshold: float) -> float:
        total = 0.0
        for score, answerable, chance, answer in rows:
            # Without an answer a question scores 1 where there is none to find.
            given = chance <= threshold
            total += score if given and answerable else (not answerable and not (given and answer))
        return total / len(rows)

    assert found.score >= max(at(t) for t in (-1, 0.0, 0.25, 0.5, 1.0)) - 1e-12


@given(st.text(), st.lists(st.text(), min_size=1, max_size=3))
@settings(deadline=None)
def test_any_text(answer: str, gold: Sequence[str]) -> None:
    for version in (1, 2):
        scores = answer_scores([gold], [answer], version=version)  # type: ignore[arg-type]
        assert 0 <= scores.f1.value <= 1
    assert scores.exact.value <= scores.f1.value
    assert answer_scores([gold], [gold[0]], version=1).exact.value == 1


def test_mistakes() -> None:
    with pytest.raises(CallError, match="version is 3"):
        answer_scores([["x"]], ["x"], version=3)  # type: ignore[arg-type]
    with pytest.raises(CallError, match="version=2"):
        answer_scores([[]], ["x"], version=1)
    with pytest.raises(CallError, match="rows"):
        answer_scores([["x"]], [])
    with pytest.raises(CallError, match="rows"):
        answer_scores([["x"]], ["x"]).part(answerable=False)
