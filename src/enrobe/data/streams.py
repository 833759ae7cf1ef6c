"""A file's bytes to lines, or to rows of a table, in constant memory.

Every reader of text files stands on this: gz and xz, byte order marks, line ends, bytes that are
not UTF-8, quotation marks that are never closed.
"""

import csv
import gzip
import io
import lzma
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from enrobe.errors import CallError, show

_LONGEST_LINE = 64 * 2**20
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
Line = tuple[int, str, str | None]
"""Number from 1, text, what is wrong with it."""
Fields = tuple[int, list[str], str | None]
"""Number of the row (the first is 0), its fields, what is wrong with it."""


def format_of(
    path: Path, allowed: Sequence[str], aliases: Mapping[str, str], whole: Sequence[str] = ()
) -> tuple[str, str]:
    """Packing ("gz", "xz" or "") and format of a file, by its name.

    Args:
        path: its suffixes are read.
        allowed: the formats there are.
        aliases: other names of these.
        whole: those of them that cannot be packed.

    Raises:
        CallError: the name ends in none of them.
    """
    suffixes = [suffix.lstrip(".").lower() for suffix in path.suffixes]
    packing = suffixes.pop() if suffixes and suffixes[-1] in ("gz", "xz") else ""
    kind = suffixes[-1] if suffixes else ""
    kind = aliases.get(kind, kind)
    if kind not in allowed or (packing and kind in whole):
        raise CallError(
            f"{path}: format {show(path.suffix)}; allowed: {', '.join(allowed)}, and gz or xz of "
            "the text formats"
        )
    return packing, kind


class Stream:
    """An opened file, unpacked, or standard input; `share` tells how much of it is read."""

    def __init__(self, path: Path | None, packing: str = "") -> None:
        """Open a file; None: standard input.

        Raises:
            CallError: it cannot be opened.
        """
        self.name = "standard input" if path is None else str(path)
        self._size = 0
        if path is None:
            self.raw: IO[bytes] = sys.stdin.buffer
        else:
            try:
                self.raw = path.open("rb")
            except (OSError, ValueError) as error:
                # A NUL in the name is a ValueError.
                reason = getattr(error, "strerror", None) or str(error)
                raise CallError(f"{path}: {reason}") from None
            self._size = path.stat().st_size
        self._bytes: IO[bytes] = self.raw
        if packing == "gz":
            self._bytes = io.BufferedReader(gzip.GzipFile(fileobj=self.raw))
        elif packing == "xz":
            self._bytes = io.BufferedReader(lzma.LZMAFile(self.raw))  # noqa: SIM115  # closed with raw

    @property
    def share(self) -> float | None:
        """How much of the file has been read, 0 to 1; None where the size is not known."""
        if not self._size or self.raw.closed:
            return None
        return min(1.0, self.raw.tell() / self._size)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Close the file at the end; what is damaged in it becomes a CallError."""
        try:
            yield
        except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
            raise CallError(f"{self.name}: damaged ({error})") from None
        finally:
            if self.raw is not sys.stdin.buffer:
                self.raw.close()

    def read(self) -> bytes:
        """All of it, without a byte order mark."""
        content = self._bytes.read()
        self._refuse_utf16(content[:2])
        return content.removeprefix(b"\xef\xbb\xbf")

    def lines(self) -> Iterator[Line]:
        r"""Its lines without their ends; a line ends with \n or \r\n, and with nothing else."""
        number = 0
        while line := self._bytes.readline(_LONGEST_LINE):
            number += 1
            if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
                while (rest := self._bytes.readline(_LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield number, "", f"line {number}: over {_LONGEST_LINE >> 20} MiB long"
                continue
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if number == 1:
                self._refuse_utf16(line[:2])
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                yield number, line.decode("utf-8"), None
            except UnicodeDecodeError as error:
                wrong = f"line {number}: not UTF-8 (byte {error.start} of the line)"
                yield number, line.decode("utf-8", "replace"), wrong

    def tab_rows(self) -> Iterator[Fields]:
        """Rows of a table with tabs; a quotation mark means itself. Blank lines are no rows."""
        row = 0
        for _, line, wrong in self.lines():
            if line or wrong:
                yield row, line.split("\t"), wrong and wrong.partition(": ")[2]
                row += 1

    def comma_rows(self) -> Iterator[Fields]:
        """Rows of a csv table, the header's number being 0; blank lines are no rows.

        A header without a comma, but with semicolons or tabs, says what stands for the comma.
        """
        csv.field_size_limit(_LONGEST_LINE)
        text = io.TextIOWrapper(self._bytes, "utf-8-sig", "surrogateescape", newline="")
        lines = _Lines(text)
        try:
            first = next(lines, "")
            if _NOT_UTF8.match(first):
                self._refuse_utf16(first[:2].encode("utf-8", "surrogateescape"))
            lines.again = first
            yield from _fields(csv.reader(lines, delimiter=_delimiter(first)), lines)
        finally:
            # The stream is closed by whoever opened it, and may be so by now.
            with suppress(ValueError):
                text.detach()

    def _refuse_utf16(self, start: bytes) -> None:
        if start in _UTF16:
            raise CallError(f"{self.name}: is UTF-16; fix: save it as UTF-8")


class _Lines:
    """The lines of a text, and what is to be known of those that were read."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self.again: str | None = None
        # a line to give out once more
        self.broken = False
        # one of them was not UTF-8
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.again is not None:
            line, self.again = self.again, None
        else:
            line = next(self._text, "")
        if not line:
            self.ended = True
            raise StopIteration
        if not line.isascii() and _NOT_UTF8.search(line):
            self.broken = True
        return line


def _fields(reader: Iterator[list[str]], lines: _Lines) -> Iterator[Fields]:
    row = 0
    while True:
        lines.broken = False
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield row, [], str(error)
            row += 1
            continue
        if not fields:
            continue
        wrong = None
        if lines.ended:
            # A row that is complete does not ask for a further line.
            wrong = "a quotation mark opens there and never closes; the rest is lost"
        elif lines.broken:
            wrong = "not UTF-8"
            fields = [_NOT_UTF8.sub("\ufffd", field) for field in fields]
        yield row, fields, wrong
        row += 1


def _delimiter(header: str) -> str:
    if "," not in header:
        for other in (";", "\t"):
            if other in header:
                return other
    return ","
