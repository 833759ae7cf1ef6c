"""Files of texts to a file of vectors: in constant memory, and resumable at any moment.

The rows go through the model in shards of a few thousand, each planned by length in itself, so that
neither an interruption nor the number of processes changes a byte of the result.

Legend: N rows, D numbers of a vector.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from enrobe import hub
from enrobe.checkpoint import read_json
from enrobe.errors import CallError, show
from enrobe.sentence_folder import PoolName
from enrobe.tasks.bulk_inputs import (
    STANDARD_INPUT,
    InputFile,
    Shards,
    check_readable,
    collect,
    file_sha256,
    fingerprint,
    model_sha256,
    relative,
)
from enrobe.tasks.bulk_state import (
    FORMAT,
    JobState,
    Progress,
    discard,
    refuse_others,
    state_folder,
    was_begun,
    was_moved,
)
from enrobe.tasks.bulk_work import Embedder, Work, run_shards
from enrobe.tasks.model import Device, EngineName
from enrobe.tasks.parts import Long
from enrobe.tasks.vector_files import Layout, Precision, check_kind, error_file, sidecar

Report = Callable[[int, int, float | None], object]
"""Called with the rows done, the tokens done, and the share of the input that has been read."""


@dataclass(frozen=True, kw_only=True)
class EmbeddedFile:
    """What a bulk job made."""

    output: Path
    rows: int
    failed: int
    # rows with an error; they have a place, but no vector
    dimensions: int
    tokens: int
    # that went through the model, special ones included
    resumed_at: int
    # rows that an earlier run had done
    seconds: float
    # of this run
    errors: Path | None = None
    # where the errors are told that have no place in the output
    left_out: tuple[str, ...] = ()
    # files in the folders that are of no known format

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary; paths become strings."""
        errors = None if self.errors is None else str(self.errors)
        plain = {"output": str(self.output), "errors": errors, "left_out": list(self.left_out)}
        return {**asdict(self), **plain}


def embed_files(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    pool: PoolName | Sequence[PoolName] | None = None,
    layers: int | Sequence[int] | None = None,
    normalize: bool | None = None,
    truncate_dim: int | None = None,
    prompt: str | None = None,
    long: Long = "window",
    column: str | None = None,
    precision: Precision = "float32",
    resume: bool = False,
    workers: int = 1,
    engine: EngineName = "auto",
    device: Device = "auto",
    report: Report | None = None,
) -> EmbeddedFile:
    """Write one vector for every row of files, in their order.

    Beside the output stands OUTPUT.json, which says what it was made from; beside npy and
    safetensors, where a row had an error, OUTPUT.errors.jsonl. Until the end everything is in
    OUTPUT.part, and the output appears whole or not at all.

    Args:
        inputs: files, or folders of them: what `data.readers.Source` reads. "-" is standard input,
            lines of text, or JSON lines where `column` is given; such a job cannot go on.
        output: its name ends with .npy, .safetensors, .jsonl or .parquet; see `vector_files`.
        model: as in `enrobe.load`.
        pool, layers, normalize, truncate_dim, prompt, long: as in `Model.embed`.
        column: which holds the text; None: "text", or the only one.
        precision: of the written numbers: "float32", "float16", or "int8" with a scale a row (not
            in an npy file).
        resume: go on with a job that was interrupted; where there is none, begin one; where it is
            finished already, only check that it is the same job.
        workers: processes, each with a share of the processor's cores and a model of its own (a
            script that asks for more than 1 needs the `if __name__ == "__main__":` of Python's
            multiprocessing).
        engine, device: as in `enrobe.load`.
        report: called after each shard, and once before the first.

    Raises:
        CallError: an argument is wrong; the output exists, or a job for it was begun, and `resume`
            is not asked for; it was begun with another model, other options or another input (the
            message says which); it cannot be written (what is done is kept).
        ModelError, HubError, MissingExtraError: as `enrobe.load`.
        KeyboardInterrupt: what is done is kept.
    """
    began = time.monotonic()
    target = Path(output)
    kind, width_name = check_kind(target, precision)
    if type(workers) is not int or workers < 1:
        raise CallError(f"workers is {show(workers)}; allowed: a whole number from 1")
    given = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    paths, left_out = collect(given, target)
    piped = str(paths[0]) == STANDARD_INPUT
    _check_begun(target, resume=resume, piped=piped)
    if not piped:
        check_readable(paths, column)
    folder = hub.resolve(model)
    options = {
        "pool": pool if pool is None or not isinstance(pool, str) else [pool],
        "layers": [layers] if isinstance(layers, int) else layers,
        "normalize": normalize,
        "truncate_dim": truncate_dim,
        "prompt": prompt,
        "long": long,
    }
    work = Work(folder=folder, options=options, engine=engine, device=device)
    embedder: Embedder | None = Embedder(work)
    assert embedder is not None
    layout = Layout(format=kind, precision=width_name, width=embedder.width)
    standard_input = InputFile(path=STANDARD_INPUT, bytes=0, sha256=None)
    times = _times(paths)
    files = [standard_input] if piped else fingerprint(paths, target)
    manifest = {
        "format": FORMAT,
        "model": {"name": _model_name(model, target), "sha256": model_sha256(folder)},
        "options": {
            **options,
            "text": column,
            "precision": precision,
            "engine": embedder.engine,
            "device": device,
        },
        "dimensions": layout.width,
        "similarity": embedder.similarity,
        "sources": [asdict(file) for file in files],
    }

    def result(progress: Mapping[str, Any], resumed_at: int) -> EmbeddedFile:
        return EmbeddedFile(
            output=target,
            rows=progress["rows"],
            failed=progress["failed"],
            dimensions=layout.width,
            tokens=progress["tokens"],
            resumed_at=resumed_at,
            seconds=round(time.monotonic() - began, 3),
            errors=error_file(target) if layout.is_bare and progress["failed"] else None,
            left_out=tuple(left_out),
        )

    if target.exists() and not state_folder(target).exists():
        facts = _finished(target, manifest)
        return result(facts, facts["rows"])
    if workers > 1:
        # Each has its own; this process needs none.
        embedder = None
    with JobState(target, layout, manifest) as state:
        progress = state.progress
        resumed_at = progress.rows
        try:
            if not progress.whole:
                done = [rows for rows, _ in progress.sources]
                shards = Shards(paths, [file.path for file in files], column, done)
                _go_on(state, shards, work, layout, embedder, workers, report)
                _check_unchanged(paths, files, times, target)
            state.finish(_facts(state.manifest, progress))
        except KeyboardInterrupt:
            if piped:
                raise
            message = f"stopped after {state.written:,} rows; go on with --resume"
            raise KeyboardInterrupt(message) from None
        finally:
            if piped:
                state.close()
                discard(target)
    return result(asdict(progress), resumed_at)


