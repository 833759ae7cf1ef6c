"""Labelled files of every kind, and what is wrong with them."""

import gzip
import json
import lzma
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enrobe.errors import CallError, TextError
from enrobe.evaluate.rows import as_number, read_rows

RECORDS = [{"a": "one, two", "b": "é", "y": 1.5}, {"a": "", "b": 'say "x"', "y": 2}]


def write(folder: Path, name: str) -> Path:
    path = folder / name
    kind = name.split(".")[1]
    if kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(RECORDS), path)
        return path
    lines = [json.dumps(record) for record in RECORDS]
    if kind == "csv":
        lines = ["a,b,y", '"one, two",é,1.5', ',"say ""x""",2']
    elif kind == "tsv":
        lines = ["a\tb\ty", "one, two\té\t1.5", '\tsay "x"\t2']
    data = ("\ufeff" + "\n".join(lines) + "\n").encode()
    packed = {"gz": gzip.compress, "xz": lzma.compress}.get(name.split(".")[-1], bytes)
    path.write_bytes(packed(data))
    return path


@pytest.mark.parametrize(
    "name", ["x.csv", "x.tsv", "x.jsonl", "x.ndjson.gz", "x.csv.xz", "x.tsv.gz", "x.parquet"]
)
def test_every_kind_of_file(name: str, tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, name), ["a", "b"], "y")
    assert rows.texts == [("one, two", "é"), ("", 'say "x"')]
    assert [as_number(label) for label in rows.labels] == [1.5, 2]
    assert not rows.errors
    assert read_rows(write(tmp_path, name), ["b"]).labels == [None, None]


def test_words_are_joined(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"t": ["to", "be"], "y": "A"}\n')
    assert read_rows(path, ["t"], "y").texts == [("to be",)]


def test_bad_rows_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    bad = ["{", "[]", '{"t": 1, "y": "A"}', '{"t": "b", "y": null}', '{"t": "b"}', "\xff"]
    good = '{"t": "a", "y": "A"}'
    path.write_bytes("\n".join([good, *bad[:-1]]).encode() + b"\n\n\xff\n" + good.encode())
    rows = read_rows(path, ["t"], "y")
    assert len(rows.texts) == 2
    assert rows.numbers == [1, 9]
    places = [int(error.split(":")[0].split()[1]) for error in rows.errors]
    assert places == [2, 3, 4, 5, 6, 8]  # the seventh line is blank
    path = tmp_path / "x.csv"
    path.write_text("t,y\na,A\nb\nc,d,e\nf,B\n")
    rows = read_rows(path, ["t"], "y")
    assert rows.labels == ["A", "B"]
    assert rows.errors[0] == "row 2: 1 fields under a header of 2"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.doc", b"a", "format '.doc'; allowed: csv"),
        ("x", b"a", "allowed: csv"),
        ("x.parquet.gz", b"a", "allowed: csv"),
        ("x.csv", b"", "no header line"),
        ("x.csv", b"t,y\n", "no row can be read"),
        ("x.csv", b"text,y\na,b\n", "no column 't'; it has: text, y"),
        ("x.jsonl.gz", b"not gzip", "damaged"),
        ("x.jsonl.gz", gzip.compress(b'{"t": "a"}\n' * 99, mtime=0)[:-20], "damaged"),
        ("x.parquet", b"not parquet", "damaged or not parquet"),
    ],
)
def test_files_that_cannot_be_read(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    if name == "x.parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(CallError) as caught:
        read_rows(path, ["t"], "y")
    assert message in str(caught.value)
    with pytest.raises(CallError, match="No such file"):
        read_rows(tmp_path / f"no{name}.csv", ["t"])


@given(st.binary(max_size=200), st.sampled_from(["csv", "tsv", "jsonl"]))
@settings(deadline=None)
def test_any_bytes_are_rows_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, kind: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    path.write_bytes(b"a,b\n" * (kind == "csv") + data)
    try:
        rows = read_rows(path, ["a"])
    except CallError:
        return
    assert all(isinstance(text, str) for (text,) in rows.texts)


def test_numbers() -> None:
    assert [as_number(value) for value in ("4.20", 3, 2.5, "-1e2")] == [4.2, 3, 2.5, -100]
    for value in ("", "x", "nan", "inf", None, True, [1], 10**400):
        with pytest.raises(TextError, match="allowed: a number"):
            as_number(value)
