"""CoNLL's formats to sentences: a token a line, a blank line after each sentence.

Columns stand between tabs or between spaces, as in the file's first row. `-DOCSTART-` lines and
comments (`# text = …`) are left out, and so are CoNLL-U's ranges (`3-4 don't`) and empty nodes
(`8.1`): the words stay. A row that starts with # is a comment unless it has the file's columns.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from enrobe.data.streams import Line
from enrobe.errors import CallError

_UNIVERSAL = ("id", "tokens", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
_META = re.compile(r"#\s*([\w.]+)\s*=\s?(.*)")
_REMARK = re.compile(r"#\s*(id|sent_id|text|newdoc|newpar|doc)\b")
_GLOBAL = "global.columns"
Sentence = tuple[dict[str, Any], str | None]
"""A list for each column, and what is wrong with the sentence."""


class _File:
    """What is known of the file so far."""

    def __init__(self, columns: Sequence[str], universal: bool) -> None:
        self.universal = universal
        self.names = tuple(columns) or (_UNIVERSAL if universal else ())
        self._given = bool(columns)
        self._tabs: bool | None = True if universal else None

    def begin(self, line: str) -> None:
        """Learn from the first row of a token, before any other is read."""
        if self._tabs is not None:
            return
        self._tabs = "\t" in line
        fields = self.split(line)
        while len(fields) > 1 and not fields[-1]:
            fields.pop()
        if self._given and len(fields) != len(self.names):
            raise CallError(
                f"{len(self.names)} names for the columns ({', '.join(self.names)}), and the "
                f"first row has {len(fields)}"
            )
        more = ("tags",) if len(fields) == 2 else [f"column{n}" for n in range(2, len(fields) + 1)]
        self.names = self.names or ("tokens", *more)

    def split(self, line: str) -> list[str]:
        if self._tabs:
            return line.split("\t")
        return [field for field in line.split(" ") if field]

    def fields(self, line: str) -> list[str] | None:
        """The row's fields, or None where there are not as many as columns."""
        fields = self.split(line)
        while len(fields) > len(self.names) and not fields[-1]:
            fields.pop()
        return fields if len(fields) == len(self.names) else None

    def is_comment(self, line: str) -> bool:
        if not line.startswith("#"):
            return False
        if self.universal or _META.match(line) or _REMARK.match(line):
            return True
        return line.startswith("# ") if self._tabs is None else self.fields(line) is None


def sentences(
    lines: Iterator[Line], columns: Sequence[str] = (), *, universal: bool = False
) -> Iterator[Sentence]:
    """Read sentences; a bad row is an error of its sentence, and the others are read.

    Args:
        lines: of the file.
        columns: their names; else the first is "tokens", a second and last one "tags", and those
            of more are "column2", "column3", …
        universal: the file is CoNLL-U, whose ten columns have names.

    Raises:
        CallError: more or fewer names than columns.
    """
    file = _File(columns, universal)
    rows: list[list[str]] = []
    meta: dict[str, str] = {}
    error: str | None = None
    for number, line, wrong in chain(lines, [(0, "", None)]):
        if wrong:
            error = error or wrong
        elif not line.strip():
            if rows or error:
                yield _columns(file, rows, meta), error
            rows, meta, error = [], {}, None
        elif not rows and file.is_comment(line):
            found = _META.match(line)
            if found and found[1] == _GLOBAL:
                names = found[2].lower().split()
                file.names = tuple("tokens" if name == "form" else name for name in names)
            elif found:
                meta[found[1]] = found[2]
        elif line.split(maxsplit=1)[0] != "-DOCSTART-":
            file.begin(line)
            fields = file.fields(line)
            if fields is None:
                have = len(file.split(line))
                message = f"line {number}: {have} fields in a file of {len(file.names)} columns"
                error = error or message
            elif not (file.universal and not fields[0].isdigit()):
                rows.append(fields)
            elif not re.fullmatch(r"\d+[-.]\d+", fields[0]):
                error = error or f"line {number}: the number of a word is {fields[0]!a}"


def _columns(file: _File, rows: Sequence[Sequence[str]], meta: dict[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for place, name in enumerate(file.names):
        if not (file.universal and place == 0):
            values[name] = [row[place] for row in rows]
    for key, name in (("sent_id", "id"), ("text", "text")):
        if key in meta:
            values.setdefault(name, meta[key])
    return values
