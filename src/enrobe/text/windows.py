"""Long texts into windows that fit the model, and back.

All numbers are token positions in a text without its special tokens.
"""

from collections.abc import Sequence
from itertools import pairwise

Window = tuple[int, int]


def around(spans: Sequence[Window], length: int, size: int) -> list[tuple[Window, list[int]]]:
    """Windows that hold each span whole, with as much text on either side as fits.

    Spans (start, stop) come in order and do not overlap. Spans that fit one window share it.
    Returns (window, indices of its spans), every span once; a span longer than `size` is cut.
    """
    groups: list[list[int]] = []
    for index, (_, stop) in enumerate(spans):
        if groups and stop - spans[groups[-1][0]][0] <= size:
            groups[-1].append(index)
        else:
            groups.append([index])
    out = []
    for group in groups:
        start, stop = spans[group[0]][0], spans[group[-1]][1]
        # Centred on its spans, then pushed back inside the text.
        margin = max(0, size - (stop - start))
        left = max(0, min(start - margin // 2, length - size))
        out.append(((left, min(length, left + size)), group))
    return out


def overlapping(length: int, size: int) -> list[tuple[Window, Window]]:
    """Windows that cover a text of `length` tokens, none longer than `size`.

    Neighbours share at least half of their tokens (to one), and all are equally far apart. Returns
    (window, the tokens that it answers for): every token is answered for once, by the window that
    has it nearest its middle, of equals the earlier one.
    """
    if length <= size:
        return [((0, length), (0, length))]
    count = -(-(length - size) // max(1, size // 2)) + 1
    starts = [i * (length - size) // (count - 1) for i in range(count)]
    # Half-way between the middles of two neighbours.
    edges = [0, *((a + b + size + 1) // 2 for a, b in pairwise(starts)), length]
    return [
        ((start, start + size), kept) for start, kept in zip(starts, pairwise(edges), strict=True)
    ]


def strided(length: int, size: int, overlap: int) -> list[Window]:
    """Windows of `size` from the start on, each sharing `overlap` tokens with the one before.

    The last one ends with the text and may be shorter; a text that fits, or is empty, is one.
    """
    step = max(1, size - overlap)
    count = 1 + max(0, -(-(length - size) // step))
    return [(i * step, min(length, i * step + size)) for i in range(count)]
