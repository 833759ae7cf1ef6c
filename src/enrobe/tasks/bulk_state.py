"""A bulk job on disk: what it was begun with, how far it is, and its end.

    OUT.part/
      manifest.json   what the job was begun with; written once
      progress.json   the rows done and the lengths of the files below; replaced after each shard
      data, …         the output as it grows (vector_files)

A shard is appended and synced, then progress.json is replaced. What stands beyond the lengths in
it is cut off when the job goes on, so that a kill, a full disk or Ctrl-C costs the shards at work
and no more. At the end the file gets its counts and moves to its place in one rename, after what
stands beside it.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from enrobe.atomic import replace_file, sync
from enrobe.checkpoint import read_json
from enrobe.errors import CallError, show
from enrobe.tasks.bulk_inputs import STATE_SUFFIX
from enrobe.tasks.vector_files import ERRORS, Layout, begin, complete, error_file, sidecar

FORMAT = 1
_MANIFEST, _PROGRESS, _LOCK, _SIDECAR = "manifest.json", "progress.json", "lock", "sidecar.json"


@dataclass(kw_only=True)
class Progress:
    """How far a job is."""

    rows: int = 0
    failed: int = 0
    tokens: int = 0
    # that went through the model
    sources: list[list[int]] = field(default_factory=list)
    # of each input up to here: rows, and those with an error
    lengths: dict[str, int] = field(default_factory=dict)
    # bytes of each growing file
    whole: str = ""
    # the file that is the output, when only the moves are left

    def add(self, source: int, *, failed: bool) -> None:
        """Count a row."""
        while len(self.sources) <= source:
            self.sources.append([0, 0])
        self.sources[source][0] += 1
        self.sources[source][1] += failed
        self.rows += 1
        self.failed += failed


class JobState:
    """The folder of a job that is not finished; one process at a time has it open."""

    def __init__(self, output: Path, layout: Layout, manifest: Mapping[str, Any]) -> None:
        """Begin a job, or open one that has been begun, at the last shard that was written.

        manifest: "model", "options", "sources", …; a job that was begun has the same.

        Raises:
            CallError: it has not, another process has it open, or nothing can be written here.
        """
        self.folder = state_folder(output)
        self._output, self._layout = output, layout
        self._files: dict[str, IO[bytes]] = {}
        if not output.parent.is_dir():
            raise CallError(f"{output}: no such folder as {output.parent}")
        with writing(output):
            self.folder.mkdir(exist_ok=True)
            self._lock = _locked(self.folder / _LOCK, output)
        try:
            with writing(output):
                self._open(dict(manifest))
        except BaseException:
            self.close()
            raise

    def _open(self, manifest: dict[str, Any]) -> None:
        if not was_begun(self._output):
            # What is left of a job on standard input.
            for name in (_MANIFEST, _PROGRESS):
                (self.folder / name).unlink(missing_ok=True)
        if (self.folder / _MANIFEST).is_file():
            self.manifest = read_json(self.folder / _MANIFEST)
            where = f"delete {self.folder} to begin anew"
            refuse_others(self._output, self.manifest, manifest, where)
        else:
            self.manifest = manifest
            _write_json(self.folder / _MANIFEST, manifest)
        if (self.folder / _PROGRESS).is_file():
            self.progress = Progress(**read_json(self.folder / _PROGRESS))  # type: ignore[arg-type]
        else:
            start = begin(self._layout)
            for name, content in start.items():
                (self.folder / name).write_bytes(content)
            self.progress = Progress(lengths={name: len(start[name]) for name in start})
        self.written = self.progress.rows
        if self.progress.whole:
            return
        for name, length in self.progress.lengths.items():
            file = (self.folder / name).open("r+b")
            self._files[name] = file
            if file.seek(0, os.SEEK_END) < length:
                raise CallError(
                    f"{self.folder / name}: shorter than what was written; fix: delete "
                    f"{self.folder} and begin anew"
                )
            file.truncate(length)
            file.seek(length)

    def append(self, files: Mapping[str, bytes]) -> None:
        """Write a shard that `progress` counts already; when this returns it is there for good.

        Raises:
            CallError: it cannot be written; the shards before stand.
        """
        with writing(self._output):
            for name, content in files.items():
                if content:
                    self._files[name].write(content)
                    self._files[name].flush()
                    os.fsync(self._files[name].fileno())
                self.progress.lengths[name] += len(content)
            _write_json(self.folder / _PROGRESS, asdict(self.progress))
        self.written = self.progress.rows

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Put the output and what stands beside it in their places, and remove the folder.

        Args:
            facts: what the output's JSON file says.

        Raises:
            CallError: as `append`.
        """
        with writing(self._output):
            if not self.progress.whole:
                whole = complete(self._layout, self.folder, self.progress.rows)
                _write_json(self.folder / _SIDECAR, facts)
                self.progress.whole = whole.name
                _write_json(self.folder / _PROGRESS, asdict(self.progress))
            # A job that dies in the middle of these does the rest of them when it goes on.
            moves = [(_SIDECAR, sidecar(self._output)), (self.progress.whole, self._output)]
            if self.progress.failed and ERRORS in self.progress.lengths:
                moves.insert(0, (ERRORS, error_file(self._output)))
            elif self._layout.is_bare:
                error_file(self._output).unlink(missing_ok=True)
            for name, target in moves:
                if (self.folder / name).is_file():
                    (self.folder / name).replace(target)
            sync(self._output.parent)
            self.close()
            shutil.rmtree(self.folder)

    def close(self) -> None:
        """Close the files; the job can go on later."""
        for file in (*self._files.values(), self._lock):
            # What could not be written (a full disk) would be tried again here.
            try:
                file.close()
            except OSError:
                continue

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.close()


