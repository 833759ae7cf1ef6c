"""The inputs of a bulk job: which files they are, what is in them, and their rows in shards.

A shard is a number of rows that are computed and written together. Where one ends follows from the
rows alone, so that a job that goes on has the same ones.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from enrobe.checkpoint import weight_files
from enrobe.data.readers import FORMATS, Source
from enrobe.errors import CallError
from enrobe.tasks.vector_files import Item, error_file, sidecar

STANDARD_INPUT = "-"
STATE_SUFFIX = ".part"
# Sorted by length, so many rows waste little; and a kill loses little work.
_SHARD_ROWS = 2048
_SHARD_CHARACTERS = 500_000


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One file, as it was when the job began; of standard input nothing is known."""

    path: str
    # from the output's folder
    bytes: int
    sha256: str | None


def collect(inputs: Sequence[str | os.PathLike[str]], output: Path) -> tuple[list[Path], list[str]]:
    """The files of a list of files and folders, and those of the folders that are left out.

    A folder gives its files of a known format, by name, those of folders in it too; no hidden ones,
    and neither the output nor what belongs to it.

    Raises:
        CallError: no such file, a folder without any, the output among them, or standard input
            beside others.
    """
    if not inputs:
        raise CallError("no input; name a file or a folder, or - for standard input")
    found: list[Path] = []
    skipped: list[str] = []
    for name in inputs:
        path = Path(name)
        if name == STANDARD_INPUT:
            if len(inputs) > 1:
                raise CallError("standard input (-) is one of several inputs; allowed: alone")
            return [path], []
        if not path.is_dir():
            if not path.is_file():
                raise CallError(f"{path}: no such file or folder")
            if output.exists() and path.samefile(output):
                raise CallError(f"{path} is the output, too; name another output")
            found.append(path)
            continue
        ours = {p.absolute() for p in (output, error_file(output), sidecar(output))}
        inside = [file for file in _walk(path) if file.absolute() not in ours]
        known = [file for file in inside if _is_text(file)]
        if not known:
            raise CallError(f"{path}: no file in it is one of {', '.join(FORMATS)}")
        found += known
        skipped += [str(file) for file in inside if not _is_text(file)]
    return found, skipped


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and path.suffix != STATE_SUFFIX and not path.is_symlink():
            yield from _walk(path)


def _is_text(path: Path) -> bool:
    """As `data.readers` names formats."""
    suffixes = [suffix.lstrip(".").lower() for suffix in path.suffixes]
    if suffixes[-1:] in (["gz"], ["xz"]):
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in (*FORMATS, "ndjson", "text")


def check_readable(paths: Sequence[Path], column: str | None) -> None:
    """Read the first row of every file, so that a mistake in the last one shows at once.

    Raises:
        CallError: as `data.readers.Source`.
    """
    for path in paths:
        with closing(iter(Source(path, column))) as rows:  # type: ignore[type-var]
            next(rows, None)


def fingerprint(paths: Sequence[Path], output: Path) -> list[InputFile]:
    """Every file with the hash of what is in it."""
    return [
        InputFile(path=relative(path, output), bytes=path.stat().st_size, sha256=file_sha256(path))
        for path in paths
    ]


def relative(path: Path, output: Path) -> str:
    """A path as seen from the folder of the output, so that both can be moved together."""
    try:
        return Path(os.path.relpath(path, output.parent)).as_posix()
    except ValueError:  # another drive
        return str(path.absolute())


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes.

    Raises:
        CallError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CallError(f"{path}: {error.strerror}") from None


def model_sha256(folder: Path) -> str:
    """The sha256 of every file that a model's vectors follow from: names, sizes and contents.

    These are the weights, all JSON and vocabulary files, and those of sentence-transformers'
    modules. Not cached: a base model takes half a second, and a cache could be wrong.
    """
    names = {folder / name for name in ("merges.txt", "vocab.txt")} | set(weight_files(folder))
    names |= {*folder.glob("*.json"), *folder.glob("*.model")}
    for module in folder.glob("*/config.json"):
        names |= {module, *module.parent.glob("*.safetensors")}
    total = hashlib.sha256()
    for path in sorted(names):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            total.update(f"{name} {path.stat().st_size} {file_sha256(path)}\n".encode())
    return total.hexdigest()


class Shards:
    """The rows of files, from a place on, in shards; iterate it once."""

    def __init__(
        self, paths: Sequence[Path], names: Sequence[str], column: str | None, done: Sequence[int]
    ) -> None:
        """Open nothing yet.

        Args:
            paths, names: the files, and what they are called in the output.
            column: which holds the text.
            done: how many rows of each file not to read again; all of it but for the last entry,
                and further files have none.
        """
        self._paths, self._names, self._column, self._done = paths, names, column, done
        self._sizes = [0 if str(p) == STANDARD_INPUT else p.stat().st_size for p in paths]
        self._read = 0
        self._source: Source | None = None

    @property
    def share(self) -> float | None:
        """How much has been read, 0 to 1; None where it is not known."""
        total = sum(self._sizes)
        if not total:
            return None
        now = self._source.share if self._source is not None else None
        here = now * self._source.path.stat().st_size if self._source and now is not None else 0
        return min(1.0, (self._read + here) / total)

    def __iter__(self) -> Iterator[list[tuple[int, Item]]]:
        """Lists of (number of the file, row)."""
        shard: list[tuple[int, Item]] = []
        characters = 0
        for index, item in self._items():
            shard.append((index, item))
            characters += len(item.text)
            if len(shard) >= _SHARD_ROWS or characters >= _SHARD_CHARACTERS:
                yield shard
                shard, characters = [], 0
        if shard:
            yield shard

    def _items(self) -> Iterator[tuple[int, Item]]:
        last = len(self._done) - 1
        for index, (path, name) in enumerate(zip(self._paths, self._names, strict=True)):
            if index >= last:
                skip = self._done[index] if index == last else 0
                self._source = Source(path, self._column)
                with closing(iter(self._source)) as rows:  # type: ignore[type-var]
                    for row in islice(rows, skip, None):
                        yield index, Item(name, row.number, row.text, row.error)
                self._source = None
            self._read += self._sizes[index]
