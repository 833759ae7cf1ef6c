"""int8 rows: as near as they claim, and a damaged file is an error of ours."""

import json
import random
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn

from enrobe import checkpoint
from enrobe.errors import ModelError
from enrobe.weights import (
    INT8_WEIGHTS,
    Int8Rows,
    map_int8_rows,
    map_safetensors,
    read_int8_rows,
    write_float32,
    write_int8_rows,
    write_stored,
)
from tests.support import FAMILIES, reference

FLOAT32 = np.finfo(np.float32)


def round_trip(folder: Path, matrix: Any) -> Any:
    path = folder / INT8_WEIGHTS
    write_int8_rows(path, {"x.weight": matrix})
    return read_int8_rows(path)["x.weight"]


def assert_near(restored: Any, matrix: Any) -> None:
    """Half a row's scale, and what float32 rounds off besides."""
    assert restored.dtype == np.float32 and restored.shape == matrix.shape
    largest = np.abs(matrix).max(axis=1, keepdims=True).astype(np.float64)
    scale = np.maximum(largest / 127, float(FLOAT32.tiny))
    errors = np.abs(restored.astype(np.float64) - matrix)
    assert (errors <= scale / 2 * (1 + 1e-5) + 1e-6 * scale).all()


# --- both ways ----------------------------------------------------------------------------------


def test_random_matrices_come_back_within_half_a_scale(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    for _ in range(20):
        rows, columns = rng.integers(1, 70, 2)
        # Rows of every size side by side: one must not cost its neighbour its digits.
        sizes = 10.0 ** rng.integers(-30, 30, (rows, 1))
        matrix = (rng.standard_normal((rows, columns)) * sizes).astype(np.float32)
        assert_near(round_trip(tmp_path, matrix), matrix)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    matrix=hn.arrays(
        np.float32,
        hn.array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.floats(-(2.0**120), 2.0**120, width=32),
    )
)
def test_any_finite_matrix_comes_back_within_half_a_scale(matrix: Any, tmp_path: Path) -> None:
    assert_near(round_trip(tmp_path, matrix), matrix)


def test_what_int8_holds_exactly_is_exact(tmp_path: Path) -> None:
    matrix = np.array([[-127, 0, 1, 126], [0, 0, 0, 0], [63.5, -63.5, 0.5, 0]], np.float32)
    assert (round_trip(tmp_path, matrix) == matrix).all()
    # Once more over the same grid changes nothing.
    noise = np.random.default_rng(1).standard_normal((5, 9)).astype(np.float32)
    once = round_trip(tmp_path, noise)
    assert np.allclose(round_trip(tmp_path, once), once, rtol=1e-6, atol=0)


def test_vectors_stay_as_they_are(tmp_path: Path) -> None:
    vector = np.random.default_rng(2).standard_normal(11).astype(np.float32)
    write_int8_rows(tmp_path / "a", {"b": vector, "b.scale": vector + 1})
    found = read_int8_rows(tmp_path / "a")
    assert (found["b"] == vector).all() and (found["b.scale"] == vector + 1).all()


@pytest.mark.parametrize("write", [write_float32, write_int8_rows])
def test_strides_do_not_matter(write: Any, tmp_path: Path) -> None:
    matrix = np.arange(-10, 10, dtype=np.float32).reshape(4, 5)
    vector = np.arange(12, dtype=np.float32)
    for name, tensor in (("t", matrix.T), ("r", matrix[::-1]), ("v", vector[::3])):
        write(tmp_path / "strided", {name: tensor})
        write(tmp_path / "plain", {name: tensor.copy()})
        assert (tmp_path / "strided").read_bytes() == (tmp_path / "plain").read_bytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, FLOAT32.max])
def test_what_has_no_scale_is_refused(bad: float, tmp_path: Path) -> None:
    matrix = np.ones((3, 2), np.float32)
    matrix[1, 0] = bad
    with pytest.raises(ModelError, match=r"'x\.weight' has numbers"):
        round_trip(tmp_path, matrix)


# --- folders ------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A model as float32 and as int8 rows."""
    reference(tmp_path / "float32", "roberta", "mlm", seed=9)
    return tmp_path / "float32", packed(tmp_path / "float32", tmp_path / "int8")


