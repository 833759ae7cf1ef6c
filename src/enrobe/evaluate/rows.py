"""Labelled files to rows: one or two text columns and a label.

A row that cannot be read is counted with its reason, and the rest goes on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enrobe.data.records import Records
from enrobe.errors import CallError, TextError, nearest, show


@dataclass(frozen=True)
class Rows:
    """What could be read of a file, in its order."""

    numbers: list[int] = field(default_factory=list)
    # of the record, or of its line
    texts: list[tuple[str, ...]] = field(default_factory=list)
    # of each row, as many as there are text columns
    labels: list[object] = field(default_factory=list)
    # as they stand in the file; None where none was asked for
    errors: list[str] = field(default_factory=list)
    # one a row that was left out


def read_rows(path: Path, text: Sequence[str], label: str | None = None) -> Rows:
    """Read text columns and a label of every row of a file (`enrobe.data.records`).

    A text is a string, or a list of words, which are joined by spaces.

    Raises:
        CallError: no such file or column, an unknown format, a damaged file, or no row that can
            be read.
        MissingExtraError: a parquet file without pyarrow.
    """
    rows = Rows()
    for record in Records(path):
        if record.error is not None:
            rows.errors.append(record.error)
            continue
        try:
            texts = tuple(_text(record.values, name) for name in text)
            value = None if label is None else _label(record.values, label)
        except TextError as error:
            rows.errors.append(f"row {record.number}: {error}")
            continue
        rows.numbers.append(record.number)
        rows.texts.append(texts)
        rows.labels.append(value)
    if not rows.texts:
        first = f"; the first: {rows.errors[0]}" if rows.errors else ""
        raise CallError(f"{path}: no row can be read{first}")
    return rows


def as_number(label: object) -> float:
    """A label as a finite number.

    Raises:
        TextError: it is none.
    """
    try:
        value = float(label) if isinstance(label, str | int | float) else math.nan
    except (ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value) or isinstance(label, bool):
        raise TextError(f"label {show(label)}; allowed: a number")
    return value


def _value(values: Mapping[str, Any], name: str) -> object:
    if name not in values:
        shown = ", ".join(list(values)[:20])
        raise TextError(f"no column {name!r}; it has: {shown}{nearest(name, values)}")
    return values[name]


def _text(values: Mapping[str, Any], name: str) -> str:
    value = _value(values, name)
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return " ".join(value)
    if not isinstance(value, str):
        raise TextError(f"column {name!r} is {show(value)}; allowed: a string or a list of words")
    return value


def _label(values: Mapping[str, Any], name: str) -> object:
    value = _value(values, name)
    if value is None or value == "" or not isinstance(value, str | int | float):
        raise TextError(f"column {name!r} is {show(value)}; allowed: a word or a number")
    return value
