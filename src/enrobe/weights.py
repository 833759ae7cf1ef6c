"""Weights in safetensors files: memory-mapped as float32, or stored as int8 rows.

A file of int8 rows is named `model.int8.safetensors`. It holds a matrix NAME as int8, and as
NAME.scale one float32 for each of its rows; a row is its numbers times its scale. A matrix that was
smoothed has NAME.smooth too, a float32 for each of its columns, and is its numbers times both.
NAME.zero, where it is there, says which of 0 to 255 stands for 0 in its inputs. What is float32 in
the file is what it is: vectors, and matrices that int8 would have cost too much. It takes a quarter
of the bytes, and no weight is further from what it was than half its row's scale. The file's name
is its own, so that a program that does not know of scales finds no weights in the folder, rather
than wrong ones.

Legend: N rows of a matrix (outputs of a linear layer, entries of a vocabulary), K columns.
"""

import json
import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from enrobe.errors import ModelError, show

Array = npt.NDArray[np.float32]

WEIGHTS = "model.safetensors"
INT8_WEIGHTS = "model.int8.safetensors"

_FLOATS = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "BF16": np.uint16}
_SCALE, _SMOOTH, _ZERO = ".scale", ".smooth", ".zero"
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


@dataclass(frozen=True, eq=False)
class Int8Rows:
    """A matrix as int8: values[n, k] * scale[n] * smooth[k].

    Shapes: values (N, K), scale (N,), smooth (K,) or None, which is all ones.
    """

    values: npt.NDArray[np.int8]
    scale: Array
    smooth: Array | None = None
    zero: int = 128
    # which of 0 to 255 stands for 0 in inputs: fewer below it where inputs are hardly negative

    @classmethod
    def of(cls, matrix: Array, smooth: Array | None = None, zero: int = 128) -> Self:
        """The nearest one: symmetric, scale max|row| / 127.

        smooth: factors (K,) of the inputs that the matrix is multiplied with (SmoothQuant, Xiao et
            al. 2022).
        zero: as the field.

        Raises:
            ModelError: numbers that are not finite, or too large for a scale.
        """
        plain = _plain(matrix if smooth is None else matrix / smooth)
        scale = np.maximum(np.abs(plain).max(axis=1, initial=0.0) / np.float32(127), _SMALLEST)
        if not (scale <= _LARGEST).all():
            raise ModelError("numbers that are not finite, or over 1e38")
        return cls(np.rint(plain / scale[:, None]).astype(np.int8), scale, smooth, zero)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, K)."""
        return self.values.shape

    def restore(self) -> Array:
        """The matrix as float32, in memory of its own."""
        restored = self.values.astype(np.float32)
        restored *= self.scale[:, None]
        if self.smooth is not None:
            restored *= self.smooth
        return restored


class Restored(Mapping[str, Array]):
    """Tensors as float32 whatever they are stored as; int8 rows are restored when first read."""

    def __init__(self, stored: Mapping[str, Array | Int8Rows]) -> None:
        """Hold tensors as they are stored."""
        self._stored = dict(stored)
        self._floats: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        value = self._stored[name]
        if not isinstance(value, Int8Rows):
            return value
        if name not in self._floats:
            self._floats[name] = value.restore()
        return self._floats[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def int8(self) -> dict[str, Int8Rows]:
        """Those that are stored as int8 rows."""
        return {n: value for n, value in self._stored.items() if isinstance(value, Int8Rows)}


def map_int8_rows(path: Path) -> dict[str, Array | Int8Rows]:
    """Memory-map a file of int8 rows: matrices as they are stored, all else as float32.

    Raises:
        ModelError: the file is damaged, truncated, or not safetensors; a matrix of int8 without
            its scales, or with factors of another shape, of another type, or that are no factors.
    """
    stored = _map(path, {**_FLOATS, "I8": np.int8})
    matrices = [name for name, values in stored.items() if values.dtype == np.int8]
    factors = {name + suffix for name in matrices for suffix in (_SCALE, _SMOOTH, _ZERO)}
    tensors: dict[str, Array | Int8Rows] = {}
    for name, values in stored.items():
        if values.dtype == np.int8:
            what = f"{path.name}: {show(name)}"
            scale, smooth = stored.get(name + _SCALE), stored.get(name + _SMOOTH)
            if values.ndim != 2 or scale is None:
                have = "scales" if scale is not None else "no scales"
                raise ModelError(
                    f"{what} is int8 of shape {values.shape} with {have}; "
                    "allowed: a matrix, and a scale for each of its rows"
                )
            _check_factors(scale, values.shape[0], what, "scales")
            if smooth is not None:
                _check_factors(smooth, values.shape[1], what, "smoothing factors")
            tensors[name] = Int8Rows(values, scale, smooth, _zero(stored.get(name + _ZERO), what))
        elif name not in factors:
            tensors[name] = values
    return tensors


def read_int8_rows(path: Path) -> dict[str, Array]:
    """Every tensor of a file of int8 rows, restored to float32 in memory of its own.

    Raises:
        ModelError: as `map_int8_rows`.
    """
    stored = map_int8_rows(path)
    return {
        name: value.restore() if isinstance(value, Int8Rows) else np.array(value)
        for name, value in stored.items()
    }


def _zero(stored: Array | None, what: str) -> int:
    if stored is None:
        return 128
    if stored.shape != (1,) or not (1 <= stored[0] <= 254 and stored[0] == np.rint(stored[0])):
        raise ModelError(f"{what} has a damaged zero; allowed: one whole number from 1 to 254")
    return int(stored[0])


def _check_factors(factors: Array, count: int, what: str, kind: str) -> None:
    if factors.shape != (count,):
        raise ModelError(f"{what} has {kind} of shape {factors.shape}; allowed: ({count},)")
    # NaN is within no bounds.
    if factors.dtype != np.float32 or not ((factors >= 0) & (factors <= _LARGEST)).all():
        raise ModelError(f"{what} has damaged {kind}; allowed: float32 from 0 to {_LARGEST:.3g}")


def write_float32(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write a file that transformers reads, too."""
    stored = {name: _plain(tensor) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(stored, path, metadata={"format": "pt"})


def write_float16(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write half the bytes; transformers reads it, and so do we, as float32.

    Raises:
        ModelError: a number that is not finite, or beyond float16's 65,504.
    """
    stored = {}
    for name, tensor in tensors.items():
        # Overflow is looked for, not warned of.
        with np.errstate(over="ignore"):
            stored[name] = np.ascontiguousarray(tensor, dtype=np.float16)
        if not np.isfinite(stored[name]).all():
            raise ModelError(f"{show(name)} has numbers beyond float16's 65504")
    safetensors.numpy.save_file(stored, path, metadata={"format": "pt"})


def write_int8_rows(path: Path, tensors: Mapping[str, Array | Int8Rows]) -> None:
    """Write matrices as int8 rows, all else as float32.

    Raises:
        ModelError: a matrix has numbers that are not finite, or too large for a scale.
    """
    every = {}
    for name, given in tensors.items():
        if isinstance(given, Int8Rows):
            every[name] = given
        elif np.ndim(given) == 2:
            try:
                every[name] = Int8Rows.of(given)
            except ModelError as error:
                raise ModelError(f"{show(name)} has {error}") from None
    write_stored(path, {**tensors, **every})


def write_stored(path: Path, tensors: Mapping[str, Array | Int8Rows]) -> None:
    """Write int8 rows as they are, all else, matrices too, as float32."""
    stored: dict[str, npt.NDArray[Any]] = {}
    for name, value in tensors.items():
        if not isinstance(value, Int8Rows):
            stored[name] = _plain(value)
            continue
        stored[name] = np.ascontiguousarray(value.values)
        stored[name + _SCALE] = value.scale
        if value.smooth is not None:
            stored[name + _SMOOTH] = value.smooth
        if value.zero != 128:
            stored[name + _ZERO] = np.array([value.zero], np.float32)
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
