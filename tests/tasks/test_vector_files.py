"""Files of vectors: what is appended in pieces reads like what the format's own library writes."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from enrobe.errors import CallError
from enrobe.tasks.vector_blocks import blocks
from enrobe.tasks.vector_files import (
    Format,
    Item,
    Layout,
    Precision,
    begin,
    check_kind,
    complete,
    encode,
    narrow,
)

KINDS = [
    (kind, precision)
    for kind in ("npy", "jsonl", "safetensors", "parquet")
    for precision in ("float32", "float16", "int8")
    if (kind, precision) != ("npy", "int8")
]
TEXTS = ["a", "", 'é\n\t"', "</s>", "\ud800", "日本", "x" * 1000]
WIDTH = 5
every_kind = pytest.mark.parametrize(("kind", "precision"), KINDS)


def vectors(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    rows = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)
    rows[1::4] *= 1e-3
    return rows


def write(
    folder: Path, layout: Layout, rows: Any, errors: dict[int, str], pieces: tuple[int, ...]
) -> Path:
    """Append the rows in pieces and complete the file, twice, as a job that died there would."""
    folder.mkdir()
    for name, content in begin(layout).items():
        (folder / name).write_bytes(content)
    start = 0
    for size in pieces:
        items = [Item("in.txt", n + 1, TEXTS[n % len(TEXTS)]) for n in range(start, start + size)]
        here = {n - start: e for n, e in errors.items() if start <= n < start + size}
        part = rows[start : start + size].copy()
        part[list(here)] = np.nan
        files, failed = encode(layout, start, items, part, here)
        assert failed == set(here)
        for name, content in files.items():
            with (folder / name).open("ab") as file:
                file.write(content)
        start += size
    complete(layout, folder, start)
    whole = complete(layout, folder, start)
    return whole.rename(folder / f"out.{layout.format}")


def restored(layout: Layout, rows: Any) -> Any:
    stored, scales = narrow(rows, layout.precision)
    return stored.astype(np.float32) * scales[:, None]


@every_kind
def test_what_is_written_in_pieces_is_read_back(
    kind: Format, precision: Precision, tmp_path: Path
) -> None:
    layout = Layout(format=kind, precision=precision, width=WIDTH)
    rows, errors = vectors(23), {0: "first", 9: "no é", 22: "last"}
    path = write(tmp_path / "a", layout, rows, errors, (4, 1, 18))
    expected = restored(layout, rows)
    expected[list(errors)] = np.nan
    found = np.concatenate([block for _, block in blocks(path)])
    if (kind, precision) == ("jsonl", "float16"):
        # The digits are those that bring a float16 back.
        found = found.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found, expected)
    closest = {"float32": 0, "float16": 1e-3, "int8": 0.5 / 127}[precision]
    largest = np.abs(rows).max(axis=1, keepdims=True)
    assert np.nanmax(np.abs(found - rows) / largest) <= closest


def test_the_libraries_read_the_files(tmp_path: Path) -> None:
    rows, errors = vectors(7), {2: "wrong"}
    for kind, precision in KINDS:
        layout = Layout(format=kind, precision=precision, width=WIDTH)  # type: ignore[arg-type]
        path = write(tmp_path / f"{kind}-{precision}", layout, rows, errors, (3, 4))
        stored, scales = narrow(rows, precision)  # type: ignore[arg-type]
        if kind == "npy":
            array = np.load(path, allow_pickle=False)
            assert array.dtype == stored.dtype and array.shape == (7, WIDTH)
            assert np.isnan(array[2]).all()
            np.testing.assert_array_equal(np.delete(array, 2, 0), np.delete(stored, 2, 0))
        elif kind == "safetensors":
            tensors = safetensors.numpy.load_file(path)
            array = tensors["vectors"]
            assert array.dtype == stored.dtype
            np.testing.assert_array_equal(np.delete(array, 2, 0), np.delete(stored, 2, 0))
            assert ("scales" in tensors) == (precision == "int8")
            if precision == "int8":
                assert np.isnan(tensors["scales"][2])
                np.testing.assert_array_equal(np.delete(tensors["scales"], 2), np.delete(scales, 2))
        else:
            if kind == "parquet":
                records = pyarrow.parquet.read_table(path).to_pylist()
            else:
                records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            assert [r["error"] for r in records] == [None, None, "wrong", *[None] * 4]
            assert [r["number"] for r in records] == [*range(1, 8)]
            assert records[2]["vector"] is None
            assert records[5]["text"] == "日本"
            for n in (0, 1, 3, 4, 5, 6):
                assert np.array_equal(np.array(records[n]["vector"], stored.dtype), stored[n])
                assert ("scale" in records[n]) == (precision == "int8")


@every_kind
def test_a_file_without_rows(kind: Format, precision: Precision, tmp_path: Path) -> None:
    layout = Layout(format=kind, precision=precision, width=WIDTH)
    path = write(tmp_path / "a", layout, vectors(0), {}, ())
    assert sum(len(block) for _, block in blocks(path)) == 0
    if kind == "npy":
        assert np.load(path).shape == (0, WIDTH)
    elif kind == "safetensors":
        assert safetensors.numpy.load_file(path)["vectors"].shape == (0, WIDTH)
    elif kind == "parquet":
        assert pyarrow.parquet.read_table(path).num_rows == 0
    else:
        assert path.read_bytes() == b""


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_errors_stand_beside_a_bare_file(kind: Format) -> None:
    layout = Layout(format=kind, precision="float32", width=WIDTH)
    items = [Item("a.txt", 5, "x"), Item("b.txt", 1, "y")]
    rows = vectors(2)
    rows[0, 1] = np.inf
    rows[1] = np.nan
    files, failed = encode(layout, 40, items, rows, {1: "no é"})
    assert failed == {0, 1}
    found = [json.loads(line) for line in files["errors"].decode().splitlines()]
    assert found[0]["error"] == "the vector has a number that float32 cannot hold"
    assert found[1] == {"row": 41, "source": "b.txt", "number": 1, "error": "no é"}
    assert np.isnan(np.frombuffer(files["data"], np.float32)).all()


@given(
    st.lists(st.floats(width=32), min_size=WIDTH, max_size=WIDTH),
    st.sampled_from(["float32", "float16", "int8"]),
)
def test_any_number_is_held_or_said_to_be_an_error(row: list[float], precision: Precision) -> None:
    rows = np.array([row, [1.0] * WIDTH], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stored, scales = narrow(rows, precision)
    finite = np.isfinite(rows[0]).all()
    fits = finite and (precision != "float16" or np.abs(rows[0]).max() < 65520)
    assert np.isnan(scales[0]) != fits
    assert not np.isnan(scales[1])
    if fits and precision == "int8":
        largest = float(np.abs(rows[0]).max())
        away = np.abs(stored[0].astype(float) * float(scales[0]) - rows[0].astype(float))
        # Beside the half step, the smallest numbers have few digits of their own.
        assert (away <= 0.501 * largest / 127 + 1e-43).all()
    text = b""
    if precision != "float16" or fits:
        layout = Layout(format="jsonl", precision=precision, width=WIDTH)
        files, _ = encode(layout, 0, [Item("a", 1, "x"), Item("a", 2, "y")], rows, {})
        text = files["data"]
        first = json.loads(text.splitlines()[0])
        assert (first["vector"] is not None) == fits
        if fits:
            assert np.array_equal(np.array(first["vector"], stored.dtype), stored[0])


def test_kinds_that_are_refused() -> None:
    for path, precision in [
        ("a.npz", "float32"),
        ("a", "float32"),
        ("a.npy", "int8"),
        ("a.npy", "float64"),
        ("a.jsonl.gz", "float32"),
    ]:
        with pytest.raises(CallError):
            check_kind(Path(path), precision)
    assert check_kind(Path("A.NPY"), "float16") == ("npy", "float16")


@given(st.binary(max_size=300), st.sampled_from(["npy", "safetensors", "jsonl", "parquet"]))
def test_any_bytes_are_vectors_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, kind: str
) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"x.{kind}"
    path.write_bytes(content)
    try:
        found = [*blocks(path)]
    except CallError:
        return
    assert all(block.ndim == 2 and block.dtype == np.float32 for _, block in found)


def test_damaged_files(tmp_path: Path) -> None:
    for kind, precision in KINDS:
        layout = Layout(format=kind, precision=precision, width=WIDTH)  # type: ignore[arg-type]
        path = write(tmp_path / f"{kind}-{precision}", layout, vectors(9), {}, (9,))
        path.write_bytes(path.read_bytes()[:-7])
        with pytest.raises(CallError, match="damaged"):
            list(blocks(path))
    for name, array in [("a.npy", np.zeros(3)), ("b.npy", np.array([["x"]]))]:
        np.save(tmp_path / name, array)
        with pytest.raises(CallError, match=r"allowed: numbers \(rows, dimensions\)"):
            list(blocks(tmp_path / name))
    safetensors.numpy.save_file({"x": np.zeros((2, 2))}, tmp_path / "c.safetensors")
    with pytest.raises(CallError, match="no tensor 'vectors'; it has: x"):
        list(blocks(tmp_path / "c.safetensors"))
    with pytest.raises(CallError, match="no such file"):
        list(blocks(tmp_path / "none.npy"))
