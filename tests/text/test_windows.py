from hypothesis import given
from hypothesis import strategies as st

from enrobe.text.windows import around


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
