"""Files and streams to rows of text, one at a time and in constant memory.

txt (a text a line), jsonl, csv and tsv (with a header line), gz and xz of these; parquet.
A row that cannot be read is a row with an error: the rest goes on.
"""

import glob
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from enrobe.data.streams import Stream, format_of
from enrobe.errors import CallError, MissingExtraError, TextError, nearest, show

FORMATS = ("txt", "jsonl", "csv", "tsv", "parquet")
_ALIASES = {"ndjson": "jsonl", "text": "txt"}
_BINARY = ("parquet",)
_DEFAULT_COLUMN = "text"


def is_readable(path: Path) -> bool:
    """Whether a file's name is that of a format which `Source` reads."""
    try:
        format_of(path, FORMATS, _ALIASES, _BINARY)
    except CallError:
        return False
    return True


def expand(files: Sequence[Path]) -> list[Path]:
    """The files that paths and patterns name, each pattern's in the order of their names.

    Raises:
        CallError: a pattern that no file fits.
    """
    found = []
    for path in files:
        some = sorted(Path(name) for name in glob.glob(str(path))) or [path]
        if not some[0].is_file():
            raise CallError(f"{path}: no such file")
        found += some
    return found


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
        if str(path) == "-":
            self.format = "jsonl" if column else "txt"
            self._stream = Stream(None)
        else:
            self.path = Path(path)
            packing, self.format = format_of(self.path, FORMATS, _ALIASES, _BINARY)
            if column and self.format == "txt":
                message = "a txt file has no columns; leave out the column"
                raise CallError(f"{path}: {message} {column!r}")
            self._stream = Stream(self.path, packing)
        self.name = self._stream.name

    @property
    def share(self) -> float | None:
        """How much of the file has been read, 0 to 1; None where the size is not known."""
        return self._stream.share

    def __iter__(self) -> Iterator[Row]:
        rows = {"txt": self._txt, "jsonl": self._jsonl, "parquet": self._parquet}
        with self._stream.reading():
            yield from rows.get(self.format, self._table)()

    def _txt(self) -> Iterator[Row]:
        for number, text, error in self._stream.lines():
            yield Row(number, text, error)

    def _jsonl(self) -> Iterator[Row]:
        for number, line, error in self._stream.lines():
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
        rows = self._stream.tab_rows() if self.format == "tsv" else self._stream.comma_rows()
        _, header, wrong = next(rows, (0, [], None))
        if wrong or not header:
            reason = f"header line: {wrong}" if wrong else "no header line"
            raise CallError(f"{self.name}: {reason}")
        place = header.index(self._pick(header))
        for number, fields, error in rows:
            if error is None and len(fields) != len(header):
                error = f"{len(fields)} fields under a header of {len(header)}"
            if error:
                yield Row(number, ",".join(fields), f"row {number}: {error}")
            else:
                yield Row(number, fields[place])

    def _parquet(self) -> Iterator[Row]:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ModuleNotFoundError:
            raise MissingExtraError("pyarrow", "parquet", "a parquet file") from None
        try:
            file = pq.ParquetFile(self._stream.raw)
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
