import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enrobe.text.ragged import Ragged, plan


def test_rows_lie_end_to_end_and_positions_start_anew_in_each() -> None:
    batch = Ragged.from_rows([[5, 6, 7], [8], [9, 10]], [[0, 0, 1], [0], [1, 1]])
    assert batch.ids.tolist() == [5, 6, 7, 8, 9, 10]
    assert batch.offsets.tolist() == [0, 3, 4, 6]
    assert batch.types.tolist() == [0, 0, 1, 0, 1, 1]
    assert batch.lengths.tolist() == [3, 1, 2]
    assert [batch.row(i).tolist() for i in range(len(batch))] == [[5, 6, 7], [8], [9, 10]]
    # RoBERTa's first position is padding_idx + 1 = 2, BERT's 0.
    assert batch.positions(2).tolist() == [2, 3, 4, 2, 2, 3]
    assert batch.positions(0).tolist() == [0, 1, 2, 0, 0, 1]


def test_types_are_zero_unless_given() -> None:
    assert Ragged.from_rows([[4, 4]]).types.tolist() == [0, 0]


def test_an_empty_row_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        Ragged.from_rows([[1], []])


@given(
    st.lists(st.integers(1, 600), max_size=200),
    st.integers(1, 2000),
    st.one_of(st.none(), st.integers(1, 9)),
)
def test_plan_places_every_row_once_within_the_budget(
    lengths: list[int], budget: int, most: int | None
) -> None:
    batches = plan(lengths, budget=budget, max_rows=most)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
        assert most is None or len(batch) <= most
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(flat, reverse=True)


def test_plan_never_pairs_one_long_row_with_many_short_ones() -> None:
    # The sum of tokens would fit; the block that attention works on would not.
    batches = plan([512, *[1] * 500], budget=1024)
    assert len(batches[0]) <= 2


def test_plan_is_the_same_every_time() -> None:
    lengths = np.random.default_rng(7).integers(1, 50, 300)
    first, second = plan(lengths, budget=200), plan(lengths, budget=200)
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
