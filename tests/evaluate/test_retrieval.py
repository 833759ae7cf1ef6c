"""Ranks by hand, and against what drawing the order of equal scores by chance gives."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enrobe.errors import CallError
from enrobe.evaluate.retrieval import found


def test_by_hand() -> None:
    scores = [[0.9, 0.1, 0.5], [0.2, 0.1, 0.3], [0.5, 0.6, 0.7]]
    got = found(scores, [[0], [1], [2]])
    assert list(got.first) == [1, 0, 1]
    assert got.reciprocal == pytest.approx([1, 1 / 3, 1])
    assert got.accuracy().value == pytest.approx(2 / 3)
    assert got.mean_reciprocal_rank().value == pytest.approx(7 / 9)


def test_a_model_that_knows_nothing_finds_one_in_m() -> None:
    got = found(np.zeros((4, 4)), [[n] for n in range(4)])
    assert got.accuracy().value == pytest.approx(1 / 4)
    assert got.mean_reciprocal_rank().value == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_of_several_right_ones_the_best_placed_counts() -> None:
    got = found([[0.3, 0.2, 0.1], [0.1, 0.3, 0.3]], [[2, 1], [1, 2]])
    assert got.reciprocal == pytest.approx([1 / 2, 1])


@given(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.data())
@settings(deadline=None, max_examples=50)
def test_equal_scores_stand_in_every_order(scores: list[int], data: st.DataObject) -> None:
    right = data.draw(st.integers(0, len(scores) - 1))
    got = found([scores], [[right]])
    places = []
    for order in itertools.permutations(range(len(scores))):
        ranked = sorted(order, key=lambda n: -scores[n])
        places.append(ranked.index(right) + 1)
    assert got.first[0] == pytest.approx(np.mean([place == 1 for place in places]))
    assert got.reciprocal[0] == pytest.approx(np.mean([1 / place for place in places]))


@pytest.mark.parametrize(
    ("scores", "right"),
    [
        ([[1.0, 2.0]], []),
        ([1.0], [[0]]),
        ([[1.0]], [[]]),
        ([[1.0]], [[1]]),
        ([[float("nan")]], [[0]]),
    ],
)
def test_mistakes(scores: list[object], right: list[list[int]]) -> None:
    with pytest.raises(CallError):
        found(scores, right)  # type: ignore[arg-type]
