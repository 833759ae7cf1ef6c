import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enrobe.evaluate.spans import conll_scores
from enrobe.text.tags import spans_of_tags, tags_of_spans


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("B-a I-a O B-a", [(0, 2, "a"), (3, 4, "a")]),
        ("B-a B-a I-b I-b", [(0, 1, "a"), (1, 2, "a"), (2, 4, "b")]),
        ("I-a I-a O I-a", [(0, 2, "a"), (3, 4, "a")]),
        ("S-a S-a B-a E-a I-a", [(0, 1, "a"), (1, 2, "a"), (2, 4, "a"), (4, 5, "a")]),
        ("U-a B-b L-b", [(0, 1, "a"), (1, 3, "b")]),
        ("B I O I", [(0, 2, ""), (3, 4, "")]),
        ("B-a-b I-a-b I-a", [(0, 2, "a-b"), (2, 3, "a")]),
        ("a a O b", [(0, 2, "a"), (3, 4, "b")]),
        ("X-a X-a", [(0, 2, "X-a")]),
        ("", []),
    ],
)
def test_spans_of_tags(tags: str, spans: list[tuple[int, int, str]]) -> None:
    assert spans_of_tags(tags.split()) == spans


def test_parts_of_speech_are_words() -> None:
    assert spans_of_tags(["N", "N", "V"], join=False) == [(0, 1, "N"), (1, 2, "N"), (2, 3, "V")]


TAGS = st.lists(st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b", "B", "I"]), max_size=12)


@given(TAGS)
def test_the_number_of_spans_is_conllevals(tags: list[str]) -> None:
    scores = conll_scores([tags, ["O"]], [tags, ["O"]])
    assert scores.total.gold == len(spans_of_tags(tags))


@given(TAGS, TAGS)
def test_right_spans_are_conllevals(gold: list[str], predicted: list[str]) -> None:
    size = min(len(gold), len(predicted))
    a, b = gold[:size], predicted[:size]
    scores = conll_scores([[*a, "O"]], [[*b, "O"]])
    assert scores.total.correct == len(set(spans_of_tags(a)) & set(spans_of_tags(b)))


@given(TAGS)
def test_bio_comes_back(tags: list[str]) -> None:
    spans = spans_of_tags(tags)
    words = np.array([[n, n + 1] for n in range(len(tags))], np.int64).reshape(-1, 2)
    assert spans_of_tags(tags_of_spans(words, spans)) == spans


def test_character_spans_to_tags() -> None:
    words = np.array([[0, 5], [5, 6], [7, 10], [11, 15]])
    tags = tags_of_spans(words, [(7, 15, "city"), (3, 8, "other"), (6, 7, "none")])
    assert tags == ["B-other", "I-other", "B-city", "I-city"]
    assert tags_of_spans(words[:0], [(0, 3, "x")]) == []
