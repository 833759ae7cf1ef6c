"""`enrobe predict`: files, pipes, columns and heads, in one process; and as a user runs it."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import enrobe
from enrobe.cli import main
from tests.tasks.heads import bert_folder, several
from tests.test_house import without

HEADS = {"topic": "classify", "slots": "tag", "qa": "answer"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models")
    several(out, HEADS, topic={"text": ("body",)})
    bert_folder(out / "regress", "regress")
    bert_folder(out / "mlm", "mlm")
    return out


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def predict(model: Path, path: Path, *options: str, code: int = 0) -> list[dict[str, Any]]:
    out = path.with_name("out.jsonl")
    with pytest.raises(SystemExit) as stopped:
        main(["predict", str(model), str(path), "--output", str(out), *options])
    assert stopped.value.code == code
    return records(out)


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_one_head(folder: Path, tmp_path: Path) -> None:
    path = lines(tmp_path / "in.jsonl", *({"text": f"the w{n % 50}", "n": n} for n in range(2100)))
    found = predict(folder / "one-topic", path)
    assert [record["text"] for record in found] == [f"the w{n % 50}" for n in range(2100)]
    expected = enrobe.load(folder / "one-topic").predict(["the w7", "the w8"])
    for record, one in zip(found[7:9], expected, strict=True):
        assert record["label"] == one.label
        assert record["probabilities"] == pytest.approx(one.probabilities, abs=1e-6)
        assert record.keys() == {"text", *one.to_dict()}


def test_all_heads_and_one_of_them(folder: Path, tmp_path: Path) -> None:
    path = lines(
        tmp_path / "in.jsonl", {"body": "new york w9", "x": 1}, {"body": "the cat", "x": 2}
    )
    model = enrobe.load(folder / "several")
    found = predict(folder / "several", path)
    expected = model.predict_all(["new york w9", "the cat"])
    for record, one in zip(found, expected, strict=True):
        assert record.keys() == {"text", "heads", "error"}
        assert record["heads"]["topic"]["label"] == one["topic"].label  # type: ignore[union-attr]
        spans = one["slots"]
        assert isinstance(spans, list)
        assert [s["text"] for s in record["heads"]["slots"]] == [s.text for s in spans]
    found = predict(folder / "several", path, "--head", "slots", "--text", "body")
    assert all(record.keys() == {"text", "spans", "error"} for record in found)
    found = predict(folder / "several", path, "--head", "topic")
    assert [record["head"] for record in found] == ["topic", "topic"]


def test_words_and_conll(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.conll"
    path.write_text("new\tO\nyork\tO\n\nthe\tO\n")
    words = [["new", "york"], ["the"]]
    (a, b) = predict(folder / "one-slots", path)
    assert [a["text"], b["text"]] == words
    expected = enrobe.load(folder / "one-slots").tag(words=words)
    assert [(s["start"], s["end"]) for s in a["spans"]] == [(s.start, s.end) for s in expected[0]]


def test_pairs_and_numbers(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.tsv"
    path.write_text("a\tb\nthe cat\tsat\n\tw5\n")
    found = predict(folder / "regress", path, "--text", "a,b")
    expected = enrobe.load(folder / "regress").predict(pairs=[("the cat", "sat"), ("", "w5")])
    assert [record["text"] for record in found] == [["the cat", "sat"], ["", "w5"]]
    assert [r["value"] for r in found] == pytest.approx([e.value for e in expected], abs=1e-6)


def test_questions(folder: Path, tmp_path: Path) -> None:
    rows = [{"question": "who?", "context": "the cat sat on the mat"}, {"question": "where?"}]
    rows.append({"question": "where?", "context": ""})
    found = predict(folder / "one-qa", lines(tmp_path / "in.jsonl", *rows), code=2)
    assert [record["error"] is None for record in found] == [True, False, False]
    assert "column 'context' is missing" in found[1]["error"]
    answer = found[0]["answers"][0]
    assert answer["text"] == "the cat sat on the mat"[answer["start"] : answer["end"]]
    renamed = lines(tmp_path / "q.jsonl", {"q": "who?", "c": "the cat"})
    assert predict(folder / "one-qa", renamed, "--text", "q,c")[0]["answers"]


def test_bad_rows_get_their_errors(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "in.jsonl"
    rows = ['{"text": "a"}', "{", '{"text": 5}', '{"text": "\\ud800"}', '{"other": 1}', "[1]"]
    path.write_text("\n".join([*rows, '{"text": "' + "the " * 600 + '"}']) + "\n")
    for name in ("one-topic", "one-slots", "several"):
        found = predict(folder / name, path, code=2)
        assert [record["error"] is None for record in found] == [True, *[False] * 5, True]
        said = capsys.readouterr().err
        assert "enrobe: 5 of 7 texts had an error\n" in said
        # Spans are read in windows; nothing of them is cut.
        assert ("1 texts were cut" in said) == (name != "one-slots")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            "one-topic",
            ["--text", "txt"],
            "no column 'txt'; it has: text, other; did you mean 'text'",
        ),
        ("one-topic", ["--text", "text,other,text"], "reads one text column"),
        ("one-slots", ["--text", "text,other"], "a tag head reads one text column"),
        ("one-qa", ["--text", "text"], "reads question and context"),
        ("one-qa", [], "no column 'question'; it has: text, other; fix: --text A,B"),
        ("several", ["--head", "topics"], "did you mean 'topic'"),
        ("mlm", [], "the model has no head of kind classify"),
        ("mlm", ["--head", "mlm"], "fix: Model.fill"),
    ],
)
def test_a_wrong_call_is_one_line(
    model: str,
    options: list[str],
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = lines(tmp_path / "in.jsonl", {"text": "a", "other": "b"})
    with pytest.raises(SystemExit) as stopped:
        main(["predict", str(folder / model), str(path), *options])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("enrobe: ") and message in error and error.count("\n") == 1


def test_which_column(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lines(tmp_path / "one.jsonl", {"review": "the cat"})
    assert predict(folder / "one-topic", path)[0]["text"] == "the cat"
    path = lines(tmp_path / "two.jsonl", {"review": "the cat", "note": "w5"})
    with pytest.raises(SystemExit):
        main(["predict", str(folder / "one-topic"), str(path)])
    assert "which column is the text? it has: review, note" in capsys.readouterr().err
    (tmp_path / "empty.jsonl").write_text("")
    assert predict(folder / "one-topic", tmp_path / "empty.jsonl") == []


def test_a_terminal_gets_a_table(folder: Path) -> None:
    from rich.console import Console

    from enrobe import console_predict
    from enrobe.tasks.predict_file import FilePredictor, Input

    expected = {
        "one-topic": "LABEL_",
        "regress": ".",
        "one-slots": "new york w9",
        "one-qa": "new",
        "several": "topic",
    }
    for name, part in expected.items():
        predictor = FilePredictor(enrobe.load(folder / name), None)
        parts = ("who?", "new york w9") if name == "one-qa" else ("new york w9",)
        for found in (predictor.run([Input(parts)])[0], predictor.failed(Input(parts), "bad [x]")):
            console = Console(file=io.StringIO(), width=100)
            console.print(console_predict._table(found))
            shown = console.file.getvalue()  # type: ignore[attr-defined]
            assert parts[0] in shown
            assert ("bad [x]" if found.error else part) in shown


def test_pipes(folder: Path) -> None:
    def run(*arguments: str, stdin: str) -> list[dict[str, Any]]:
        answer = subprocess.run(
            [sys.executable, "-m", "enrobe", "predict", str(folder / "one-topic"), *arguments],
            input=stdin.encode(),
            capture_output=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        assert answer.returncode == 0, answer.stderr
        return [json.loads(line) for line in answer.stdout.splitlines()]

    assert [r["text"] for r in run("-", stdin="the cat\n\nw5\n")] == ["the cat", "", "w5"]
    found = run("-", "--text", "b", stdin='{"b": "the cat"}\n')
    assert found[0]["text"] == "the cat" and found[0]["label"]


def test_nothing_needs_torch(folder: Path, tmp_path: Path) -> None:
    path = lines(tmp_path / "in.jsonl", {"body": "the cat"})
    arguments = ["predict", str(folder / "several"), str(path)]
    code = f"from enrobe.cli import main; main({arguments!r})"
    answer = without("torch", "transformers", "pyarrow", code=code)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["heads"]["topic"]["label"]
