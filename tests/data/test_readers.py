import gzip
import io
import json
import lzma
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enrobe.data.readers import Row, Source
from enrobe.errors import CallError, EnrobeError


def rows(path: Path, column: str | None = None) -> list[Row]:
    return list(Source(path, column))


def texts(path: Path, column: str | None = None) -> list[str]:
    found = rows(path, column)
    assert all(row.error is None for row in found), found
    return [row.text for row in found]


@pytest.mark.parametrize("pack", ["", ".gz", ".xz"])
@pytest.mark.parametrize(
    ("name", "content", "column"),
    [
        ("a.txt", "one\n\nzwei ü\r\nthree", None),
        ("a.jsonl", '{"text": "one"}\n{"text": ""}\n{"text": "zwei ü"}\n"three"', None),
        ("a.jsonl", '{"s": "one"}\n{"s": ""}\n\n{"s": "zwei ü"}\n{"s": "three"}\n', "s"),
        ("a.csv", 'x,text\n1,one\n2,\n3,"zwei ü"\n4,three\n', None),
        ("a.csv", 's\none\n""\nzwei ü\nthree\n', None),
        ("a.tsv", "x\ts\n1\tone\n2\t\n3\tzwei ü\n4\tthree\n", "s"),
    ],
)
def test_formats(pack: str, name: str, content: str, column: str | None, tmp_path: Path) -> None:
    path = tmp_path / (name + pack)
    data = content.encode()
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[pack](data))
    assert texts(path, column) == ["one", "", "zwei ü", "three"]


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="the parquet extra is not installed")
    pq = pytest.importorskip("pyarrow.parquet", reason="the parquet extra is not installed")
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3], "text": ["one", None, "three"]}), path)
    found = rows(path)
    assert [row.text for row in found] == ["one", "", "three"]
    assert [row.error is None for row in found] == [True, False, True]
    with pytest.raises(CallError, match="it has: id, text"):
        rows(path, "words")
    path.write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(CallError, match="not parquet"):
        rows(path)


def test_quotation_marks_in_a_tsv_mean_themselves(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('id\ttext\n1\t"unbalanced\n2\tnext\n')
    assert texts(tmp_path / "a.tsv") == ['"unbalanced', "next"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for name, content in (("a.txt", "one"), ("a.csv", "text\none"), ("a.jsonl", '"one"')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert texts(tmp_path / name) == ["one"]


def test_a_bad_row_is_an_error_and_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\nb\xffd\nthree\n")
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "one"}\n{"text": \n{"text": 5}\n{"other": "x"}\n[1]\n'
        + b"[" * 100_000
        + b'\n{"text": "last"}\n'
    )
    (tmp_path / "a.csv").write_text("id,text\n1,one\n2\n3,a,b\n4,last\n")
    assert [r.error is None for r in rows(tmp_path / "a.txt")] == [True, False, True]
    assert "line 2: not UTF-8" in str(rows(tmp_path / "a.txt")[1].error)
    found = rows(tmp_path / "a.jsonl")
    assert [r.error is None for r in found] == [True, False, False, False, False, False, True]
    assert [r.number for r in found] == [1, 2, 3, 4, 5, 6, 7]
    assert "it has: other" in str(found[3].error)
    assert [r.error is None for r in rows(tmp_path / "a.csv")] == [True, False, False, True]


@pytest.mark.parametrize(
    ("name", "content", "column"),
    [
        ("a.doc", b"", None),
        ("a", b"", None),
        ("a.parquet.gz", b"", None),
        ("a.txt", b"", "s"),
        ("a.csv", b"", None),
        ("a.csv", b"x,y\n1,2\n", None),
        ("a.txt.gz", b"not gzip", None),
        ("a.txt.gz", gzip.compress(b"x" * 9999, mtime=0)[:-9], None),
        ("a.txt.xz", b"not xz", None),
    ],
)
def test_a_file_that_cannot_be_read(
    name: str, content: bytes, column: str | None, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CallError) as caught:
        rows(tmp_path / name, column)
    assert "\n" not in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.txt", tmp_path / "x" / "nothing.txt"):
        with pytest.raises(CallError, match="No such file"):
            Source(path)
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(CallError, match="directory"):
        Source(tmp_path / "folder.txt")


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(b'{"s": "one"}\n')

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert [row.text for row in Source("-")] == ['{"s": "one"}']
    Stdin.buffer = io.BytesIO(b'{"s": "one"}\n')
    assert [row.text for row in Source("-", "s")] == ["one"]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        for number in range(60_000):
            file.write(json.dumps({"text": f"{number} " + "x" * 300}) + "\n")
    tracemalloc.start()
    source = Source(path)
    shares = [source.share for _ in source]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8_000_000 < path.stat().st_size
    known = [share for share in shares if share is not None]
    assert known == sorted(known)
    assert known[-1] == 1.0


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.binary(max_size=200),
    name=st.sampled_from(["f.txt", "f.jsonl", "f.csv", "f.tsv", "f.txt.gz", "f.csv.xz"]),
)
def test_any_bytes_end_in_rows_or_a_typed_error(content: bytes, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    try:
        found = rows(path)
    except EnrobeError:
        return
    assert [row.number for row in found] == sorted(row.number for row in found)
