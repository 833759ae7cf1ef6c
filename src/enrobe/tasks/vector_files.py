"""Files of vectors: how rows are appended to one, and how it is completed.

    npy          the array (N, D) and nothing else
    safetensors  "vectors" (N, D); with int8, "scales" (N,), too
    jsonl        a record a text: source, number, text, vector, error; with int8, scale, too
    parquet      the same as columns; vector is a fixed-size list

A vector of int8 is its numbers times its row's scale, which is the largest of them, signs aside,
over 127. A text with an error has a row of NaN (int8: a scale of NaN), in jsonl and parquet null.
A header takes the same bytes whatever the number of rows, so that rows can be appended first and
counted last: nothing but parquet is written twice. An unfinished parquet file is an Arrow stream.

Legend: N rows, D numbers of a vector.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from enrobe.engines.base import Array
from enrobe.errors import CallError, MissingExtraError, nearest, show

Format = Literal["npy", "jsonl", "safetensors", "parquet"]
Precision = Literal["float32", "float16", "int8"]

DATA, SCALES, ERRORS = "data", "scales", "errors"
VECTORS = "vectors"
# Bytes of a parquet file's row group.
_GROUP = 32 * 2**20
_NPY_HEADER, _SAFETENSORS_HEADER = 128, 512
_DTYPES = {"float32": "<f4", "float16": "<f2", "int8": "|i1"}
_NAMES = {"float32": "F32", "float16": "F16", "int8": "I8"}
# Digits that bring every number of the width back exactly.
_DIGITS = {"float32": "%.9g", "float16": "%.5g", "int8": "%d"}


@dataclass(frozen=True, slots=True)
class Item:
    """One row of an input, on its way."""

    source: str
    number: int
    # within the source, from 1
    text: str
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What kind of file."""

    format: Format
    precision: Precision
    width: int
    # numbers of a vector

    @property
    def is_bare(self) -> bool:
        """Whether it holds numbers alone, so that texts and errors stand elsewhere."""
        return self.format in ("npy", "safetensors")


def check_kind(path: Path, precision: str) -> tuple[Format, Precision]:
    """The format that a file's name asks for, and the precision.

    Raises:
        CallError: one is unknown, or the format cannot hold the precision.
    """
    if precision not in get_args(Precision):
        allowed = ", ".join(get_args(Precision))
        hint = nearest(str(precision), get_args(Precision))
        raise CallError(f"precision is {show(precision)}; allowed: {allowed}{hint}")
    kind = path.suffix.lstrip(".").lower()
    if kind not in get_args(Format):
        allowed = ", ".join(f".{name}" for name in get_args(Format))
        raise CallError(f"{path}: format {show(path.suffix)}; allowed: {allowed}")
    if kind == "npy" and precision == "int8":
        raise CallError(
            f"{path}: an npy file has no place for int8's scales; fix: name a .safetensors file"
        )
    if kind == "parquet":
        pyarrow()
    return kind, precision  # type: ignore[return-value]


def sidecar(path: Path) -> Path:
    """Where it is told what a file of vectors was made from."""
    return path.with_name(f"{path.name}.json")


def error_file(path: Path) -> Path:
    """Where the errors of a bare file's texts are."""
    return path.with_name(f"{path.name}.errors.jsonl")


# --- writing ------------------------------------------------------------------------------------


