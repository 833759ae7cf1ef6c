"""A task's files to a training set and a dev set, which is split off where no file is given.

A split does not depend on the order of the rows: where a row goes follows from a hash of its text
and the seed. Rows that hold the same text (case and spaces aside), the same context, or the same
value of the `group` column are never parted. Each label keeps its share.
"""

import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from enrobe.data.examples import Example, Examples, TaskConfig, read_examples
from enrobe.data.guess import complete
from enrobe.data.label_sets import label_names
from enrobe.data.labels import Kind
from enrobe.errors import CallError, show
from enrobe.text.tags import OUTSIDE

# Numbers are held apart by tenths of the rows.
_TENTHS = 10
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class TaskData:
    """What a task is trained and measured on."""

    task: TaskConfig
    # its columns filled in
    train: Examples
    dev: Examples
    # its labels are those of `train`; others are in `dev.unseen`
    test: Examples | None
    said: tuple[str, ...]
    # what was taken for granted and what is to be known of the data, in sentences to print


def load_task(task: TaskConfig, *, seed: int = 1) -> TaskData:
    """Read the files of a task, and split a dev set off where it has none.

    Raises:
        CallError: a file or a column is missing or in doubt; the rows have no label, or only one;
            nothing is left for a dev set.
    """
    guess = complete(task)
    task, said = guess.task, [*guess.said]
    train = read_examples(task, task.train)
    said += train.said
    _check(task, train)
    if task.dev:
        dev = read_examples(task, task.dev, labels=train.labels)
        said += dev.said
    else:
        whole = train
        train, dev = split(whole, task.kind, share=task.dev_share, seed=seed)
        said.append(
            f"no dev file: {len(dev)} of {len(whole)} rows were split off, the same ones each time"
        )
    test = None
    if task.test:
        # Published test files often have no labels.
        test = read_examples(task, task.test, labels=train.labels, labelled=False)
        said += test.said
    parts = {"train": train, "dev": dev, **({"test": test} if test else {})}
    for name, part in parts.items():
        said += _remarks(name, part, train)
    return TaskData(task, train, dev, test, tuple(said))


def _check(task: TaskConfig, train: Examples) -> None:
    names = ", ".join(str(path) for path in task.train)
    if all(row.label is None for row in train):
        raise CallError(f"{names}: no row has a label in {' and '.join(task.label) or 'it'}")
    if task.kind == "classify" and len(train.labels) == 1:
        raise CallError(f"{names}: one label only, {show(train.labels[0])}; a classifier needs two")
    if task.kind == "tag" and len(train.labels) < 2:
        only = f"one tag only, {show(train.labels[0])}" if train.labels else "no span in any row"
        raise CallError(f"{names}: {only}; there is nothing to tell apart")
    if task.kind == "multilabel" and not train.labels:
        raise CallError(f"{names}: no row has a label; there is nothing to tell apart")
    if task.kind == "regress":
        numbers = {row.label for row in train if row.label is not None}
        if len(numbers) == 1:
            raise CallError(f"{names}: one number only, {numbers.pop()}; there is nothing to learn")


def _remarks(name: str, part: Examples, train: Examples) -> list[str]:
    found = []
    if part.bad:
        what = (
            f"{len(part.bad)} of {len(part.bad) + len(part)} rows cannot be read and are left out"
        )
        found.append(f"{name}: {what}; the first: {part.bad[0].error}")
    if part.unseen:
        shown = ", ".join(show(label) for label in list(part.unseen)[:_SHOWN])
        found.append(
            f"{name}: {sum(part.unseen.values())} labels are not among those of train: {shown}"
        )
    if unlabelled := sum(row.label is None for row in part):
        found.append(f"{name}: {unlabelled} of {len(part)} rows have no label")
    if part is not train:
        known = {text_key(row) for row in train}
        if same := sum(text_key(row) in known for row in part):
            found.append(f"{name}: {same} of {len(part)} rows have a text that train has, too")
    return found


def text_key(row: Example) -> str:
    """What is the same for two rows that hold the same text, case and spaces aside."""
    first = _plain(row.text)
    return first if row.pair is None else f"{first}\0{_plain(row.pair)}"


