import gzip
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from enrobe.errors import CallError, HubError, ModelError
from enrobe.tasks.data_report import DataReport, report_data
from tests.support import SHARED
from tests.tasks.toys import word_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    word_folder(folder, "bert", max_positions=12)
    return folder


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENROBE_MODEL", raising=False)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


TRAIN = [
    {"text": "w5 w6", "label": "a"},
    {"text": "w5  W6 ", "label": "a"},
    {"text": "w5 w6", "label": "b"},
    {"text": "w7", "label": "b"},
    {"text": "  ", "label": "b"},
    {"text": "w8", "label": None},
    {"text": 5, "label": "b"},
    *({"text": f"w9 w{n}", "label": "a"} for n in range(10, 20)),
    {"text": " ".join(["w5"] * 30), "label": "a"},
]
DEV = [
    {"text": "W7", "label": "b"},
    {"text": "w9 w10", "label": "b"},
    {"text": "new", "label": "c"},
    {"text": "w9 w11", "label": "a"},
]


def test_what_is_counted(model: Path, tmp_path: Path) -> None:
    train, dev = write(tmp_path / "train.jsonl", TRAIN), write(tmp_path / "dev.jsonl", DEV)
    report = report_data([train], [dev], model=model)
    assert (report.kind, report.text, report.label) == ("classify", ("text",), ("label",))
    first, second = report.files
    assert (first.rows, first.bad, first.unlabelled, first.empty) == (17, 1, 1, 1)
    assert (first.duplicates, first.conflicts) == (2, 1)
    assert first.labels == {"a": 13, "b": 3}
    assert second.labels == {"a": 1, "b": 2, "c": 1}
    assert first.characters is not None
    assert (first.characters.least, first.characters.most) == (2, 89)
    assert first.tokens is not None
    assert (first.tokens.rows, first.tokens.most, first.tokens.limit) == (17, 32, 12)
    assert first.tokens.over_limit == 1
    (overlap,) = report.overlaps
    assert (overlap.texts, overlap.other_label) == (3, 1)
    assert report.bad_rows == (
        {
            "file": str(train),
            "row": 7,
            "error": "row 7: column 'text' is 5; allowed: a text or a list of words",
        },
    )
    said = "\n".join(report.warnings)
    for line in (
        "1 label with fewer than 5 rows: 'b'",
        "train.jsonl: 1 of 18 rows cannot be read",
        "train.jsonl: 1 row without a label",
        "train.jsonl: 1 row with a blank text",
        "train.jsonl: 1 row with the text of another row and another label",
        "dev.jsonl: labels that train lacks: 'c'",
        "train.jsonl: 1 of 17 rows are longer than 12 tokens and are cut",
        f"dev.jsonl: 3 texts stand in {train}, too, 1 with another label",
    ):
        assert line in said, line


def test_a_report_is_json(tmp_path: Path) -> None:
    report = report_data([write(tmp_path / "a.jsonl", TRAIN)])
    values = json.loads(json.dumps(report.to_dict()))
    assert values["files"][0]["labels"] == {"a": 13, "b": 3}
    assert set(values) == set(DataReport.__dataclass_fields__)


def test_without_a_model_tokens_are_not_counted(tmp_path: Path) -> None:
    report = report_data([write(tmp_path / "a.jsonl", TRAIN)])
    if report.tokenizer is None:
        assert report.files[0].tokens is None
        assert "tokens are not counted" in report.said[-1]
    with pytest.raises((HubError, CallError, ModelError)):
        report_data([tmp_path / "a.jsonl"], model=tmp_path / "nowhere")


def test_clean_data_has_no_warnings(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "label": n % 2} for n in range(20)]
    report = report_data([write(tmp_path / "a.jsonl", rows)])
    assert report.warnings == () and report.bad_rows == ()


def test_labels_to_look_at(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "label": ["Pos", "pos"][n % 2]} for n in range(20)]
    report = report_data([write(tmp_path / "a.jsonl", rows)])
    assert "labels that differ by case alone: 'Pos' and 'pos'" in report.warnings
    rows = [{"text": f"t{n}", "label": "x"} for n in range(20)]
    report = report_data([write(tmp_path / "a.jsonl", rows)])
    assert "one label only: 'x'" in report.warnings
    rows = [{"text": f"t{n}", "label": "xy"[n % 2]} for n in range(20)]
    dev = write(tmp_path / "dev.jsonl", [{"text": "a"}, {"text": "b"}])
    report = report_data([write(tmp_path / "a.jsonl", rows)], [dev])
    assert report.warnings == (f"{dev}: no row has a label",)