def packed(source: Path, output: Path) -> Path:
    read = checkpoint.read(source)
    parts = {"config": read.config, "heads": read.heads, "tensors": read.tensors}
    checkpoint.write(output, **parts, int8_rows=True)  # type: ignore[arg-type]
    return output


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", [None, "mlm", "classify"])
def test_a_folder_of_every_family(family: str, head: str | None, tmp_path: Path) -> None:
    reference(tmp_path / "float32", family, head, seed=5)
    packed(tmp_path / "float32", tmp_path / "int8")
    ours, theirs = (checkpoint.read(tmp_path / name) for name in ("int8", "float32"))
    assert (ours.config, ours.heads, ours.unexpected) == (theirs.config, theirs.heads, ())
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in theirs.tensors.items():
        if tensor.ndim == 2:
            assert_near(ours.tensors[name], tensor)
        else:
            assert (ours.tensors[name] == tensor).all()


def test_a_quarter_of_the_bytes_and_no_weights_for_transformers(
    folders: tuple[Path, Path],
) -> None:
    whole, small = folders
    assert sorted(path.name for path in small.iterdir()) == ["config.json", INT8_WEIGHTS]
    sizes = [(small / INT8_WEIGHTS).stat().st_size, (whole / "model.safetensors").stat().st_size]
    assert sizes[0] < 0.35 * sizes[1]
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        transformers.AutoModelForMaskedLM.from_pretrained(small)
    # Nor are the numbers taken for weights here, under the other name.
    (small / INT8_WEIGHTS).rename(small / "model.safetensors")
    with pytest.raises(ModelError, match="missing"):
        checkpoint.read(small)


def test_float32_goes_before_int8(folders: tuple[Path, Path]) -> None:
    whole, small = folders
    (small / INT8_WEIGHTS).rename(whole / INT8_WEIGHTS)
    found = checkpoint.read(whole).tensors
    expected = map_safetensors(whole / "model.safetensors")
    assert (
        found["embeddings.word.weight"] == expected["roberta.embeddings.word_embeddings.weight"]
    ).all()