def _plain(text: str) -> str:
    text = text.casefold()
    # The only space that is printable is the ordinary one.
    if text.isprintable() and "  " not in text:
        return text.strip()
    return " ".join(text.split())


def split(
    examples: Examples, kind: Kind, *, share: float = 0.1, seed: int = 1
) -> tuple[Examples, Examples]:
    """Part rows in two; those without a label stay in the first part.

    Args:
        examples: the rows.
        kind: the task's.
        share: of the labelled rows that go to the second part, of each label as nearly as may be.
        seed: another one gives another split.

    Raises:
        CallError: all labelled rows hold the same text, or there is only one.
    """
    roots = _groups(examples.rows, kind)
    members: defaultdict[str, list[int]] = defaultdict(list)
    for place, root in enumerate(roots):
        if examples.rows[place].label is not None:
            members[root].append(place)
    if len(members) < 2:
        raise CallError(
            f"{sum(map(len, members.values()))} labelled rows of {len(members)} text cannot be "
            "split; fix: give a dev file"
        )
    stratum_of = _strata(examples.rows, kind)
    strata: defaultdict[str, list[str]] = defaultdict(list)
    sizes = Counter(stratum_of(row) for row in examples.rows if row.label is not None)
    for root, places in members.items():
        # A group of several labels counts for the rarest one.
        names = {stratum_of(examples.rows[place]) for place in places}
        strata[min(names, key=lambda name: (sizes[name], name))].append(root)
    taken: set[str] = set()
    carry = 0.0
    for name in sorted(strata):
        order = sorted(strata[name], key=lambda root: (_hash(root, seed), root))
        wanted = carry + share * sum(len(members[root]) for root in order)
        for root in order[:-1]:
            if len(members[root]) / 2 <= wanted:
                taken.add(root)
                wanted -= len(members[root])
        carry = wanted
    if not taken:
        # So few rows that none is due: the dev set must have one.
        taken.add(min(members, key=lambda root: (_hash(root, seed), root)))
    goes = [
        root in taken and row.label is not None
        for root, row in zip(roots, examples.rows, strict=True)
    ]
    return _part(examples, [not to for to in goes]), replace(_part(examples, goes), bad=(), said=())


def _part(examples: Examples, which: Sequence[bool]) -> Examples:
    rows = tuple(row for row, wanted in zip(examples.rows, which, strict=True) if wanted)
    return replace(examples, rows=rows)


def _hash(key: str, seed: int) -> bytes:
    return blake2b(f"{seed}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _groups(rows: Sequence[Example], kind: Kind) -> list[str]:
    """For each row the smallest key of all rows that must stay with it."""
    parent: dict[str, str] = {}

    def find(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = key = parent[parent[key]]
        return key

    keys = [_key(row, kind) for row in rows]
    for key, row in zip(keys, rows, strict=True):
        a = find(key)
        if row.group is not None:
            a, b = sorted((a, find(f"\0group\0{row.group}")))
            parent[b] = a
    return [find(key) for key in keys]


def _key(row: Example, kind: Kind) -> str:
    if kind == "answer" and row.pair is not None:
        return _plain(row.pair)
    return text_key(row)


def _strata(rows: Sequence[Example], kind: Kind) -> Callable[[Example], str]:
    """What a row is held apart by: its label, the rarest of several, its tenth of the numbers."""
    if kind == "answer":
        return lambda row: "with answer" if row.label else "without"
    if kind == "regress":
        numbers = sorted(row.label for row in rows if isinstance(row.label, float))
        count = len(numbers)
        edges = [numbers[count * tenth // _TENTHS] for tenth in range(1, _TENTHS)] if count else []
        return lambda row: str(bisect.bisect_right(edges, row.label))  # type: ignore[type-var]
    counts = Counter(name for row in rows for name in set(label_names(row.label)))
    counts.pop(OUTSIDE, None)

    def rarest(row: Example) -> str:
        names = (name for name in label_names(row.label) if name in counts)
        return min(names, key=lambda name: (counts[name], name), default="")

    return rarest