def test_pairs_answers_numbers_and_spans(tmp_path: Path) -> None:
    pairs = [{"premise": "a", "hypothesis": f"h{n}", "label": n % 2} for n in range(20)]
    dev = [{"premise": "A", "hypothesis": "h3", "label": 0}, {"premise": "a", "hypothesis": "x"}]
    path = write(tmp_path / "a.jsonl", pairs)
    report = report_data([path], [write(tmp_path / "b.jsonl", dev)])
    (overlap,) = report.overlaps
    assert (overlap.texts, overlap.other_label, overlap.parts) == (1, 1, 1)

    squad = [
        {"question": f"q{n}", "context": "c one", "answers": [{"text": "one", "answer_start": 2}]}
        for n in range(6)
    ]
    squad += [{"question": "q0", "context": "c one", "answers": []}]
    report = report_data([write(tmp_path / "c.jsonl", squad)], [tmp_path / "c.jsonl"])
    assert report.files[0].labels == {"with an answer": 6, "without": 1}
    assert report.files[0].conflicts == 1
    assert report.overlaps[0].parts == 1

    numbers = [{"text": f"t{n}", "label": n / 4} for n in range(9)]
    report = report_data([write(tmp_path / "d.jsonl", numbers)])
    assert report.kind == "regress" and report.files[0].labels == {}
    assert report.files[0].numbers is not None
    assert (report.files[0].numbers.least, report.files[0].numbers.median) == (0.0, 1.0)

    spans = [{"text": "in York", "label": [[3, 7, "LOC"]]}, {"text": "none", "label": []}] * 5
    report = report_data([write(tmp_path / "e.jsonl", spans)])
    assert report.kind == "tag" and report.files[0].labels == {"LOC": 5}


def test_words_are_counted_as_the_model_reads_them(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("w5 O\nw6 B-x\n\nw7 O\n")
    report = report_data([tmp_path / "a.conll"], model=model)
    tokens = report.files[0].tokens
    assert tokens is not None and (tokens.least, tokens.most) == (3, 4)


# --- the command ----------------------------------------------------------------------------------


def run(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "enrobe", "data", *map(str, arguments)],
        capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=120,
    )


def test_the_command_prints_one_object(model: Path, tmp_path: Path) -> None:
    train, dev = write(tmp_path / "train.jsonl", TRAIN), write(tmp_path / "dev.jsonl", DEV)
    answer = run(train, "--dev", dev, "--model", model)
    assert answer.returncode == 2
    assert answer.stderr.decode() == "enrobe: 1 of 22 rows cannot be read\n"
    (line,) = answer.stdout.decode().splitlines()
    assert json.loads(line)["overlaps"][0]["texts"] == 3


def test_every_option_arrives(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.gz"
    path.write_bytes(gzip.compress(b"a\tb\t3\nc\td\t5\n"))
    answer = run(
        *(path, "--format", "tsv", "--columns", "s1,s2,stars", "--text", "s1,s2"),
        *("--label", "stars", "--kind", "regress", "--model", model, "--json"),
    )
    assert answer.returncode == 0, answer.stderr
    report = json.loads(answer.stdout)
    assert (report["kind"], report["text"], report["label"]) == (
        "regress",
        ["s1", "s2"],
        ["stars"],
    )
    assert report["said"] == [] and report["files"][0]["numbers"]["most"] == 5
    assert report["tokenizer"] == str(model)


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    for arguments, message in (
        ([tmp_path / "none.csv"], "No such file"),
        ([], "no file is named"),
        ([write(tmp_path / "a.jsonl", [{"a": "x", "b": "y"}])], "which column is the text?"),
        ([tmp_path / "a.jsonl", "--kind", "tags"], "kind"),
    ):
        answer = run(*arguments)
        assert answer.returncode == 2
        (line,) = answer.stderr.decode().splitlines()
        assert message in line and not answer.stdout


def test_a_table_on_a_terminal(model: Path, tmp_path: Path) -> None:
    rows = [*TRAIN, *({"text": f"t{n}", "label": f"label {n}"} for n in range(30))]
    rows[0] = {"text": "x", "label": "[red]\x1b[2J"}
    train, dev = write(tmp_path / "train.jsonl", rows), write(tmp_path / "dev.jsonl", DEV)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "enrobe", "data", str(train)),
            *("--dev", str(dev), "--kind", "classify", "--model", str(model)),
        ],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "dumb", "COLUMNS": "200"},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait(timeout=60) == 2
    text = shown.decode()
    for part in (
        "train: train.jsonl",
        "duplicates",
        "tokens, median",
        "[red]\\x1b[2J",
        "more",
        "! ",
        "row 7: column 'text' is 5",
        "1 of 52 rows cannot be read",
    ):
        assert part in text, (part, text)
    assert "\x1b" not in text


def test_a_leak_that_is_known(tmp_path: Path) -> None:
    train, dev = SHARED / "data/squad2_dev_half/all.jsonl.gz", SHARED / "data/xquad/en.jsonl.gz"
    if not train.is_file() or not dev.is_file():
        pytest.skip(f"no {train}")
    report = report_data([train], [dev])
    assert report.overlaps[0].texts == 334 and report.overlaps[0].parts == 78
