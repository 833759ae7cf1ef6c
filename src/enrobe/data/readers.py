"""Files and streams to rows of text, one at a time and in constant memory.

txt (a text a line), jsonl, csv and tsv (with a header line), gz and xz of these; parquet.
A row that cannot be read is a row with an error: the rest goes on.
"""

import csv
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from enrobe.errors import CallError, MissingExtraError, TextError, nearest, show

FORMATS = ("txt", "jsonl", "csv", "tsv", "parquet")
_LONGEST_LINE = 64 * 2**20
_DEFAULT_COLUMN = "text"


@dataclass(frozen=True)
class Row:
    """One row of a source; `text` is what could be read of it where there is an error."""

    number: int
    # the first row is 1
    text: str
    error: str | None = None


class Source:
    """An opened input: iterate it for its rows; `share` tells how much of the file is read."""

    def __init__(self, path: str | Path, column: str | None = None) -> None:
        """Open a file, or standard input for "-".

        Args:
            path: the format follows from the name; standard input is lines of text, or JSON lines
                where `column` is given.
            column: which column holds the text; None: "text", or the only one there is.

        Raises:
            CallError: no such file, an unknown format, or (at the first row) no such column.
        """
        self._column = column
        self._size = 0
        self._raw: IO[bytes]
        if str(path) == "-":
            self.name = "standard input"
            self.format = "jsonl" if column else "txt"
            self._raw = sys.stdin.buffer
            self._stream: IO[bytes] = self._raw
            return
        self.path = Path(path)
        self.name = str(path)
        packing, self.format = _format(self.path)
        if column and self.format == "txt":
            raise CallError(f"{path}: a txt file has no columns; leave out the column {column!r}")
        try:
            self._raw = self.path.open("rb")
        except OSError as error:
            raise CallError(f"{path}: {error.strerror}") from None
        self._size = self.path.stat().st_size
        if packing == "gz":
            self._stream = io.BufferedReader(gzip.GzipFile(fileobj=self._raw))
        elif packing == "xz":
            self._stream = io.BufferedReader(lzma.LZMAFile(self._raw))  # noqa: SIM115  # closed with _raw
        else:
            self._stream = self._raw

    @property
    def share(self) -> float | None:
        """How much of the file has been read, 0 to 1; None where the size is not known."""
        if not self._size or self._raw.closed:
            return None
        return min(1.0, self._raw.tell() / self._size)

    def __iter__(self) -> Iterator[Row]:
        rows = {"txt": self._txt, "jsonl": self._jsonl, "parquet": self._parquet}
        try:
            yield from rows.get(self.format, self._table)()
        except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
            raise CallError(f"{self.name}: damaged ({error})") from None
        finally:
            if self._raw is not sys.stdin.buffer:
                self._raw.close()

    def _lines(self) -> Iterator[tuple[int, str, str | None]]:
        number = 0
        while line := self._stream.readline(_LONGEST_LINE):
            number += 1
            if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
                while (rest := self._stream.readline(_LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield number, "", f"line {number}: over {_LONGEST_LINE >> 20} MiB long"
                continue
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                yield number, line.decode("utf-8"), None
            except UnicodeDecodeError as error:
                wrong = f"line {number}: not UTF-8 (byte {error.start} of the line)"
                yield number, line.decode("utf-8", "replace"), wrong

    def _txt(self) -> Iterator[Row]:
        for number, text, error in self._lines():
            yield Row(number, text, error)

    def _jsonl(self) -> Iterator[Row]:
        for number, line, error in self._lines():
            if error or not line.strip():
                if error:
                    yield Row(number, line, error)
                continue
            try:
                yield Row(number, self._of_record(number, json.loads(line)))
            except TextError as wrong:
                yield Row(number, line, str(wrong))
            except (ValueError, RecursionError) as wrong:
                yield Row(number, line, f"line {number}: not JSON ({wrong})")

    def _of_record(self, number: int, record: object) -> str:
        if isinstance(record, str) and self._column is None:
            return record
        if not isinstance(record, dict):
            raise TextError(f"line {number}: holds {type(record).__name__}; allowed: an object")
        column = self._column or _DEFAULT_COLUMN
        if column not in record:
            names = ", ".join(list(record)[:10])
            raise TextError(f"line {number}: no column {column!r}; it has: {names}")
        if not isinstance(record[column], str):
            value = show(record[column])
            raise TextError(f"line {number}: column {column!r} is {value}; allowed: a string")
        return str(record[column])

    def _table(self) -> Iterator[Row]:
        csv.field_size_limit(_LONGEST_LINE)
        # A byte that is not UTF-8 becomes half a surrogate pair, which the tokenizer refuses for
        # that row alone.
        text = io.TextIOWrapper(self._stream, "utf-8-sig", "surrogateescape", newline="")
        try:
            yield from self._fields(text)
        finally:
            # The stream is closed by whoever opened it.
            text.detach()

    def _fields(self, text: io.TextIOWrapper) -> Iterator[Row]:
        if self.format == "tsv":
            # A quotation mark means itself there.
            reader = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            reader = csv.reader(text)
        header = next(reader, None)
        if not header:
            raise CallError(f"{self.name}: no header line")
        place = header.index(self._pick(header))
        number = 0
        while True:
            number += 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Row(number, "", f"row {number}: {error}")
                continue
            if len(fields) != len(header):
                wrong = f"row {number}: {len(fields)} fields under a header of {len(header)}"
                yield Row(number, ",".join(fields), wrong)
            else:
                yield Row(number, fields[place])

    def _parquet(self) -> Iterator[Row]:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ModuleNotFoundError:
            raise MissingExtraError("pyarrow", "parquet", "a parquet file") from None
        try:
            file = pq.ParquetFile(self._raw)
            column = self._pick(file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=[column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    if isinstance(value, str):
                        yield Row(number, value)
                    else:
                        wrong = f"row {number}: {show(value)}; allowed: a string"
                        yield Row(number, "", wrong)
        except pa.ArrowException as error:
            raise CallError(f"{self.name}: damaged or not parquet ({error})") from None

    def _pick(self, names: list[str]) -> str:
        if self._column is None and len(names) == 1:
            return names[0]
        column = self._column or _DEFAULT_COLUMN
        if column not in names:
            shown = ", ".join(names[:20])
            hint = nearest(column, names)
            raise CallError(f"{self.name}: no column {column!r}; it has: {shown}{hint}")
        return column


def _format(path: Path) -> tuple[str, str]:
    suffixes = [suffix.lstrip(".").lower() for suffix in path.suffixes]
    packing = suffixes.pop() if suffixes and suffixes[-1] in ("gz", "xz") else ""
    kind = suffixes[-1] if suffixes else ""
    kind = {"ndjson": "jsonl", "text": "txt"}.get(kind, kind)
    if kind not in FORMATS or (packing and kind == "parquet"):
        raise CallError(
            f"{path}: format {show(path.suffix)}; allowed: {', '.join(FORMATS)}, and gz or xz of "
            "the text formats"
        )
    return packing, kind