def narrow(vectors_ND: Array, precision: Precision) -> tuple[npt.NDArray[Any], Array]:
    """The numbers as they are stored (N, D), and a scale a row (N,): NaN for what cannot be held.

    The scale is 1 but for int8.
    """
    scales_N = np.ones(len(vectors_ND), np.float32)
    if precision == "int8":
        scales_N = np.abs(vectors_ND).max(axis=1, initial=0) / np.float32(127)
        scales_N[~np.isfinite(vectors_ND).all(axis=1)] = np.nan
        divisors_N1 = np.where(scales_N > 0, scales_N, 1)[:, None]
        # Where the scale itself has few digits, 127 could be overstepped.
        numbers = np.clip(
            np.rint(np.nan_to_num(vectors_ND, posinf=0, neginf=0) / divisors_N1), -127, 127
        )
        numbers[np.isnan(scales_N)] = 0
        return numbers.astype(np.int8), scales_N
    with np.errstate(over="ignore"):
        stored = vectors_ND.astype(_DTYPES[precision])
    scales_N[~np.isfinite(stored).all(axis=1)] = np.nan
    return stored, scales_N


def begin(layout: Layout) -> dict[str, bytes]:
    """What stands in each of the growing files before the first row."""
    start = {"npy": _npy_header, "safetensors": _safetensors_header}.get(layout.format)
    files = {DATA: start(layout, 0) if start else b""}
    if layout.format == "parquet":
        files[DATA] = _schema(layout).serialize().to_pybytes()
    if layout.format == "safetensors" and layout.precision == "int8":
        files[SCALES] = b""
    if layout.is_bare:
        files[ERRORS] = b""
    return files


def encode(
    layout: Layout,
    first: int,
    items: Sequence[Item],
    vectors_ND: Array,
    errors: Mapping[int, str],
) -> tuple[dict[str, bytes], frozenset[int]]:
    """Rows as the bytes to append to each growing file, and those of them that have an error.

    first: the number of the first of them in the file, from 0.
    errors: of the rows that have one; their vectors are NaN, and so may others be.
    """
    stored, scales_N = narrow(vectors_ND, layout.precision)
    wrong = dict(errors)
    for n in np.flatnonzero(np.isnan(scales_N)).tolist():
        wrong.setdefault(n, f"the vector has a number that {layout.precision} cannot hold")
    if layout.format == "jsonl":
        return {DATA: _json_rows(layout, items, stored, scales_N, wrong)}, frozenset(wrong)
    if layout.format == "parquet":
        return {DATA: _arrow_rows(layout, items, stored, scales_N, wrong)}, frozenset(wrong)
    if layout.precision != "int8":
        stored[list(wrong)] = np.nan
    files = {DATA: stored.tobytes(), ERRORS: b""}
    if layout.format == "safetensors" and layout.precision == "int8":
        files[SCALES] = scales_N.astype("<f4").tobytes()
    for n, message in sorted(wrong.items()):
        item = items[n]
        where = {"row": first + n, "source": item.source, "number": item.number}
        files[ERRORS] += _json({**where, "error": message}) + b"\n"
    return files, frozenset(wrong)


def complete(layout: Layout, folder: Path, rows: int) -> Path:
    """Make the grown files of a folder one that is whole; done again, it does the same."""
    data = folder / DATA
    header = {"npy": _npy_header, "safetensors": _safetensors_header}.get(layout.format)
    if layout.format == "parquet":
        _to_parquet(layout, data, folder / "whole")
        return folder / "whole"
    if header is not None:
        with data.open("r+b") as file:
            file.write(header(layout, rows))
            if (folder / SCALES).is_file():
                file.seek(_SAFETENSORS_HEADER + rows * layout.width)
                file.truncate()
                with (folder / SCALES).open("rb") as scales:
                    shutil.copyfileobj(scales, file)
            file.flush()
            os.fsync(file.fileno())
    return data


def _npy_header(layout: Layout, rows: int) -> bytes:
    shape = f"'fortran_order': False, 'shape': ({rows}, {layout.width}), "
    text = f"{{'descr': '{_DTYPES[layout.precision]}', {shape}}}".encode()
    size = _NPY_HEADER - 10
    assert len(text) < size
    return b"\x93NUMPY\x01\x00" + size.to_bytes(2, "little") + text.ljust(size - 1) + b"\n"


