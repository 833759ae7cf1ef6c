import csv
import gzip
import io
import json
import lzma
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enrobe.data.records import FORMATS, Record, Records, looks_like_data
from enrobe.errors import CallError, EnrobeError
from tests.support import SHARED

ANYWHERE = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# What a text may hold in a file of UTF-8: no half of a surrogate pair.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def records(path: Path, **options: Any) -> list[Record]:
    return list(Records(path, **options))


def values(path: Path, **options: Any) -> list[dict[str, Any]]:
    found = records(path, **options)
    assert all(record.error is None for record in found), found
    return [dict(record.values) for record in found]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,label\none,1\n,2\n"zwei, ü\nund ""mehr""",3\n'),
        ("a.tsv", 'text\tlabel\none\t1\n\t2\nzwei, ü\\nund "mehr"\t3'),
        (
            "a.jsonl",
            '{"text": "one", "label": "1"}\n{"text": "", "label": "2"}\n\n'
            '{"text": "zwei, ü\\nund \\"mehr\\"", "label": "3"}',
        ),
        (
            "a.json",
            '[{"text": "one", "label": "1"}, {"text": "", "label": "2"},'
            ' {"text": "zwei, ü\\nund \\"mehr\\"", "label": "3"}]',
        ),
    ],
)
def test_formats(name: str, content: str, packing: str, tmp_path: Path) -> None:
    path = write(tmp_path / (name + packing), PACKINGS[packing](content.encode()))
    last = 'zwei, ü\\nund "mehr"' if name == "a.tsv" else 'zwei, ü\nund "mehr"'
    assert values(path) == [
        {"text": "one", "label": "1"},
        {"text": "", "label": "2"},
        {"text": last, "label": "3"},
    ]


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="the parquet extra is not installed")
    pq = pytest.importorskip("pyarrow.parquet", reason="the parquet extra is not installed")
    rows = [{"words": ["a", "b"], "n": 1, "s": None}, {"words": [], "n": None, "s": "x\u2028y"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == rows
    write(tmp_path / "b.parquet", b"PAR1 nothing PAR1")
    with pytest.raises(CallError, match="not parquet"):
        records(tmp_path / "b.parquet")


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    for name, content in (
        ("a.csv", b"text\none\n"),
        ("a.tsv", b"text\none\n"),
        ("a.jsonl", b'{"text": "one"}'),
        ("a.json", b'[{"text": "one"}]'),
        ("a.txt", b"one"),
    ):
        assert values(write(tmp_path / name, mark + content)) == [{"text": "one"}], name
    path = write(tmp_path / "a.conll", mark + b"one\tO\n")
    assert values(path) == [{"tokens": ["one"], "tags": ["O"]}]


def test_utf_16_is_named(tmp_path: Path) -> None:
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.json", "a.conll"):
        write(tmp_path / name, "text\nöne\n".encode("utf-16"))
        with pytest.raises(CallError, match="UTF-16; fix: save it as UTF-8"):
            records(tmp_path / name)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends(end: str, tmp_path: Path) -> None:
    assert values(write(tmp_path / "a.csv", f"a,b{end}1,2{end}{end}3,4")) == [
        {"a": "1", "b": "2"},
        {"a": "3", "b": "4"},
    ]
    assert values(write(tmp_path / "a.tsv", f"a\tb{end}1\t2{end}{end}3\t4{end}")) == [
        {"a": "1", "b": "2"},
        {"a": "3", "b": "4"},
    ]
    conll = f"a O{end}b O{end}{end}{end}c O"
    assert [len(r["tokens"]) for r in values(write(tmp_path / "a.conll", conll))] == [2, 1]


def test_other_line_separators_stand_inside_fields(tmp_path: Path) -> None:
    text = "a\u2028b\x85c\x0bd\x1ce\u2029f"
    for name, content in (
        ("a.csv", f"text,n\n{text},1\n"),
        ("a.tsv", f"text\tn\n{text}\t1\n"),
        ("a.jsonl", json.dumps({"text": text, "n": "1"}, ensure_ascii=False)),
    ):
        assert values(write(tmp_path / name, content)) == [{"text": text, "n": "1"}], name
    path = write(tmp_path / "a.conll", f"{text}\tO\n\u00a0\tO\n")
    assert values(path) == [{"tokens": [text, "\u00a0"], "tags": ["O", "O"]}]


def test_a_carriage_return_inside_a_tsv_field_ends_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", b"a\tb\nx\ry\t1\r\n")
    assert values(path) == [{"a": "x\ry", "b": "1"}]


def test_ragged_rows_are_errors_and_the_rest_goes_on(tmp_path: Path) -> None:
    content = "a,b\n1,2\n3\n4,5,6\n7,8,,\n9,10\n"
    found = records(write(tmp_path / "a.csv", content))
    assert [r.error is None for r in found] == [True, False, False, True, True]
    assert found[1].error == "row 2: 1 fields under a header of 2"
    assert found[3].values == {"a": "7", "b": "8"}
    found = records(write(tmp_path / "a.tsv", content.replace(",", "\t")))
    assert [r.error is None for r in found] == [True, False, False, True, True]


def test_bad_utf_8_is_an_error_of_its_row(tmp_path: Path) -> None:
    for name, content in (
        ("a.csv", b'a,b\n1,2\n"x\nb\xffd",2\n3,\xc3\xbc\n'),
        ("a.tsv", b"a\tb\n1\t2\nb\xffd\t2\n3\t\xc3\xbc\n"),
        ("a.jsonl", b'{"a": 1}\n{"a": "b\xffd"}\n{"a": "\xc3\xbc"}\n'),
        ("a.conll", b"a O\n\nb\xffd O\n\n\xc3\xbc O\n"),
        ("a.txt", b"1\nb\xffd\n\xc3\xbc"),
    ):
        found = records(write(tmp_path / name, content))
        assert [r.error is None for r in found] == [True, False, True], name
        assert "not UTF-8" in str(found[1].error)
        json.dumps([r.values for r in found], ensure_ascii=False).encode()
    with pytest.raises(CallError, match="header line: not UTF-8"):
        records(write(tmp_path / "b.csv", b"a\xff,b\n1,2\n"))


def test_a_quotation_mark_that_never_closes(tmp_path: Path) -> None:
    rows = "".join(f"{n},x\n" for n in range(100))
    found = records(write(tmp_path / "a.csv", f'a,b\n1,2\n3,"oh\n{rows}'))
    assert [r.error is None for r in found] == [True, False]
    assert "row 2: a quotation mark opens there and never closes" in str(found[1].error)
    # One that closes at the very end of the file is no mistake.
    assert values(write(tmp_path / "b.csv", 'a,b\n1,"2"')) == [{"a": "1", "b": "2"}]


def test_semicolons_and_tabs_in_a_csv_file(tmp_path: Path) -> None:
    for sign in ";\t":
        path = write(tmp_path / "a.csv", f'text{sign}label\n"a, {sign}b"{sign}1\n')
        assert values(path) == [{"text": f"a, {sign}b", "label": "1"}]


def test_names_that_stand_twice_in_a_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ",a,a,a.1\n0,1,2,3\n")
    assert values(path) == [{"": "0", "a": "1", "a.1": "2", "a.1.1": "3"}]


def test_a_file_without_a_header_has_its_columns_named(tmp_path: Path) -> None:
    # stsbenchmark's own files look so: no header, and further fields in some rows
    path = write(tmp_path / "a.tsv", "main\t5.0\tA plane.\tAn air plane.\n" * 2 + "x\t1\ta\tb\tc\n")
    found = records(path, columns=("genre", "score", "s1", "s2"))
    assert [r.number for r in found] == [1, 2, 3]
    assert [r.error for r in found] == [None] * 3
    assert found[0].values == {
        "genre": "main",
        "score": "5.0",
        "s1": "A plane.",
        "s2": "An air plane.",
    }
    assert found[2].values == {"genre": "x", "score": "1", "s1": "a", "s2": "b"}
    with pytest.raises(CallError, match="a jsonl has them"):
        Records(write(tmp_path / "a.jsonl", "{}"), columns=("a",))


def test_cola_has_no_header(tmp_path: Path) -> None:
    content = "gj04\t1\t\tOur friends won't buy this.\ngj04\t0\t*\tThey drank the \"pub.\n"
    reader = Records(write(tmp_path / "train.tsv", content))
    found = list(reader)
    assert [r.values["sentence"] for r in found] == [
        "Our friends won't buy this.",
        'They drank the "pub.',
    ]
    assert [r.values["label"] for r in found] == ["1", "0"]
    assert [r.number for r in found] == [1, 2]
    assert "no header; its columns are CoLA's" in reader.notes[0]


def test_json_lines_under_the_name_of_json(tmp_path: Path) -> None:
    reader = Records(write(tmp_path / "a.json", '{"a": 1}\n\n{"a": \n{"a": 2}\n'))
    found = list(reader)
    assert [r.error is None for r in found] == [True, False, True]
    assert [r.number for r in found] == [1, 3, 4]
    assert "JSON lines" in reader.notes[0]


SQUAD: dict[str, Any] = {
    "version": "v2.0",
    "data": [
        {
            "title": "Normans",
            "paragraphs": [
                {
                    "context": "The Normans came to France.",
                    "qas": [
                        {
                            "id": "q1",
                            "question": "Where?",
                            "answers": [{"text": "France", "answer_start": 20}],
                            "is_impossible": False,
                        },
                        {
                            "id": "q2",
                            "question": "When?",
                            "answers": [],
                            "plausible_answers": [{"text": "came", "answer_start": 12}],
                            "is_impossible": True,
                        },
                    ],
                },
                {"context": "Nothing.", "qas": []},
            ],
        }
    ],
}


def test_squads_nested_form(tmp_path: Path) -> None:
    found = values(write(tmp_path / "dev.json", json.dumps(SQUAD, indent=1)))
    assert found == [
        {
            "title": "Normans",
            "context": "The Normans came to France.",
            "id": "q1",
            "question": "Where?",
            "answers": [{"text": "France", "answer_start": 20}],
            "is_impossible": False,
        },
        {
            "title": "Normans",
            "context": "The Normans came to France.",
            "id": "q2",
            "question": "When?",
            "answers": [],
            "is_impossible": True,
        },
    ]


def test_broken_parts_of_squad_are_errors_of_their_own(tmp_path: Path) -> None:
    article = SQUAD["data"][0]
    content = {"data": [5, {"paragraphs": [3, {"context": "c", "qas": [7]}]}, article, {"a": 1}]}
    found = records(write(tmp_path / "dev.json", json.dumps(content)))
    assert [r.error is None for r in found] == [False, False, False, True, True, True]
    assert [r.number for r in found] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.doc", "x", {}, "allowed: csv, tsv, jsonl"),
        ("a.parquet.gz", "x", {}, "allowed: csv"),
        ("a.csv", "", {}, "no header line"),
        ("a.tsv", "", {}, "no header line"),
        ("a.json", "", {}, "not JSON"),
        ("a.json", "[" * 100_000, {}, "not JSON"),
        ("a.json", '"text"', {}, "a list of objects"),
        ("a.json", '{"rows": []}', {}, "a list of objects"),
        ("a.json", b"\xff\xfa", {}, "not JSON"),
        ("a.csv.gz", "not gzip", {}, "damaged"),
        ("a.csv.xz", "not xz", {}, "damaged"),
        ("a.jsonl.gz", gzip.compress(b"x" * 9999, mtime=0)[:-9], {}, "damaged"),
        ("a.x", "", {"format": "jsnl"}, "did you mean 'jsonl'"),
        ("a.conll", "a O\n", {"columns": ("w", "p", "t")}, "3 names for the columns"),
    ],
)
def test_a_file_that_cannot_be_read(
    name: str, content: str | bytes, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path / name, content)
    with pytest.raises(CallError, match=message) as caught:
        records(tmp_path / name, **options)
    assert "\n" not in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="No such file"):
        Records(tmp_path / "none.csv")
    with pytest.raises(CallError, match="null byte"):
        Records("a\0.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(CallError, match="directory"):
        Records(tmp_path / "folder.csv")


def test_a_format_that_the_name_does_not_say(tmp_path: Path) -> None:
    path = write(tmp_path / "eng.testa.gz", gzip.compress(b"EU B-ORG\n"))
    assert values(path, format="conll") == [{"tokens": ["EU"], "tags": ["B-ORG"]}]


def test_what_looks_like_data() -> None:
    assert looks_like_data(
        ["A whole sentence that goes on and on and on until it is no name.", "x"]
    )
    assert looks_like_data(["text", "-1.5"])
    assert not looks_like_data(["#1 String", "Quality", "", "label1"])


# --- hypothesis -----------------------------------------------------------------------------------


@ANYWHERE
@given(rows=st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=6), end=st.sampled_from(["\n", "\r\n"]))
def test_csv_round_trip(rows: list[tuple[str, str, str]], end: str, tmp_path: Path) -> None:
    out = io.StringIO(newline="")
    # Python's own writer leaves a lone \r bare where lines end in \n.
    bare = any("\r" in field for row in rows for field in row)
    writer = csv.writer(
        out, lineterminator=end, quoting=csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL
    )
    writer.writerows([("a", "b", "c"), *rows])
    path = write(tmp_path / "a.csv", out.getvalue())
    assert values(path) == [dict(zip("abc", row, strict=True)) for row in rows]


