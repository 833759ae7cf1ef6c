"""The labels of a task, once all of its rows are known: their order and their one spelling."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from enrobe.data.labels import CharSpan, Kind, Label, finite
from enrobe.errors import nearest, show
from enrobe.text.tags import OUTSIDE

# so many are shown of a rename
_SHOWN = 3


class LabelSet:
    """The labels of a task: `names` in the order of the head's outputs.

    A label has one spelling ("1" and "1.0" are one where all labels are numbers), and numbers stand
    for the places of names where those are given.
    """

    def __init__(
        self,
        kind: Kind,
        found: Mapping[str, int],
        *,
        allowed: Sequence[str] = (),
        known: Sequence[str] = (),
        spans: bool = False,
    ) -> None:
        """Settle them.

        Args:
            kind: the task's.
            found: how often each label stands in the rows; for spans their types.
            allowed: all that there may be; others are `refused`.
            known: the labels of another file, which come before `allowed`; others are `unseen`.
            spans: the rows have spans of characters; the names are then the tags of BIO.
        """
        fixed = tuple(known) or tuple(allowed)
        self.changed = one_spelling(found, fixed)
        counts: Counter[str] = Counter()
        for name, count in found.items():
            counts[self.changed.get(name, name)] += count
        self.counts: dict[str, int] = dict(counts)
        self.names = fixed or (bio(counts) if spans else in_order(counts))
        if kind in ("regress", "answer"):
            self.names = ()
        fit = {name[2:] for name in fixed if name[:2] in ("B-", "I-")} if spans else set(fixed)
        others = {name: count for name, count in counts.items() if fixed and name not in fit}
        self.unseen = others if known else {}
        self.refused = {} if known else others
        self.said: list[str] = []
        if self.changed:
            pairs = ", ".join(f"{a} is {b}" for a, b in list(self.changed.items())[:_SHOWN])
            places = fixed and not any(finite(name) is not None for name in fixed)
            what = (
                "numbers stand for places of labels" if places else "labels of one number are one"
            )
            self.said.append(f"{what}: {pairs}")

    def rename(self, label: Label | None) -> Label | None:
        """A label in the settled spelling."""
        if isinstance(label, str):
            return self.changed.get(label, label)
        if not isinstance(label, tuple):
            return label
        out: list[Any] = []
        for item in label:
            if isinstance(item, CharSpan):
                out.append(item._replace(label=self.changed.get(item.label, item.label)))
            else:
                out.append(self.changed.get(item, item) if isinstance(item, str) else item)
        return tuple(out)

    def wrong(self, label: Label | None) -> str | None:
        """Why a label is refused, or None."""
        for name in label_names(label):
            if name in self.refused:
                shown = ", ".join(self.names[:20])
                return f"label {show(name)}; allowed: {shown}{nearest(name, self.names)}"
        return None


def label_names(label: Label | None) -> tuple[str, ...]:
    """The names of classes in a label: of spans their types, of numbers and answers none."""
    if isinstance(label, str):
        return (label,)
    if not isinstance(label, tuple):
        return ()
    if label and not isinstance(label[0], str):
        return tuple(item.label for item in label if isinstance(item, CharSpan))
    return label  # type: ignore[return-value]  # all of one type


def has_spans(label: Label | None) -> bool:
    """Whether a label is one of spans of characters, and has some."""
    return isinstance(label, tuple) and bool(label) and isinstance(label[0], CharSpan)


def in_order(found: Iterable[str]) -> tuple[str, ...]:
    """Labels in the order of a head's outputs: "O" first, then numbers by size or words by name."""
    labels = set(found)
    values = {label: finite(label) for label in labels}
    if all(value is not None for value in values.values()):
        return tuple(sorted(labels, key=lambda label: (values[label], len(label), label)))
    return tuple(sorted(labels, key=lambda label: (label != OUTSIDE, label)))


def one_spelling(found: Iterable[str], known: Sequence[str] = ()) -> dict[str, str]:
    """For each label another spelling of which is known, that spelling: "1.0" is "1".

    Where `known` are names and all that is found counts from 0, the numbers are their places.
    """
    labels = in_order(found)
    values = [finite(label) for label in labels]
    if None in values:
        return {}
    numbers = {value: name for name in reversed(known) if (value := finite(name)) is not None}
    if known and not numbers:
        places = [
            int(v) for v in values if v is not None and v.is_integer() and 0 <= v < len(known)
        ]
        if len(places) < len(labels):
            return {}
        return {label: known[place] for label, place in zip(labels, places, strict=True)}
    if not known:
        # The shortest spelling of a number comes first.
        for label, value in zip(labels, values, strict=True):
            assert value is not None
            numbers.setdefault(value, label)
    changed = {
        label: numbers.get(v, label)
        for label, v in zip(labels, values, strict=True)
        if v is not None
    }
    return {label: name for label, name in changed.items() if label != name and label not in known}


def bio(types: Iterable[str]) -> tuple[str, ...]:
    """The tags of a head for spans of these types: O, then B- and I- of each."""
    return in_order([OUTSIDE, *(f"{side}-{kind}" for kind in types for side in "BI")])
