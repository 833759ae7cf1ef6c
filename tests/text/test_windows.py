from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from enrobe.text.windows import around, overlapping


@given(st.integers(1, 2000), st.integers(1, 200), st.data())
def test_around_holds_every_span_whole(length: int, size: int, data: st.DataObject) -> None:
    edges = sorted(data.draw(st.sets(st.integers(0, length), max_size=12)))
    spans = [(a, min(b, a + size)) for a, b in zip(edges[::2], edges[1::2], strict=False) if a < b]
    windows = around(spans, length, size)
    assert [n for _, group in windows for n in group] == list(range(len(spans)))
    for (start, stop), group in windows:
        assert 0 <= start < stop <= length
        assert stop - start == min(size, length)
        assert all(start <= spans[n][0] and spans[n][1] <= stop for n in group)


def test_a_lone_span_stands_in_the_middle() -> None:
    assert around([(500, 501)], 1000, 101) == [((450, 551), [0])]


def test_a_span_near_an_end_has_text_on_one_side_instead() -> None:
    assert around([(3, 4)], 1000, 101) == [((0, 101), [0])]
    assert around([(998, 999)], 1000, 101) == [((899, 1000), [0])]


def test_spans_that_fit_share_a_window() -> None:
    assert [group for _, group in around([(10, 11), (60, 61), (400, 401)], 1000, 100)] == [
        [0, 1],
        [2],
    ]


@given(st.integers(0, 400), st.integers(1, 90))
def test_overlapping_windows_answer_for_each_token_once(length: int, size: int) -> None:
    windows = overlapping(length, size)
    assert [t for _, (a, b) in windows for t in range(a, b)] == list(range(length))
    for (start, stop), (a, b) in windows:
        assert 0 <= start <= a <= b <= stop <= length
        assert stop - start == min(size, length)
    for ((start, stop), _), ((later, _), _) in pairwise(windows):
        assert start < later
        # Half of the tokens, to one.
        assert size == 1 or stop - later >= size // 2
    middles = [start + stop for (start, stop), _ in windows]
    for n, (_, kept) in enumerate(windows):
        for token in range(*kept):
            distances = [abs(2 * token + 1 - middle) for middle in middles]
            assert distances.index(min(distances)) == n


def test_overlapping_windows_stand_evenly() -> None:
    assert overlapping(10, 10) == [((0, 10), (0, 10))]
    assert overlapping(0, 5) == [((0, 0), (0, 0))]
    assert overlapping(11, 10) == [((0, 10), (0, 6)), ((1, 11), (6, 11))]
    assert [window for window, _ in overlapping(23, 10)] == [(0, 10), (4, 14), (8, 18), (13, 23)]
