"""Exact search in a file of vectors: every row is compared, one block at a time.

Legend: Q queries, N rows, K hits.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from enrobe import hub
from enrobe.checkpoint import read_json
from enrobe.data.readers import Source
from enrobe.engines.base import Array
from enrobe.errors import CallError, show
from enrobe.sentence_folder import SimilarityName
from enrobe.tasks.bulk_inputs import collect, file_sha256, model_sha256, relative
from enrobe.tasks.model import load
from enrobe.tasks.pooling import similarity
from enrobe.tasks.vector_blocks import blocks
from enrobe.tasks.vector_files import check_kind, pyarrow, sidecar

_OPTIONS = ("pool", "layers", "normalize", "truncate_dim", "prompt", "long")


@dataclass(frozen=True)
class Hit:
    """One row that was found."""

    row: int
    # of the file of vectors, from 0
    score: float
    # a distance counts as its negative
    source: str | None
    # the file that the text is from, as seen from the file of vectors
    number: int | None
    # of the row in it, from 1
    text: str | None
    # None: it is not known, or its file is not there any more or has changed


@dataclass(frozen=True)
class Found:
    """What `search` says of one query."""

    query: str
    hits: tuple[Hit, ...]
    # best first; of equal ones, the earlier row

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary whose keys are the field names."""
        return asdict(self)


def search(
    path: str | os.PathLike[str],
    queries: str | Sequence[str],
    *,
    top_k: int = 5,
    model: str | os.PathLike[str] | None = None,
    prompt: str | None = None,
    texts: str | os.PathLike[str] | None = None,
    column: str | None = None,
) -> list[Found]:
    """Find the rows of a file of vectors that are most like each query.

    A query becomes a vector as the rows did (FILE.json says how), and is compared as the model's
    folder says: by cosine if it does not.

    Args:
        path: a file that `embed_files` wrote, or any npy or safetensors file ("vectors") of
            vectors by the model that is named.
        queries: texts.
        top_k: hits a query.
        model: as in `enrobe.load`; None: the one that FILE.json names.
        prompt: for the queries, as in `Model.embed`; None: the one that the rows have.
        texts: where the rows' texts are, for npy and safetensors files; None: the files that
            FILE.json names.
        column: which column of `texts` holds them.

    Raises:
        CallError: an argument is wrong; the file cannot be read, or its vectors are by another
            model or of another length.
        TextError: a query cannot be read.
        ModelError, HubError: as `enrobe.load`.
    """
    file = Path(path)
    if type(top_k) is not int or top_k < 1:
        raise CallError(f"top_k is {show(top_k)}; allowed: a whole number from 1")
    kind, _ = check_kind(file, "float32")
    given = [queries] if isinstance(queries, str) else list(queries)
    if not given:
        raise CallError("no query; name one text or more")
    if not file.is_file():
        raise CallError(f"{file}: no such file")
    facts = _read_facts(file)
    sources = None if texts is None else _given_texts(Path(texts), file, column)
    vectors, name = _embed(file, facts, given, model, prompt)
    best = _scan(file, vectors, name, top_k)
    wanted = sorted({row for rows in best for row, _ in rows})
    if sources is not None:
        known = _from_sources(file, sources, wanted)
    elif kind == "jsonl":
        known = _from_json(file, wanted)
    elif kind == "parquet":
        known = _from_parquet(file, wanted)
    else:
        known = _from_sources(file, facts or {"sources": [], "options": {}}, wanted)
    return [
        Found(query, tuple(Hit(row, score, *known.get(row, _UNKNOWN)) for row, score in rows))
        for query, rows in zip(given, best, strict=True)
    ]


_Place = tuple[str | None, int | None, str | None]
"""source, number, text."""
_UNKNOWN: _Place = (None, None, None)


def _read_facts(file: Path) -> dict[str, Any] | None:
    """What stands beside the file; None: nothing does."""
    path = sidecar(file)
    if not path.is_file():
        return None
    facts: dict[str, Any] = read_json(path)
    try:
        whole = {"name", "sha256"} <= facts["model"].keys()
        whole &= {*_OPTIONS, "text"} <= facts["options"].keys()
        whole &= all({"path", "bytes", "sha256", "rows"} <= s.keys() for s in facts["sources"])
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise CallError(f"{path}: damaged, or not by `enrobe embed`; fix: embed again")
    return facts


