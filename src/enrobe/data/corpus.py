"""Text files to a corpus: memory-mapped shards of token ids, one a source file.

    CORPUS/
      manifest.json     written last: a folder without one is not finished
      00000/            the shard of the first source, visible only when complete
        tokens.bin      the ids of its documents end to end, uint16 or uint32; no special tokens
        ends.bin        int64: where each document ends, in tokens of this shard
        shard.json      what it was made from, for a build that goes on
      00001/ …

A text file has a paragraph a line, and a blank line ends a document; in any other format a row is a
document. A document's tokens are those of its text with a newline between paragraphs. All numbers
are little-endian.

Legend: T tokens of a shard, D documents of a shard.
"""

import hashlib
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from enrobe.atomic import new_folder, replace_file
from enrobe.checkpoint import read_json
from enrobe.data.readers import Row, Source
from enrobe.errors import CallError, TextError, show
from enrobe.text.ragged import row_offsets
from enrobe.text.tokenizer import Tokenizer
from enrobe.workers import end_with_parent

FORMAT = 1
TOKENS, ENDS, RECORD, MANIFEST = "tokens.bin", "ends.bin", "shard.json", "manifest.json"
# Characters that go to the tokenizer at once.
_CHUNK = 2**14
_OURS = re.compile(r"\d{5}|\.\d{5}\..*|\.manifest\.json")
_REBUILD = f"fix: delete {MANIFEST} there and build again; complete shards are kept"

Ids = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """One source file and what its shard holds."""

    name: str
    # without its folder
    bytes: int
    sha256: str
    # of the file as it stands on disk, packed or not
    documents: int
    tokens: int
    files: dict[str, int]
    # the shard's files and their sizes in bytes
    unreadable: int
    # documents left out: not UTF-8, half a surrogate pair, no text column
    reason: str | None
    # what was wrong with the first of them


@dataclass(frozen=True, eq=False)
class Shard:
    """The documents of one source, memory-mapped and read-only.

    Shapes: tokens (T,), ends (D,); document i is tokens[ends[i - 1] : ends[i]], never empty.
    """

    tokens: Ids
    ends: npt.NDArray[np.int64]


class Corpus:
    """An opened corpus; `sources` and `shards` are in the order in which the files were named."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Open a finished corpus; no token is read before it is asked for.

        Raises:
            CallError, ModelError: no manifest, a damaged one or one of another version; another
                tokenizer than the one it was made with; a shard that is missing or cut.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise CallError(f"{folder}: no {MANIFEST}; fix: build the corpus to its end")
        manifest = read_json(path)
        if manifest.get("format") != FORMAT:
            found = show(manifest.get("format"))
            fix = "fix: build the corpus in a new folder"
            raise CallError(f"{path}: format {found}; allowed: {FORMAT}; {fix}")
        if manifest.get("tokenizer") != fingerprint(tokenizer):
            fix = "fix: name the one that it was made with, or build in a new folder"
            raise CallError(f"{folder}: made with another tokenizer; {fix}")
        try:
            self.sources = tuple(SourceInfo(**entry) for entry in manifest["sources"])  # type: ignore[attr-defined]
            dtype = np.dtype({"uint16": "<u2", "uint32": "<u4"}[str(manifest["dtype"])])
            self.shards = tuple(
                _open_shard(folder / f"{number:05d}", info, dtype)
                for number, info in enumerate(self.sources)
            )
        except (KeyError, TypeError) as error:
            raise CallError(f"{path}: damaged ({error}); {_REBUILD}") from None
        self.folder = folder
        self._starts = row_offsets([info.documents for info in self.sources])

    @property
    def documents(self) -> int:
        """How many documents."""
        return int(self._starts[-1])

    @property
    def tokens(self) -> int:
        """How many tokens; no special token is among them."""
        return sum(info.tokens for info in self.sources)

    def document(self, index: int) -> Ids:
        """One document's ids: a read-only view into its shard, counted over all shards."""
        if not 0 <= index < self.documents:
            raise IndexError(f"document {index} of {self.documents}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        shard, place = self.shards[number], index - int(self._starts[number])
        start = int(shard.ends[place - 1]) if place else 0
        return shard.tokens[start : int(shard.ends[place])]


def fingerprint(tokenizer: Tokenizer) -> str:
    """The sha256 of a tokenizer's whole state, which its ids follow from."""
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()


def _open_shard(folder: Path, info: SourceInfo, dtype: np.dtype[Any]) -> Shard:
    sizes = {TOKENS: info.tokens * dtype.itemsize, ENDS: info.documents * 8}
    if info.files != sizes:
        raise CallError(f"{folder.parent / MANIFEST}: damaged ({info.name}); {_REBUILD}")
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            raise CallError(f"{path}: missing, part of the shard of {info.name}; {_REBUILD}")
        if (found := path.stat().st_size) != size:
            raise CallError(f"{path}: {found} bytes, not the {size} of the manifest; {_REBUILD}")
    shard = Shard(_map(folder / TOKENS, dtype), _map(folder / ENDS, np.dtype("<i8")))
    if info.documents and shard.ends[-1] != info.tokens:
        raise CallError(f"{folder / ENDS}: damaged; {_REBUILD}")
    return shard


def _map(path: Path, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    # An empty file cannot be mapped.
    if not path.stat().st_size:
        return np.empty(0, dtype)
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))


