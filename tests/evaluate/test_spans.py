"""Chunks as conlleval counts them: cases worked by hand from its rules, and its loop restated."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enrobe.errors import CallError
from enrobe.evaluate.spans import SpanCounts, conll_scores, span_scores

# gold, predicted, (correct, in gold, predicted), each worked out by hand.
CASES = {
    "nothing": ("O O", "O O", (0, 0, 0)),
    "equal": ("B-X I-X O B-Y", "B-X I-X O B-Y", (2, 2, 2)),
    "one token too short": ("B-X I-X O", "B-X O O", (0, 1, 1)),
    "the wrong type": ("B-X I-X", "B-Y I-Y", (0, 1, 1)),
    "IOB1 and IOB2 are the same": ("I-X I-X O I-Y", "B-X I-X O B-Y", (2, 2, 2)),
    "IOB1 parts neighbours by B": ("I-X B-X", "B-X B-X", (2, 2, 2)),
    "I after O begins": ("B-X O", "I-X O", (1, 1, 1)),
    "I of another type begins": ("B-X I-Y", "B-X B-Y", (2, 2, 2)),
    "the type changes inside": ("B-X I-X I-X", "B-X I-Y I-X", (0, 1, 3)),
    "a chunk at the end": ("O B-X", "O B-X", (1, 1, 1)),
    "one long for two short": ("B-X B-X", "B-X I-X", (0, 2, 1)),
    # IOE2: E closes a chunk, and what follows begins one.
    "E before I": ("I-X E-X I-X E-X", "B-X I-X B-X I-X", (2, 2, 2)),
    "E after E": ("E-X E-X", "B-X B-X", (2, 2, 2)),
    # No rule has E before B: the chunk goes on.
    "E before B": ("B-X E-X B-X", "B-X I-X I-X", (1, 1, 1)),
    # S is an unknown prefix: two of a type are one chunk, since only the type is looked at.
    "S after S": ("S-X S-X", "B-X I-X", (1, 1, 1)),
    "S after O": ("O S-X O", "O B-X O", (1, 1, 1)),
    # Without a type, an unknown prefix is nothing.
    "a word without a hyphen": ("NP NP", "B-X O", (0, 0, 1)),
    "a hyphen in the type": ("B-a-b I-a-b", "B-a-b I-a-b", (1, 1, 1)),
    "a hyphen in the type, not equal": ("B-a-b I-a-b", "B-a I-a", (0, 1, 1)),
    "B without a type": ("B I", "B I", (1, 1, 1)),
    "brackets stand alone": ("[-X ]-X", "B-X B-X", (2, 2, 2)),
}


def counts_of(gold: list[list[str]], guess: list[list[str]]) -> tuple[int, int, int]:
    total = conll_scores(gold, guess).total
    return total.correct, total.gold, total.predicted


@pytest.mark.parametrize(("gold", "guess", "expected"), CASES.values(), ids=CASES)
def test_by_hand(gold: str, guess: str, expected: tuple[int, int, int]) -> None:
    assert counts_of([gold.split()], [guess.split()]) == expected


def test_a_sentence_ends_every_chunk() -> None:
    assert counts_of([["B-X"], ["I-X"]], [["B-X"], ["I-X"]]) == (2, 2, 2)
    assert counts_of([["B-X", "I-X"]], [["B-X", "I-X"]]) == (1, 1, 1)


def test_the_example_of_the_shared_task() -> None:
    # The table that conlleval prints: accuracy, precision, recall and FB1 of all and of each type.
    gold = [["B-NP", "I-NP", "B-VP", "O", "B-PP", "B-NP"], [], ["O", "B-NP"]]
    guess = [["B-NP", "I-NP", "B-VP", "O", "B-NP", "I-NP"], [], ["B-PP", "B-NP"]]
    scores = conll_scores(gold, guess)
    assert scores.tag_accuracy == 5 / 8
    assert scores.total == SpanCounts(correct=3, gold=5, predicted=5)
    assert scores.per_label == {
        "NP": SpanCounts(correct=2, gold=3, predicted=3),
        "PP": SpanCounts(correct=0, gold=1, predicted=1),
        "VP": SpanCounts(correct=1, gold=1, predicted=1),
    }
    assert scores.per_label["NP"].f1 == pytest.approx(2 / 3)
    assert scores.f1.value == pytest.approx(scores.total.f1)
    assert scores.f1.interval(rounds=50).high <= 1


def test_nothing_to_find_is_0_and_no_error() -> None:
    scores = conll_scores([["O"]], [["O"]])
    assert (scores.total.precision, scores.total.recall, scores.total.f1) == (0, 0, 0)
    assert scores.f1.value == 0
    assert conll_scores([[]], [[]]).tag_accuracy == 0


def chunks(tags: list[str]) -> set[tuple[int, int, str]]:
    """The chunks of IOB1 or IOB2 tags, in the plain way."""
    found, start = set(), None
    last = "O"
    for place, tag in enumerate([*tags, "O"]):
        goes_on = tag.startswith("I-") and last[2:] == tag[2:] and last != "O"
        if start is not None and not goes_on:
            found.add((start, place, last[2:]))
            start = None
        if tag != "O" and not goes_on:
            start = place
        last = tag
    return found


IOB = st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"])
SENTENCES = st.lists(st.lists(st.tuples(IOB, IOB), max_size=9), min_size=1, max_size=5)


@given(SENTENCES)
@settings(deadline=None)
def test_of_iob_tags_it_is_the_plain_way(rows: list[list[tuple[str, str]]]) -> None:
    gold, guess = ([[pair[side] for pair in row] for row in rows] for side in (0, 1))
    plain_gold, plain_guess = ([sorted(chunks(tags)) for tags in side] for side in (gold, guess))
    expected, found = span_scores(plain_gold, plain_guess), conll_scores(gold, guess)
    assert found.total == expected.total
    assert found.per_label == expected.per_label
    assert found.f1.value == pytest.approx(expected.f1.value)


ANY = st.tuples(st.sampled_from("OBIESLU.[]"), st.sampled_from(["", "-X", "-Y", "-a-b"]))


@given(st.lists(st.lists(st.tuples(ANY, ANY), max_size=9), min_size=1, max_size=4))
@settings(deadline=None)
def test_any_tags_at_all(rows: list[list[tuple[tuple[str, str], tuple[str, str]]]]) -> None:
    gold, guess = ([["".join(pair[side]) for pair in row] for row in rows] for side in (0, 1))
    total = conll_scores(gold, guess).total
    assert 0 <= total.correct <= min(total.gold, total.predicted)
    back = conll_scores(guess, gold).total
    assert (back.gold, back.predicted) == (total.predicted, total.gold)


def test_given_spans() -> None:
    gold = [[(0, 2, "X"), (5, 6, "Y")], []]
    guess = [[(0, 2, "X"), (0, 2, "X"), (5, 6, "X")], [(1, 2, "Y")]]
    scores = span_scores(gold, guess)
    assert scores.total == SpanCounts(correct=1, gold=2, predicted=3)
    assert scores.per_label["Y"] == SpanCounts(correct=0, gold=1, predicted=1)
    assert scores.tag_accuracy is None


def test_rows_that_do_not_pair_up() -> None:
    with pytest.raises(CallError, match="sentence 1: 1 tags and 2"):
        conll_scores([["O"], ["O"]], [["O"], ["O", "O"]])
    with pytest.raises(CallError, match="rows"):
        conll_scores([], [])
    with pytest.raises(CallError, match="rows"):
        span_scores([[]], [])
