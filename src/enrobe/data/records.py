"""Labelled files to records: a dictionary of column to value, one at a time.

    csv, tsv     strings; a header line, or names for the columns. tsv has no quoting, as GLUE's
                 files have none; its CoLA, which has no header, is known by its four columns
    jsonl        an object a line; of some of SuperGLUE's with columns of ours (data/superglue.py)
    json         a list of objects, or SQuAD's nested form of version 1 or 2 (read whole)
    conll        a list for each column, a sentence a record; conllu: CoNLL-U's ten columns
    parquet      the values as Python has them (extra: parquet)
    txt          the column "text", a line a record

All but parquet may be packed (gz, xz). A record that cannot be read has an error, and the rest goes
on. Memory holds one record, or a parquet file's row group, or a json file.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from enrobe.data.conll import sentences
from enrobe.data.streams import Fields, Stream, format_of
from enrobe.data.superglue import unfold
from enrobe.errors import CallError, MissingExtraError, nearest, show

FORMATS = ("csv", "tsv", "jsonl", "json", "conll", "conllu", "parquet", "txt")
_ALIASES = {"ndjson": "jsonl", "text": "txt", "iob": "conll", "iob2": "conll", "bio": "conll"}
_COLA = ("source", "label", "mark", "sentence")
_ANSWER_KEYS = ("id", "question", "answers", "is_impossible")
# A header is made of names; what is longer is data.
_LONGEST_NAME = 60


class Record(NamedTuple):
    """One record; `values` is what could be read of it where there is an error."""

    number: int
    # its line (jsonl, txt), else which record of the file it is, from 1
    values: Mapping[str, Any]
    error: str | None = None


class Records:
    """An opened labelled file: iterate it once for its records."""

    def __init__(
        self, path: str | Path, *, format: str | None = None, columns: Sequence[str] = ()
    ) -> None:
        """Open a file.

        Args:
            path: the format follows from the name, unless it is given.
            format: one of FORMATS.
            columns: names for the columns of a csv, tsv or CoNLL file without a header; further
                fields of a row are then left out.

        Raises:
            CallError: no such file or format; while reading: damaged, no header line.
        """
        self.path = Path(path)
        self.notes: list[str] = []
        # what was taken for granted while reading, in sentences
        if format is not None and format not in FORMATS:
            hint = nearest(format, FORMATS)
            allowed = ", ".join(FORMATS)
            raise CallError(f"format is {show(format)}; allowed: {allowed}{hint}")
        if format is None:
            packing, self.format = format_of(self.path, FORMATS, _ALIASES, ("parquet",))
        else:
            packing = self.path.suffix.lstrip(".").lower()
            packing, self.format = packing if packing in ("gz", "xz") else "", format
        if columns and self.format not in ("csv", "tsv", "conll"):
            raise CallError(
                f"{path}: names for its columns are given, but a {self.format} has them"
            )
        self._columns = tuple(columns)
        self._stream = Stream(self.path, packing)
        self.name = self._stream.name

    @property
    def share(self) -> float | None:
        """How much of the file has been read, 0 to 1; None where the size is not known."""
        return self._stream.share

    def __iter__(self) -> Iterator[Record]:
        readers = {
            "csv": self._table,
            "tsv": self._table,
            "jsonl": self._jsonl,
            "json": self._json,
            "parquet": self._parquet,
            "txt": self._txt,
        }
        with self._stream.reading():
            yield from readers.get(self.format, self._conll)()

    def _txt(self) -> Iterator[Record]:
        for number, line, wrong in self._stream.lines():
            yield Record(number, {"text": line}, wrong)

    def _jsonl(self) -> Iterator[Record]:
        for number, line, wrong in self._stream.lines():
            if wrong:
                yield Record(number, {}, wrong)
            elif line.strip():
                yield from _of_line(number, line)

    def _json(self) -> Iterator[Record]:
        try:
            text = self._stream.read().decode("utf-8")
            start, _, rest = text.lstrip().partition("\n")
            if start.startswith("{") and start.rstrip().endswith("}") and rest.strip():
                self.notes.append(f"{self.name} holds JSON lines")
                for number, line in enumerate(text.split("\n"), 1):
                    if line.strip():
                        yield from _of_line(number, line)
                return
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CallError(f"{self.name}: not JSON ({error})") from None
        if isinstance(content, dict):
            content = content.get("data")
        if not isinstance(content, list):
            raise CallError(f"{self.name}: allowed: a list of objects, or SQuAD's form with 'data'")
        records = chain.from_iterable(_unfold(item) for item in content)
        for number, (values, wrong) in enumerate(records, 1):
            yield Record(number, values, wrong and f"record {number}: {wrong}")

    def _conll(self) -> Iterator[Record]:
        universal = self.format == "conllu"
        try:
            found = sentences(self._stream.lines(), self._columns, universal=universal)
            for number, (values, wrong) in enumerate(found, 1):
                yield Record(number, values, wrong and f"sentence {number}: {wrong}")
        except CallError as error:
            named = str(error).startswith(self.name)
            raise error if named else CallError(f"{self.name}: {error}") from None

    def _table(self) -> Iterator[Record]:
        rows = self._stream.tab_rows() if self.format == "tsv" else self._stream.comma_rows()
        first, header = self._header(rows)
        width, shift = len(header), 1 if first else 0
        for number, fields, wrong in chain(first, rows):
            if len(fields) > width and (self._columns or not any(fields[width:])):
                fields = fields[:width]
            if wrong is None and len(fields) != width:
                wrong = f"{len(fields)} fields under a header of {width}"
            values = dict(zip(header, fields, strict=False))
            yield Record(number + shift, values, wrong and f"row {number + shift}: {wrong}")

    def _header(self, rows: Iterator[Fields]) -> tuple[list[Fields], Sequence[str]]:
        """The first row where it is no header, and the names of the columns."""
        first = next(rows, None)
        if self._columns:
            return [first] if first else [], self._columns
        if first is None:
            raise CallError(f"{self.name}: no header line")
        _, fields, wrong = first
        if wrong:
            raise CallError(f"{self.name}: header line: {wrong}")
        if self.format == "tsv" and len(fields) == 4 and fields[1:3] in _COLA_ROWS:
            self.notes.append(
                f"{self.name} has no header; its columns are CoLA's: {', '.join(_COLA)}"
            )
            return [first], _COLA
        return [], _unlike(fields)

    def _parquet(self) -> Iterator[Record]:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ModuleNotFoundError:
            raise MissingExtraError("pyarrow", "parquet", "a parquet file") from None
        try:
            number = 0
            for batch in pq.ParquetFile(self._stream.raw).iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Record(number, values)
        except pa.ArrowException as error:
            raise CallError(f"{self.name}: damaged or not parquet ({error})") from None


_COLA_ROWS = [["0", ""], ["1", ""], ["0", "*"], ["1", "*"]]


def looks_like_data(names: Sequence[str]) -> bool:
    """Whether what stands as a header is rather the first row of a file without one."""
    numbers = any(name.strip().lstrip("-").replace(".", "", 1).isdigit() for name in names)
    return numbers or any(len(name) > _LONGEST_NAME for name in names)


def _unlike(names: Sequence[str]) -> list[str]:
    """The names of a header; one that stands there again gets a number, as pandas has it."""
    out: list[str] = []
    for name in names:
        count, unused = 0, name
        while unused in out:
            count += 1
            unused = f"{name}.{count}"
        out.append(unused)
    return out


def _of_line(number: int, line: str) -> Iterator[Record]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        yield Record(number, {}, f"line {number}: not JSON ({error})")
        return
    if not isinstance(values, dict):
        wrong = f"line {number}: holds {type(values).__name__}; allowed: an object"
        yield Record(number, {}, wrong)
        return
    for own in unfold(values):
        yield Record(number, own)


def _unfold(item: object) -> Iterator[tuple[dict[str, Any], str | None]]:
    """The questions of one of SQuAD's articles, or the item itself where it is a record."""
    if not isinstance(item, dict):
        yield {}, f"is {show(item)}; allowed: an object"
        return
    if "paragraphs" not in item:
        yield item, None
        return
    paragraphs = item["paragraphs"]
    for paragraph in paragraphs if isinstance(paragraphs, list) else [paragraphs]:
        questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
        if not isinstance(questions, list):
            yield {}, f"a paragraph is {show(paragraph)}; allowed: an object with 'qas'"
            continue
        for question in questions:
            if not isinstance(question, dict):
                yield {}, f"a question is {show(question)}; allowed: an object"
                continue
            values = {"title": item.get("title"), "context": paragraph.get("context")}
            yield {**values, **{k: question[k] for k in _ANSWER_KEYS if k in question}}, None