# --- building ---------------------------------------------------------------------------------


def build(
    folder: Path,
    sources: Sequence[Path],
    tokenizer: Tokenizer,
    *,
    workers: int = 1,
    done: Callable[[SourceInfo], object] | None = None,
) -> Corpus:
    """Make a corpus, or go on with one that was interrupted, and open it.

    A shard that is complete is kept where its source and the tokenizer are the same. A finished
    corpus is only checked: it never changes under a training run that reads it. Neither `workers`
    nor an interruption changes a byte of the result. One process at a time builds in a folder.

    Args:
        folder: where the corpus stands; made where it is missing.
        sources: what `readers.Source` reads: txt, jsonl (column "text"), gz and xz of these, …
        tokenizer: its ids are stored; special tokens in the text are read as plain text.
        workers: processes, each with one source at a time (a script that asks for more than 1
            needs the `if __name__ == "__main__":` of Python's multiprocessing). Memory does not
            grow with the files or their documents, only with the longest line.
        done: called with each source when its shard stands.

    Raises:
        CallError: a source that cannot be read, or that changed since the corpus was finished; a
            folder that holds other things or cannot be written (a full disk).
    """
    if not sources:
        raise CallError("a corpus needs a source; name at least one file")
    for path in sources:
        if not path.is_file():
            raise CallError(f"{path}: no such file")
    if (folder / MANIFEST).is_file():
        corpus = Corpus(folder, tokenizer)
        _check_sources(corpus, sources)
        return corpus
    _prepare(folder, len(sources))
    key = fingerprint(tokenizer)
    jobs = [(folder / f"{number:05d}", path, key) for number, path in enumerate(sources)]
    entries: dict[Path, SourceInfo] = {}
    for shard, info in _run(jobs, tokenizer, min(workers, len(jobs))):
        entries[shard] = info
        if done is not None:
            done(info)
    manifest = {
        "format": FORMAT,
        "tokenizer": key,
        "dtype": _dtype(tokenizer).name,
        "sources": [asdict(entries[shard]) for shard in sorted(entries)],
    }
    try:
        replace_file(folder / MANIFEST, _json(manifest))
    except OSError as error:
        raise CallError(f"{folder}: cannot be written ({error.strerror})") from None
    return Corpus(folder, tokenizer)