def _embed(
    file: Path,
    facts: Mapping[str, Any] | None,
    queries: Sequence[str],
    model: str | os.PathLike[str] | None,
    prompt: str | None,
) -> tuple[Array, SimilarityName]:
    if facts is None and model is None:
        raise CallError(
            f"{file}: no {sidecar(file).name} beside it tells which model made it; fix: --model M"
        )
    options: dict[str, Any] = {}
    if facts is not None:
        options = {name: facts["options"][name] for name in _OPTIONS}
        stored = facts["model"]["name"]
        if model is None and stored is not None:
            beside = file.parent / stored
            model = beside if beside.is_dir() else stored
    if prompt is not None:
        options["prompt"] = prompt
    folder = hub.resolve(model)
    if facts is not None and model_sha256(folder) != facts["model"]["sha256"]:
        raise CallError(
            f"{file}: its vectors are by another model ({show(facts['model']['name'])}) than "
            f"{folder}, or that one has changed; fix: --model M"
        )
    loaded = load(folder)
    return loaded.embed(queries, **options), loaded.sentence.similarity


def _scan(
    file: Path, queries_QD: Array, name: SimilarityName, top_k: int
) -> list[list[tuple[int, float]]]:
    """(row, score) of the best rows of each query; rows without a vector are not among them."""
    rows_QK = np.empty((len(queries_QD), 0), np.int64)
    scores_QK = np.empty((len(queries_QD), 0), np.float32)
    for start, block_ND in blocks(file):
        width = queries_QD.shape[1]
        if block_ND.shape[1] != width:
            if not np.isnan(block_ND).all():
                raise CallError(
                    f"{file}: vectors of {block_ND.shape[1]} numbers, and the model gives {width}"
                )
            continue
        scores_QN = similarity(queries_QD, block_ND, name)
        scores_QN[np.isnan(scores_QN)] = -np.inf
        numbers_QN = np.broadcast_to(np.arange(start, start + len(block_ND)), scores_QN.shape)
        rows_QK = np.concatenate([rows_QK, numbers_QN], axis=1)
        scores_QK = np.concatenate([scores_QK, scores_QN], axis=1)
        # Stable: of equal scores the earlier row stays in front.
        order_QK = np.argsort(-scores_QK, axis=1, kind="stable")[:, :top_k]
        rows_QK = np.take_along_axis(rows_QK, order_QK, axis=1)
        scores_QK = np.take_along_axis(scores_QK, order_QK, axis=1)
    return [
        [(row, score) for row, score in zip(rows, scores, strict=True) if score > -np.inf]
        for rows, scores in zip(rows_QK.tolist(), scores_QK.tolist(), strict=True)
    ]


# --- where a row's text is ----------------------------------------------------------------------


def _given_texts(path: Path, file: Path, column: str | None) -> dict[str, Any]:
    paths, _ = collect([path], file)
    sources = [{"path": relative(p, file), "sha256": None, "rows": None} for p in paths]
    return {"sources": sources, "options": {"text": column}}


def _from_sources(file: Path, facts: Mapping[str, Any], wanted: Sequence[int]) -> dict[int, _Place]:
    """Read the files once, as far as the last row that is wanted."""
    found: dict[int, _Place] = {}
    start = 0
    for source in facts["sources"]:
        path, rows = file.parent / source["path"], source["rows"]
        here = [row - start for row in wanted if row >= start]
        here = here if rows is None else [row for row in here if row < rows]
        if here and rows is not None and not _is_same(path, source):
            found |= {start + row: (source["path"], None, None) for row in here}
        elif here:
            left, count = set(here), 0
            with closing(iter(Source(path, facts["options"]["text"]))) as read:  # type: ignore[type-var]
                for row in read:
                    if count in left:
                        found[start + count] = (source["path"], row.number, row.text)
                        left.discard(count)
                    count += 1
                    if not left:
                        break
            rows = count if rows is None else rows
        start += rows or 0
    return found


def _is_same(path: Path, source: Mapping[str, Any]) -> bool:
    return (
        path.is_file()
        and path.stat().st_size == source["bytes"]
        and file_sha256(path) == source["sha256"]
    )


def _from_json(file: Path, wanted: Sequence[int]) -> dict[int, _Place]:
    found: dict[int, _Place] = {}
    left = set(wanted)
    with file.open("rb") as lines:
        for row, line in enumerate(lines):
            if not left:
                break
            if row in left:
                record = json.loads(line)
                found[row] = (record.get("source"), record.get("number"), record.get("text"))
                left.discard(row)
    return found


def _from_parquet(file: Path, wanted: Sequence[int]) -> dict[int, _Place]:
    parquet = pyarrow().parquet.ParquetFile(file)
    names = [n for n in ("source", "number", "text") if n in parquet.schema_arrow.names]
    found: dict[int, _Place] = {}
    start = 0
    for number in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(number).num_rows
        here = [row - start for row in wanted if start <= row < start + rows]
        if here and names:
            records = parquet.read_row_group(number, columns=names).take(here).to_pylist()
            for row, record in zip(here, records, strict=True):
                place = (record.get("source"), record.get("number"), record.get("text"))
                found[start + row] = place
        start += rows
    return found
