"""Files of vectors, read in blocks: never more than one of them is in memory.

Legend: N rows, D numbers of a vector.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from enrobe.engines.base import Array
from enrobe.errors import CallError
from enrobe.tasks.vector_files import SCALES, VECTORS, check_kind, pyarrow

# Rows of a block.
_BLOCK = 8192
_SAFETENSORS_TYPES = ("F32", "F16", "I8")


def blocks(path: Path) -> Iterator[tuple[int, Array]]:
    """(number of the first row, vectors (n, D) in float32) of every block; errors are rows of NaN.

    Raises:
        CallError: no such file, a damaged one, or one that holds no vectors.
    """
    kind, _ = check_kind(path, "float32")
    if not path.is_file():
        raise CallError(f"{path}: no such file")
    readers = {"npy": _npy_blocks, "safetensors": _safetensors_blocks, "jsonl": _json_blocks}
    try:
        yield from readers.get(kind, _parquet_blocks)(path)
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        if isinstance(error, CallError):
            raise
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise CallError(f"{path}: damaged, or not a file of vectors ({reason})") from None


def _npy_blocks(path: Path) -> Iterator[tuple[int, Array]]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    _check_shape(path, array.shape, array.dtype.kind == "f")
    for start in range(0, len(array), _BLOCK):
        yield start, np.asarray(array[start : start + _BLOCK], np.float32)


def _safetensors_blocks(path: Path) -> Iterator[tuple[int, Array]]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            if VECTORS not in names:
                raise CallError(
                    f"{path}: no tensor '{VECTORS}'; it has: {', '.join(sorted(names))}"
                )
            stored = file.get_slice(VECTORS)
            scales = file.get_slice(SCALES) if SCALES in names else None
            _check_shape(path, stored.get_shape(), stored.get_dtype() in _SAFETENSORS_TYPES)
            count = stored.get_shape()[0]
            for start in range(0, count, _BLOCK):
                here = slice(start, min(start + _BLOCK, count))
                rows = stored[here].astype(np.float32)
                if scales is not None:
                    rows *= scales[here][:, None]
                yield start, rows
    except safetensors.SafetensorError as error:
        raise CallError(f"{path}: damaged, or not safetensors ({error})") from None


def _check_shape(path: Path, shape: Sequence[int], is_number: bool) -> None:
    if len(shape) != 2 or not is_number:
        raise CallError(f"{path}: an array {tuple(shape)}; allowed: numbers (rows, dimensions)")


def _json_blocks(path: Path) -> Iterator[tuple[int, Array]]:
    start, rows, width = 0, list[Array | None](), None
    with path.open("rb") as file:
        for line in file:
            record = json.loads(line)
            vector, scale = record["vector"], record.get("scale")
            row = None if vector is None else np.array(vector, np.float32)
            rows.append(row if row is None or scale is None else row * np.float32(scale))
            if len(rows) == _BLOCK:
                width = width or next((len(row) for row in rows if row is not None), None)
                yield start, _filled(rows, width)
                start, rows = start + len(rows), []
    if rows:
        width = width or next((len(row) for row in rows if row is not None), 0)
        yield start, _filled(rows, width)


def _filled(rows: Sequence[Array | None], width: int | None) -> Array:
    empty = np.full(width or 0, np.nan, np.float32)
    return np.array([empty if row is None else row for row in rows], np.float32)


def _parquet_blocks(path: Path) -> Iterator[tuple[int, Array]]:
    pa = pyarrow()
    try:
        file = pa.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        columns = [name for name in ("vector", "scale") if name in names]
        width = file.schema_arrow.field("vector").type.list_size
        start = 0
        for batch in file.iter_batches(batch_size=_BLOCK, columns=columns):
            column = batch.column(0)
            rows = np.full((len(batch), width), np.nan, np.float32)
            numbers = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
            rows[column.is_valid().to_numpy(zero_copy_only=False)] = numbers
            if "scale" in columns:
                rows *= batch.column(1).to_numpy(zero_copy_only=False)[:, None]
            yield start, rows
            start += len(batch)
    except (pa.ArrowException, AttributeError) as error:
        raise CallError(f"{path}: damaged, or without a column 'vector' ({error})") from None