@ANYWHERE
@given(
    rows=st.lists(st.tuples(*[TEXT.filter(lambda text: not {*"\t\n\r"} & {*text})] * 2), max_size=6)
)
def test_tsv_round_trip(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    lines = ["a\tb", *("\t".join(row) for row in rows)]
    path = write(tmp_path / "a.tsv", "\n".join(lines) + "\n")
    assert values(path) == [dict(zip("ab", row, strict=True)) for row in rows]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10**6) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@ANYWHERE
@given(rows=st.lists(st.dictionaries(TEXT, JSON, max_size=3), max_size=5), ascii=st.booleans())
def test_jsonl_round_trip(rows: list[dict[str, Any]], ascii: bool, tmp_path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=ascii) for row in rows]
    assert values(write(tmp_path / "a.jsonl", "\n".join(lines))) == rows


@ANYWHERE
@given(
    content=st.binary(max_size=150) | st.text('a,;\t\n\r"#-.01{}[]: ü\u2028', max_size=80),
    format=st.sampled_from([f for f in FORMATS if f != "parquet"]),
    packing=st.sampled_from(["", ".gz", ".xz"]),
)
def test_any_bytes_end_in_records_or_a_typed_error(
    content: bytes | str, format: str, packing: str, tmp_path: Path
) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    path = write(tmp_path / f"f.{format}{packing}", data)
    try:
        found = records(path)
    except EnrobeError:
        return
    numbers = [record.number for record in found]
    assert numbers == sorted(set(numbers))


