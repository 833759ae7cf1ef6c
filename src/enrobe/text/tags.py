"""Tags of words to labelled spans, and back: BIO, and the schemes that are read like it.

    B-x  I-x     begins x; goes on with it, and begins it where none is open
    E-x  L-x     the last word of x                     (IOBES, BILOU)
    S-x  U-x     x in one word
    B, I, ...    the same, where there is one kind of span and it has no name
    O            no span
    x            a label without a prefix; see `spans_of_tags`

Of B, I and O, whatever their order, the same spans are read as conlleval's.
"""

from collections.abc import Sequence

from enrobe.text.ragged import Ids

OUTSIDE = "O"
WordSpan = tuple[int, int, str]
"""First word, the one after the last, label."""


def split_tag(tag: str) -> tuple[str, str]:
    """Prefix ("" for none) and label of a tag; the label of `O` is ""."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, _, label = tag.partition("-")
    return (prefix, label) if prefix in ("B", "I", "E", "L", "S", "U") else ("", tag)


def spans_of_tags(tags: Sequence[str], *, join: bool = True) -> list[WordSpan]:
    """The spans that the tags of a text say.

    Args:
        tags: one a word.
        join: neighbours with the same label without a prefix are one span. A tag set that has an
            `O` means spans by them; one that has none (parts of speech) means words.
    """
    spans: list[WordSpan] = []
    open_: str | None = None
    for word, tag in enumerate(tags):
        prefix, label = split_tag(tag)
        if prefix == OUTSIDE:
            open_ = None
            continue
        goes_on = prefix in ("I", "E", "L") or (join and not prefix)
        if goes_on and open_ == label:
            spans[-1] = (spans[-1][0], word + 1, label)
        else:
            spans.append((word, word + 1, label))
        open_ = None if prefix in ("E", "L", "S", "U") else label
    return spans


def tags_of_spans(words: Ids, spans: Sequence[tuple[int, int, str]]) -> list[str]:
    """BIO tags of words, from labelled spans of the same text.

    Args:
        words: start and end of each word (`rows.Words.spans`). Shapes: (W, 2).
        spans: (start, end, label), counted as the words are.

    A word that shares a character with a span is part of it; of two spans, of the first given.
    """
    tags = [OUTSIDE] * len(words)
    for start, end, label in spans:
        prefix = "B"
        for n in ((words[:, 1] > start) & (words[:, 0] < end)).nonzero()[0].tolist():
            if tags[n] == OUTSIDE:
                tags[n] = f"{prefix}-{label}"
                prefix = "I"
    return tags
