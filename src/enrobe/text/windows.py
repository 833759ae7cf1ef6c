"""Long texts into windows that fit the model, and back.

All numbers are token positions in a text without its special tokens.
"""

from collections.abc import Sequence

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
