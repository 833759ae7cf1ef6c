"""Texts in several languages: which files are whose, and how often each is drawn.

A language with a hundred times the text of another would leave it nothing to learn from. Shares
that are proportional to size ** alpha, with alpha below 1, give the small ones more (Conneau and
Lample 2019, XLM, section 3.1: q_i ~ p_i ** alpha; Conneau et al. 2020, XLM-R: alpha 0.3).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from enrobe.data.readers import is_readable
from enrobe.errors import CallError

# Shares come out even after so many rows: a mixture's schedule stays short.
_PARTS = 10_000


def language_files(folder: Path) -> dict[str, list[Path]]:
    """The files of every language in a folder: a file or a folder each, which it is named after.

    `de.txt.xz`, or `de/` with any number of files in it. Names that begin with a full stop, and
    files of other kinds, are left out.

    Raises:
        CallError: no such folder, or no text in it; two entries of one name.
    """
    if not folder.is_dir():
        raise CallError(f"{folder}: no such folder; allowed: one with a file or folder a language")
    found: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        inside = sorted(entry.iterdir()) if entry.is_dir() else [entry]
        files = [path for path in inside if path.is_file() and is_readable(path)]
        if not files:
            continue
        name = entry.name if entry.is_dir() else entry.name.split(".")[0]
        if name in found:
            raise CallError(f"{folder}: {entry.name} and {found[name][0].name} are both {name}")
        found[name] = files
    if not found:
        raise CallError(f"{folder}: no text; allowed: a file (de.txt.xz) or a folder a language")
    return found


def smoothed(sizes: Sequence[int], weights: Sequence[float], alpha: float) -> list[float]:
    """Each source's share of the rows, weight * size ** alpha, in any unit.

    Shares that a power gives are rounded to 1 in 10,000, and none to nothing.
    """
    if not alpha:
        return list(weights)
    raw = [weight * size**alpha for size, weight in zip(sizes, weights, strict=True)]
    total = sum(raw)
    return [float(max(1, round(_PARTS * value / total))) for value in raw]


def in_shares(
    texts: Sequence[Callable[[], Iterable[str]]], weights: Sequence[float], alpha: float
) -> Iterator[str]:
    """As much text of each source as keeps the shares; all of the one that is scarcest for them.

    A vocabulary that is trained on them so is no more one language's than the rows are.

    Args:
        texts: gives a source's texts, each time it is called; they are gone through twice.
        weights, alpha: as for `smoothed`; sizes are in bytes of UTF-8.
    """
    sizes = [sum(len(text.encode()) for text in source()) for source in texts]
    known = [index for index, size in enumerate(sizes) if size]
    shares = smoothed([sizes[i] for i in known], [weights[i] for i in known], alpha)
    if not known:
        return
    budget = min(sizes[index] / share for index, share in zip(known, shares, strict=True))
    for index, share in zip(known, shares, strict=True):
        left = budget * share
        for text in texts[index]():
            if left <= 0:
                break
            left -= len(text.encode())
            yield text