def test_restoring_takes_no_more_memory_than_float32(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    tensors = {str(i): rng.standard_normal((500, 1000), dtype=np.float32) for i in range(8)}
    write_int8_rows(tmp_path / INT8_WEIGHTS, tensors)
    size = sum(tensor.nbytes for tensor in tensors.values())
    del tensors
    tracemalloc.start()
    try:
        found = read_int8_rows(tmp_path / INT8_WEIGHTS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == 8
    assert size <= peak <= 1.02 * size


# --- damaged files ------------------------------------------------------------------------------


def stored(rng_seed: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(rng_seed)
    return {
        "x": rng.integers(-128, 128, (3, 5)).astype(np.int8),
        "x.scale": rng.random(3, np.float32),
        "b": rng.random(4, np.float32),
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x.scale": None}, "no scales"),
        ({"x.scale": np.ones(5, np.float32)}, r"scales of shape \(5,\)"),
        ({"x.scale": np.ones((3, 1), np.float32)}, r"scales of shape \(3, 1\)"),
        ({"x.scale": np.array(1, np.float32)}, r"scales of shape \(\)"),
        ({"x.scale": np.ones(3, np.int32)}, "no scales"),
        ({"x.scale": np.ones(3, np.int8)}, "damaged scales|is int8 of shape"),
        ({"x.scale": np.array([1, np.nan, 1], np.float32)}, "damaged scales"),
        ({"x.scale": np.array([1, np.inf, 1], np.float32)}, "damaged scales"),
        ({"x.scale": np.array([1, 1e300, 1], np.float64)}, "damaged scales"),
        ({"x.scale": np.array([1, -1, 1], np.float32)}, "damaged scales"),
        ({"x.scale": np.full(3, FLOAT32.max)}, "damaged scales"),
        ({"x.zero": np.array([0.5], np.float32)}, "damaged zero"),
        ({"x.zero": np.array([np.nan], np.float32)}, "damaged zero"),
        ({"x.smooth": np.ones(3, np.float32)}, r"smoothing factors of shape \(3,\)"),
        ({"x.smooth": np.full(5, np.nan, np.float32)}, "damaged smoothing factors"),
        ({"b": np.ones(4, np.int8)}, "no scales"),
        ({"x": np.ones((3, 5, 2), np.int8)}, r"int8 of shape \(3, 5, 2\)"),
        ({"x": np.ones((), np.int8)}, r"int8 of shape \(\)"),
    ],
)
def test_int8_that_cannot_be_restored(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    tensors = {name: value for name, value in (stored() | change).items() if value is not None}
    safetensors.numpy.save_file(tensors, tmp_path / INT8_WEIGHTS)
    with pytest.raises(ModelError, match=said) as caught:
        read_int8_rows(tmp_path / INT8_WEIGHTS)
    assert "\n" not in str(caught.value)


def test_a_smoothed_matrix_comes_back_and_its_outliers_cost_the_others_nothing(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(8)
    smooth = np.exp2(rng.integers(-6, 7, 40)).astype(np.float32)
    matrix = rng.standard_normal((9, 40)).astype(np.float32) * smooth
    rows = Int8Rows.of(matrix, smooth, zero=16)
    write_stored(tmp_path / INT8_WEIGHTS, {"x": rows, "y": matrix})
    found = map_int8_rows(tmp_path / INT8_WEIGHTS)
    again = found["x"]
    assert isinstance(again, Int8Rows) and again.smooth is not None and again.zero == 16
    assert (again.values == rows.values).all() and (again.smooth == smooth).all()
    assert found.keys() == {"x", "y"} and (found["y"] == matrix).all()
    # Each column on its own scale is as near as a matrix without outliers would be.
    assert (np.abs(again.restore() - matrix) <= smooth * (rows.scale[:, None] / 2 * 1.001)).all()


def test_a_scale_of_zero_and_a_matrix_without_rows(tmp_path: Path) -> None:
    tensors = {
        "x": np.ones((2, 3), np.int8),
        "x.scale": np.zeros(2, np.float32),
        "y": np.ones((0, 3), np.int8),
        "y.scale": np.ones(0, np.float32),
    }
    safetensors.numpy.save_file(tensors, tmp_path / INT8_WEIGHTS)
    found = read_int8_rows(tmp_path / INT8_WEIGHTS)
    assert not found["x"].any() and found["y"].shape == (0, 3)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    length=st.one_of(st.none(), st.integers(0, 10_000)),
)
def test_a_damaged_file_never_crashes(
    changes: list[tuple[int, int]], length: int | None, tmp_path: Path
) -> None:
    path = tmp_path / INT8_WEIGHTS
    safetensors.numpy.save_file(stored(), path)
    raw = bytearray(path.read_bytes())
    for place, value in changes:
        raw[place % len(raw)] = value
    path.write_bytes(raw if length is None else raw[: length % len(raw)])
    with suppress(ModelError):
        for tensor in read_int8_rows(path).values():
            assert tensor.dtype == np.float32


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    entries=st.dictionaries(
        st.sampled_from(["x", "x.scale", "x.scale.scale", ".scale", "", "y"]),
        st.tuples(
            st.sampled_from(["I8", "F32", "F16", "F64", "BF16", "I64", "BOOL", "U8"]),
            st.lists(st.integers(0, 4), max_size=3),
        ),
    ),
    content=st.binary(min_size=64 * 8 * 6, max_size=64 * 8 * 6),
)
def test_any_header_is_read_or_refused(
    entries: dict[str, tuple[str, list[int]]], content: bytes, tmp_path: Path
) -> None:
    widths = {"I8": 1, "U8": 1, "BOOL": 1, "F16": 2, "BF16": 2, "F32": 4, "F64": 8, "I64": 8}
    header, at = {}, 0
    for name, (dtype, shape) in entries.items():
        size = int(np.prod(shape)) * widths[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path = tmp_path / INT8_WEIGHTS
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[:at])
    with suppress(ModelError):
        for tensor in read_int8_rows(path).values():
            assert tensor.dtype == np.float32