def _check_begun(target: Path, *, resume: bool, piped: bool) -> None:
    if resume and piped:
        raise CallError(
            "standard input cannot be read again, so a job on it cannot go on; fix: write the "
            "texts to a file first"
        )
    if target.exists() and not resume:
        raise CallError(f"{target} exists; fix: name another output, or delete it")
    if was_begun(target):
        if not resume:
            raise CallError(
                f"{target}: a job was begun and is not finished; fix: go on with --resume, or "
                f"delete {state_folder(target)} to begin anew"
            )
        if target.exists() and not was_moved(target):
            raise CallError(
                f"{target} exists, and a job for it is not finished; fix: move it away, or delete "
                f"{state_folder(target)}"
            )


def _model_name(model: str | os.PathLike[str] | None, target: Path) -> str | None:
    """What `enrobe search` can find the model by; a folder as seen from the output's."""
    name = model or os.environ.get(hub.ENVIRONMENT) or next(iter(hub.built_in()), None)
    if name is None or (isinstance(name, str) and name in hub.built_in()):
        return name
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return str(name)
    found = relative(folder, target)
    # Never to be taken for a hub id.
    return found if found.startswith((".", "/")) else f"./{found}"


def _finished(target: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a finished job's JSON file says, if it was this job."""
    if not sidecar(target).is_file():
        raise CallError(
            f"{target} exists, and no {sidecar(target).name} tells what made it; fix: name another "
            "output, or delete it"
        )
    facts: dict[str, Any] = read_json(sidecar(target))
    refuse_others(target, facts, manifest, "name another output")
    return facts


def _go_on(
    state: JobState,
    shards: Shards,
    work: Work,
    layout: Layout,
    embedder: Embedder | None,
    workers: int,
    report: Report | None,
) -> None:
    progress = state.progress

    def tell() -> None:
        if report is not None:
            report(progress.rows, progress.tokens, shards.share)

    tell()
    with closing(run_shards(shards, work, layout, progress.rows, embedder, workers)) as finished:
        for shard, done in finished:
            for n, (source, _) in enumerate(shard):
                progress.add(source, failed=n in done.failed)
            progress.tokens += done.tokens
            state.append(done.files)
            tell()


def _times(paths: Sequence[Path]) -> list[int]:
    return [path.stat().st_mtime_ns if path.is_file() else 0 for path in paths]


def _check_unchanged(
    paths: Sequence[Path], files: Sequence[InputFile], times: Sequence[int], target: Path
) -> None:
    """A file that somebody wrote to while it was read has rows that nobody hashed."""
    for path, file, old, new in zip(paths, files, times, _times(paths), strict=True):
        if old != new and file_sha256(path) != file.sha256:
            raise CallError(
                f"{path}: changed while it was read; fix: delete {state_folder(target)} and begin "
                "anew"
            )


def _facts(manifest: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    counts = [*progress.sources, *([[0, 0]] * len(manifest["sources"]))]
    sources = [
        {**source, "rows": rows, "failed": failed}
        for source, (rows, failed) in zip(manifest["sources"], counts, strict=False)
    ]
    counted = {"rows": progress.rows, "failed": progress.failed, "tokens": progress.tokens}
    return {**manifest, "sources": sources, **counted}