def _prepare(folder: Path, count: int) -> None:
    """Make the folder, and clear it of what an interrupted build left and nobody needs."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(folder.iterdir())
        for path in found:
            if not _OURS.fullmatch(path.name):
                raise CallError(f"{folder} holds {show(path.name)}; name a new folder")
        for path in found:
            if path.is_file():
                path.unlink()
            elif path.name.startswith(".") or int(path.name) >= count:
                shutil.rmtree(path)
    except OSError as error:
        raise CallError(f"{folder}: cannot be written ({error.strerror})") from None


def _check_sources(corpus: Corpus, sources: Sequence[Path]) -> None:
    fix = f"fix: delete {corpus.folder}, or name a new folder"
    if [info.name for info in corpus.sources] != [path.name for path in sources]:
        raise CallError(f"{corpus.folder}: built from other files; {fix}")
    for info, path in zip(corpus.sources, sources, strict=True):
        if _sha256(path) != info.sha256:
            raise CallError(f"{path}: changed since {corpus.folder} was built from it; {fix}")


# --- one shard --------------------------------------------------------------------------------

_Job = tuple[Path, Path, str]
# the shard's folder, its source, the tokenizer's fingerprint


def _shard(job: _Job, tokenizer: Tokenizer) -> tuple[Path, SourceInfo]:
    """Keep a shard that fits its source, else write it."""
    shard, source, key = job
    digest = _sha256(source)
    made_from = {"format": FORMAT, "tokenizer": key, "name": source.name, "sha256": digest}
    if (kept := _complete(shard, made_from)) is not None:
        return shard, kept
    shutil.rmtree(shard, ignore_errors=True)
    with new_folder(shard) as work:
        counts = _write_shard(work, Source(source), tokenizer)
        files = {name: (work / name).stat().st_size for name in (TOKENS, ENDS)}
        size = source.stat().st_size
        info = SourceInfo(name=source.name, bytes=size, sha256=digest, files=files, **counts)
        (work / RECORD).write_text(_json({**made_from, "source": asdict(info)}), "utf-8")
    return shard, info


def _complete(shard: Path, made_from: dict[str, object]) -> SourceInfo | None:
    """What a shard holds that an earlier build made from the same; None: it is to be made."""
    record = read_json(shard / RECORD) if (shard / RECORD).is_file() else {}
    if {key: record.get(key) for key in made_from} != made_from:
        return None
    info = SourceInfo(**record["source"])  # type: ignore[arg-type]
    found = {path.name: path.stat().st_size for path in shard.iterdir() if path.name != RECORD}
    return info if found == info.files else None


def _write_shard(work: Path, source: Source, tokenizer: Tokenizer) -> dict[str, Any]:
    dtype = _dtype(tokenizer)
    limit = _CHUNK if _may_cut(tokenizer) else None
    tokens = documents = unreadable = 0
    reason = None
    with (
        (work / TOKENS).open("wb") as token_file,
        (work / ENDS).open("wb") as end_file,
        # The source closes with its rows, and must also where writing fails.
        closing(iter(source)) as all_rows,  # type: ignore[type-var]
    ):
        for rows in _documents(all_rows, source.format):
            size = 0
            try:
                for chunk in _chunks(_paragraphs(rows), limit):
                    ids = _encode(tokenizer, chunk)
                    assert not len(ids) or int(ids.max()) <= np.iinfo(dtype).max
                    token_file.write(ids.astype(dtype).tobytes())
                    size += len(ids)
            except TextError as error:
                # What was written of this document goes again.
                token_file.seek(tokens * dtype.itemsize)
                token_file.truncate()
                unreadable += 1
                reason = reason or str(error)
                continue
            if size:
                tokens += size
                documents += 1
                end_file.write(struct.pack("<q", tokens))
    return {"documents": documents, "tokens": tokens, "unreadable": unreadable, "reason": reason}


def _documents(rows: Iterable[Row], file_format: str) -> Iterator[Iterable[Row]]:
    """The rows of one document after another; none is held in memory."""
    if file_format == "txt":
        groups = itertools.groupby(rows, key=_is_blank)
        yield from (group for blank, group in groups if not blank)
    else:
        yield from ((row,) for row in rows if not _is_blank(row))


def _is_blank(row: Row) -> bool:
    return row.error is None and not row.text.strip()


def _paragraphs(rows: Iterable[Row]) -> Iterator[str]:
    for row in rows:
        if row.error is not None:
            raise TextError(row.error)
        yield from row.text.split("\n")


def _chunks(paragraphs: Iterable[str], limit: int | None) -> Iterator[str]:
    """The paragraphs joined by newlines, in pieces of about `limit` characters.

    A piece ends with a character that is no space and the next one begins with a newline: there
    every word ends, so the tokens are those of the whole text.
    """
    parts: list[str] = []
    size = 0
    for number, paragraph in enumerate(paragraphs):
        if limit and size >= limit and not parts[-1][-1].isspace():
            yield "".join(parts)
            parts, size = [], 0
        parts.append(("\n" if number else "") + paragraph)
        size += len(parts[-1])
    yield "".join(parts)


def _may_cut(tokenizer: Tokenizer) -> bool:
    """False for a tokenizer that begins a text in a way of its own (with a space put before)."""
    pieces = [_encode(tokenizer, text) for text in ("a b", "\nc d")]
    return np.array_equal(np.concatenate(pieces), _encode(tokenizer, "a b\nc d"))


def _encode(tokenizer: Tokenizer, text: str) -> npt.NDArray[np.int64]:
    (ids,) = tokenizer.ids([text], special=False)
    if isinstance(ids, TextError):
        raise ids
    return ids


# --- worker processes -------------------------------------------------------------------------


def _run(
    jobs: Sequence[_Job], tokenizer: Tokenizer, workers: int
) -> Iterator[tuple[Path, SourceInfo]]:
    if workers <= 1:
        yield from (_shard(job, tokenizer) for job in jobs)
        return
    # A fresh interpreter each: the fork of a process that has threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (tokenizer,))
    try:
        for future in as_completed([pool.submit(_work, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool:
        raise CallError(
            "a worker process died, perhaps for want of memory; "
            "fix: build again with fewer workers; complete shards are kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_tokenizer: Tokenizer | None = None
# a worker's own, sent to it once


def _start_worker(tokenizer: Tokenizer) -> None:
    global _tokenizer
    _tokenizer = tokenizer
    # The processes are the parallelism; threads in each would be too many.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Ctrl-C reaches the workers, too: they end without a traceback each.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent()


def _work(job: _Job) -> tuple[Path, SourceInfo]:
    assert _tokenizer is not None
    return _shard(job, _tokenizer)


def _json(value: object) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CallError(f"{path}: {error.strerror}") from None


def _dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
