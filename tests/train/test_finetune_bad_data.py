"""What is wrong with labelled files is said before the first step, as a user sees it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from enrobe.cli import main
from enrobe.errors import CallError
from enrobe.train import finetune
from tests.train.finetune_toys import labelled, model_folder, row

Run = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code, and the lines on standard error before the first step and from it on."""

    def of(kind: str, train: Path, dev: Path | None = None, text: str = "text") -> Any:
        options = ["--model", folder, "--output", tmp_path / "run", "--task", kind]
        options += ["--train", train, "--text", text, "--label", "label"]
        options += ["--dev", dev] if dev is not None else []
        sets = ["epochs=1", "batch_rows=64", "log_every=1"]
        with pytest.raises(SystemExit) as ended:
            main([str(option) for option in [*("finetune", *options), "--set", *sets]])
        lines = capsys.readouterr().err.splitlines()
        first = next((n for n, line in enumerate(lines) if '"loss"' in line), len(lines))
        return int(ended.value.code or 0), lines[:first], lines[first:]

    return of


def write(path: Path, rows: Sequence[dict[str, Any] | str]) -> Path:
    lines = [one if isinstance(one, str) else json.dumps(one) for one in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def good(count: int, kind: str = "classify") -> list[dict[str, Any]]:
    words = ("cat", "hat", "mat", "sat")
    return [row(kind, [words[n % 4], words[n // 4 % 4], "on"]) for n in range(count)]


def test_a_missing_column(run: Run, tmp_path: Path) -> None:
    code, before, after = run("classify", labelled(tmp_path, "classify"), text="texd")
    assert code == 2 and not after and not (tmp_path / "run").exists()
    (line,) = before
    assert "no column 'texd'; it has: text, label" in line and "did you mean 'text'?" in line


@pytest.mark.parametrize(
    ("kind", "label", "words"),
    [
        ("classify", "x", "one label only, 'x'; a classifier needs two"),
        ("tag", ["O", "O"], "one tag only, 'O'; there is nothing to tell apart"),
        ("regress", 2.5, "one number only, 2.5; there is nothing to learn"),
        ("multilabel", [], "no row has a label"),
    ],
)
def test_one_label_only(kind: str, label: Any, words: str, run: Run, tmp_path: Path) -> None:
    text = ["cat", "hat"] if kind == "tag" else "cat hat"
    file = write(tmp_path / "a.jsonl", [{"text": text, "label": label}] * 20)
    code, before, after = run(kind, file, file)
    assert code == 2 and not after and words in before[-1], before


@pytest.fixture
def no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the data: the run ends where its first step would begin."""

    def fit(*_: Any, **__: Any) -> None:
        raise CallError("the first step")

    monkeypatch.setattr(finetune, "fit", fit)


@pytest.mark.usefixtures("no_steps")
def test_3_of_10000_rows_are_broken(run: Run, tmp_path: Path) -> None:
    rows: list[Any] = good(10_000)
    rows[17], rows[4_000], rows[9_999] = '{"text": "cut of', '{"label": "cat"}', '["cat"]'
    file = write(tmp_path / "a.jsonl", rows)
    code, before, _ = run("classify", file, write(tmp_path / "dev.jsonl", good(20)))
    assert code == 2 and "the first step" in before[-1]
    (line,) = [line for line in before if "cannot be read" in line]
    assert "train: 3 of 10000 rows cannot be read and are left out; the first: line 18" in line


def test_labels_and_texts_of_dev(run: Run, tmp_path: Path) -> None:
    dev = [*good(2), {"text": "cat sat", "label": "dog"}, {"text": "cat the", "label": None}]
    file = write(tmp_path / "a.jsonl", good(40))
    code, before, _ = run("classify", file, write(tmp_path / "dev.jsonl", dev))
    assert code == 0
    said = "\n".join(before)
    assert "dev: 1 labels are not among those of train: 'dog'" in said
    assert "dev: 1 of 4 rows have no label" in said
    assert "dev: 2 of 4 rows have a text that train has, too" in said


@pytest.mark.usefixtures("no_steps")
@pytest.mark.parametrize("kind", ["classify", "tag"])
def test_a_text_of_a_million_characters(kind: str, run: Run, tmp_path: Path) -> None:
    rows = good(40, kind)
    words = ["the", "cat"] * 125_000
    long = row(kind, words)
    assert len(" ".join(words)) == 999_999
    file = write(tmp_path / "a.jsonl", [*rows, long])
    code, before, _ = run(kind, file, write(tmp_path / "dev.jsonl", [*rows[:8], long]))
    assert code == 2 and "the first step" in before[-1]
    said = "\n".join(before)
    if kind == "classify":
        assert "classify: 1 texts of train are longer than 40 tokens; cut" in said
        assert "classify: 1 texts of dev are longer than 40 tokens; cut" in said
    else:
        assert "tag: one text of train fills " in said