def state_folder(output: Path) -> Path:
    """Where an unfinished job is."""
    return output.with_name(output.name + STATE_SUFFIX)


def refuse_others(
    output: Path, begun: Mapping[str, Any], given: Mapping[str, Any], fix: str
) -> None:
    """Raise CallError where a job was begun with another model, other options or other inputs."""
    try:
        found = _differences(output, begun, given, fix)
    except (KeyError, TypeError, AttributeError):
        raise CallError(f"{output}: what tells how it was begun is damaged; fix: {fix}") from None
    if found:
        raise CallError(
            f"{output}: begun with another model, other options or another input: "
            f"{'; '.join(found)}; fix: give the same, or {fix}"
        )


def _differences(
    output: Path, begun: Mapping[str, Any], given: Mapping[str, Any], fix: str
) -> list[str]:
    if begun.get("format") != given["format"]:
        raise CallError(f"{output}: begun by another version of Enrobe; fix: {fix}")
    found = []
    if begun["model"]["sha256"] != given["model"]["sha256"]:
        found.append(f"the model (was {show(begun['model']['name'])})")
    # As JSON: a tuple that was written is a list.
    was, now = begun["options"], json.loads(json.dumps(given["options"]))
    found += [
        f"{name} (is {show(now[name])}, was {show(was.get(name))})"
        for name in now
        if now[name] != was.get(name)
    ]
    before, after = ([(s["bytes"], s["sha256"]) for s in m["sources"]] for m in (begun, given))
    if len(before) != len(after):
        found.append(f"the input ({len(after)} files, were {len(before)})")
    else:
        paths = [source["path"] for source in given["sources"]]
        differ = [p for p, a, b in zip(paths, before, after, strict=True) if a != b]
        found += [f"the input {', '.join(differ[:3])}"] if differ else []
    return found


def was_begun(output: Path) -> bool:
    """Whether a job for this output can go on; one on standard input cannot."""
    folder = state_folder(output)
    if not (folder / _MANIFEST).is_file():
        return False
    sources: Any = read_json(folder / _MANIFEST).get("sources")
    return all(source["sha256"] is not None for source in sources)


def was_moved(output: Path) -> bool:
    """Whether a job died when its output was in its place already."""
    folder = state_folder(output)
    if not (folder / _PROGRESS).is_file():
        return False
    whole = read_json(folder / _PROGRESS).get("whole")
    return bool(whole) and not (folder / str(whole)).exists()


def discard(output: Path) -> None:
    """Remove what is left of a job that cannot go on."""
    shutil.rmtree(state_folder(output), ignore_errors=True)


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """A full disk, or a folder that may not be written, is one line."""
    try:
        yield
    except CallError:
        raise
    except OSError as error:
        kept = "; what is done is kept; go on with --resume" if was_begun(output) else ""
        raise CallError(f"{output}: cannot be written ({error.strerror}){kept}") from None


def _locked(path: Path, output: Path) -> IO[bytes]:
    file = path.open("wb")
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        return file
    try:
        # Given back by the system when the process ends, however it ends.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise CallError(f"{output}: another process is writing it") from None
    return file


def _write_json(path: Path, value: object) -> None:
    replace_file(path, json.dumps(value, indent=None if path.name == _PROGRESS else 2) + "\n")