def _safetensors_header(layout: Layout, rows: int) -> bytes:
    end = rows * layout.width * np.dtype(_DTYPES[layout.precision]).itemsize
    entry = {"dtype": _NAMES[layout.precision], "shape": [rows, layout.width]}
    tensors: dict[str, Any] = {VECTORS: {**entry, "data_offsets": [0, end]}}
    if layout.precision == "int8":
        where = [end, end + 4 * rows]
        tensors[SCALES] = {"dtype": "F32", "shape": [rows], "data_offsets": where}
    size = _SAFETENSORS_HEADER - 8
    text = json.dumps(tensors).encode()
    assert len(text) < size
    return size.to_bytes(8, "little") + text.ljust(size)


def _json(value: object) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return json.dumps(value).encode()


def _json_rows(
    layout: Layout,
    items: Sequence[Item],
    stored: npt.NDArray[Any],
    scales_N: Array,
    errors: Mapping[int, str],
) -> bytes:
    numbers = "[" + ", ".join([_DIGITS[layout.precision]] * layout.width) + "]"
    lines = []
    for n, item in enumerate(items):
        record: dict[str, Any] = {"source": item.source, "number": item.number, "text": item.text}
        vector = "null" if n in errors else numbers % tuple(stored[n].tolist())
        line = _json(record)[:-1] + b', "vector": ' + vector.encode()
        if layout.precision == "int8":
            line += f', "scale": {"null" if n in errors else format(scales_N[n], ".9g")}'.encode()
        lines.append(line + b', "error": ' + _json(errors.get(n)) + b"}\n")
    return b"".join(lines)


def pyarrow() -> Any:
    """The optional package, or MissingExtraError."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise MissingExtraError("pyarrow", "parquet", "a parquet file") from None
    return pyarrow


def _schema(layout: Layout) -> Any:
    pa = pyarrow()
    kinds = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8()}
    fields = [("source", pa.string()), ("number", pa.int64()), ("text", pa.string())]
    fields.append(("vector", pa.list_(kinds[layout.precision], layout.width)))
    fields += [("scale", pa.float32())] if layout.precision == "int8" else []
    return pa.schema([*fields, ("error", pa.string())])


def _arrow_rows(
    layout: Layout,
    items: Sequence[Item],
    stored: npt.NDArray[Any],
    scales_N: Array,
    errors: Mapping[int, str],
) -> bytes:
    pa = pyarrow()
    schema = _schema(layout)
    failed = np.zeros(len(items), bool)
    failed[list(errors)] = True
    # Half a surrogate pair is no UTF-8.
    texts = [item.text.encode("utf-8", "replace").decode() for item in items]
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(stored.reshape(-1)), type=schema.field("vector").type, mask=pa.array(failed)
    )
    columns = [
        pa.array([item.source for item in items], pa.string()),
        pa.array([item.number for item in items], pa.int64()),
        pa.array(texts, pa.string()),
        vectors,
    ]
    if layout.precision == "int8":
        columns.append(pa.array(scales_N, pa.float32(), mask=failed))
    columns.append(pa.array([errors.get(n) for n in range(len(items))], pa.string()))
    message: bytes = pa.record_batch(columns, schema=schema).serialize().to_pybytes()
    return message


def _to_parquet(layout: Layout, stream: Path, target: Path) -> None:
    pa = pyarrow()
    with (
        stream.open("rb") as source,
        target.open("wb") as file,
        pa.parquet.ParquetWriter(
            file,
            _schema(layout),
            compression="zstd",
            use_dictionary=["source"],
            write_statistics=["number"],
        ) as writer,
    ):
        group: list[Any] = []
        for batch in pa.ipc.open_stream(source):
            group.append(batch)
            if sum(part.nbytes for part in group) >= _GROUP:
                writer.write_table(pa.Table.from_batches(group))
                group = []
        if group:
            writer.write_table(pa.Table.from_batches(group))
    with target.open("rb") as written:
        os.fsync(written.fileno())