def test_damaged_copies_of_a_file_end_in_records_or_a_typed_error(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    whole = "\n".join(f"{n}\t{'B-x' if n % 3 else 'O'}" + "\n" * (n % 4 == 0) for n in range(60))
    for _ in range(200):
        data = bytearray(whole.encode())
        for _ in range(chance.randint(1, 5)):
            at = chance.randrange(len(data))
            data[at : at + chance.randint(0, 2)] = chance.choice([b"\n", b"\t", b"\xff", b"#", b""])
        for found in records(write(tmp_path / "a.conll", bytes(data))):
            if found.error is None:
                assert len({len(column) for column in found.values.values()}) == 1


# --- size and real files --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.conll", "a.txt"])
def test_memory_does_not_grow_with_the_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with path.open("w") as file:
        file.write({"a.csv": "n,text\n", "a.tsv": "n\ttext\n"}.get(name, ""))
        for n in range(40_000):
            text = "word " * 50
            line = {
                "a.csv": f'{n},"{text}"\n',
                "a.tsv": f"{n}\t{text}\n",
                "a.jsonl": json.dumps({"n": n, "text": text}) + "\n",
                "a.conll": f"{text.replace(' ', '_')}\tO\n\n",
                "a.txt": text + "\n",
            }
            file.write(line[name])
    tracemalloc.start()
    reader = Records(path)
    shares = [reader.share for _ in reader]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(shares) == 40_000
    assert peak < 8_000_000 < path.stat().st_size
    known = [share for share in shares if share is not None]
    assert known == sorted(known)


REAL = [
    ("mr/train.jsonl.gz", 8530, {"sentence", "label"}),
    ("snips/train.jsonl.gz", 13_084, {"tokens", "slots", "label"}),
    ("wnut17/train.conll.gz", 3394, {"tokens", "tags"}),
    ("wnut17/test.conll", 1287, {"tokens", "tags"}),
    ("wikiann/zh.dev.conll.gz", 10_000, {"tokens", "tags"}),
    ("ud_english_ewt/train.conll.gz", 12_544, {"tokens", "tags"}),
    ("squad2_dev_half/all.jsonl.gz", 6078, {"id", "title", "context", "question", "answers"}),
]


@pytest.mark.parametrize(("name", "count", "columns"), REAL)
def test_real_files(name: str, count: int, columns: set[str]) -> None:
    path = SHARED / "data" / name
    if not path.is_file():
        pytest.skip(f"the real data is not on this machine ({path.name})")
    found = records(path)
    assert len(found) == count
    assert all(record.error is None and columns <= {*record.values} for record in found)
    if "tags" in columns:
        assert all(len(r.values["tokens"]) == len(r.values["tags"]) > 0 for r in found)
