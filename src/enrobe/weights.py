"""Weights in safetensors files: memory-mapped as float32, or stored as int8 rows.

A file of int8 rows is named `model.int8.safetensors`. It holds every matrix NAME as int8, and as
NAME.scale one float32 for each of its rows; a row is its numbers times its scale. Vectors are
float32. It takes a quarter of the bytes, and no weight is further from what it was than half its
row's scale. The file's name is its own, so that a program that does not know of scales finds no
weights in the folder, rather than wrong ones.
"""

import json
import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from enrobe.errors import ModelError, show

Array = npt.NDArray[np.float32]

WEIGHTS = "model.safetensors"
INT8_WEIGHTS = "model.int8.safetensors"

_FLOATS = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "BF16": np.uint16}
_SCALE = ".scale"
# Bounds of a row's scale. Under the first, a float32 has few digits left (a row of zeros takes it,
# too); over the second, int8's -128 times the scale is beyond float32.
_SMALLEST = np.finfo(np.float32).tiny
_LARGEST = np.finfo(np.float32).max / 128


def map_safetensors(path: Path) -> dict[str, Array]:
    """Memory-map every floating-point tensor of a file as float32 (other widths are converted).

    Raises:
        ModelError: the file is damaged, truncated, or not safetensors.
    """
    return _map(path, _FLOATS)


def read_int8_rows(path: Path) -> dict[str, Array]:
    """Every tensor of a file of int8 rows, restored to float32 in memory of its own.

    Raises:
        ModelError: the file is damaged, truncated, or not safetensors; a matrix of int8 without
            its scales, or with scales of another shape, of another type, or that are no scales.
    """
    stored = _map(path, {**_FLOATS, "I8": np.int8})
    scales = {name + _SCALE for name, values in stored.items() if values.dtype == np.int8}
    tensors: dict[str, Array] = {}
    for name, values in stored.items():
        if values.dtype == np.int8:
            tensors[name] = _restore(
                values, stored.get(name + _SCALE), f"{path.name}: {show(name)}"
            )
        elif name not in scales:
            # A copy, so that nothing holds on to the mapped file.
            tensors[name] = np.array(values, dtype=np.float32)
    return tensors


def _restore(values: npt.NDArray[np.int8], scale: Array | None, what: str) -> Array:
    if scale is None or values.ndim != 2 or scale.shape != values.shape[:1]:
        have = "no scales" if scale is None else f"scales of shape {scale.shape}"
        raise ModelError(
            f"{what} is int8 of shape {values.shape} with {have}; "
            "allowed: a matrix, and a scale for each of its rows"
        )
    # NaN is within no bounds.
    if scale.dtype != np.float32 or not ((scale >= 0) & (scale <= _LARGEST)).all():
        raise ModelError(f"{what} has damaged scales; allowed: float32 from 0 to {_LARGEST:.3g}")
    restored = values.astype(np.float32)
    restored *= scale[:, None]
    return restored


def write_float32(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write a file that transformers reads, too."""
    stored = {name: _plain(tensor) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(stored, path, metadata={"format": "pt"})


def write_int8_rows(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write matrices as int8 rows with scales (symmetric, max|row| / 127), all else as float32.

    Raises:
        ModelError: a matrix has numbers that are not finite, or too large for a scale.
    """
    stored: dict[str, npt.NDArray[Any]] = {}
    for name, given in tensors.items():
        tensor = _plain(given)
        if tensor.ndim != 2:
            stored[name] = tensor
            continue
        scale = np.maximum(np.abs(tensor).max(axis=1, initial=0.0) / np.float32(127), _SMALLEST)
        if not (scale <= _LARGEST).all():
            raise ModelError(f"{show(name)} has numbers that are not finite, or over 1e38")
        stored[name] = np.rint(tensor / scale[:, None]).astype(np.int8)
        stored[name + _SCALE] = scale
    safetensors.numpy.save_file(stored, path, metadata={"format": "enrobe-int8-rows"})


def _plain(tensor: Array) -> npt.NDArray[Any]:
    """What safetensors writes as it is: it takes no heed of strides."""
    return np.ascontiguousarray(tensor, dtype=np.float32)


def _map(path: Path, dtypes: Mapping[str, type]) -> dict[str, Any]:
    """Memory-map the tensors that have one of these types; all but int8 as float32."""
    try:
        # The library checks the header (bounds, overlaps, sizes) before we trust its offsets.
        with safetensors.safe_open(path, framework="numpy"):
            pass
        raw = np.memmap(path, dtype=np.uint8, mode="r")
        size = int.from_bytes(raw[:8].tobytes(), "little")
        header = json.loads(raw[8 : 8 + size].tobytes())
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path.name} is damaged or not safetensors ({error})") from None
    header.pop("__metadata__", None)
    tensors: dict[str, Any] = {}
    for name, entry in header.items():
        dtype = dtypes.get(entry["dtype"])
        if dtype is None:
            continue
        start, stop = entry["data_offsets"]
        flat = raw[8 + size + start : 8 + size + stop]
        if flat.ctypes.data % np.dtype(dtype).itemsize:
            flat = flat.copy()
        array = flat.view(dtype).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            # bfloat16 is the upper half of a float32.
            array = (array.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            tensors[name] = np.asarray(array, None if dtype is np.int8 else np.float32)
    return tensors


def release_pages(tensors: Iterable[Array]) -> None:
    """Let the operating system take back the memory of mapped tensors until they are read again.

    For an engine that has made its own, packed copy of the weights.
    """
    maps: dict[int, mmap.mmap] = {}
    for tensor in tensors:
        base: object = tensor
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, mmap.mmap):
            maps[id(base)] = base
    for mapped in maps.values():
        if hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)
