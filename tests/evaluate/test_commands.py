"""`enrobe evaluate` and `enrobe layers` as a user meets them."""

import json
from pathlib import Path

import pytest

from tests.evaluate.test_similarity import random_pairs
from tests.tasks.toys import word_folder
from tests.test_cli import records, run, terminal


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model")
    word_folder(out, "roberta", seed=5)
    return out


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.tsv"
    lines = [f"{a}\t{b}\t{n / 2}" for n, (a, b) in enumerate(random_pairs(7, 20))]
    path.write_text("\n".join(["a\tb\ty", *lines]) + "\n")
    return path


def test_evaluate_piped_is_one_json_object(folder: Path, scored: Path) -> None:
    options = ("--pool", "cls,max", "--layers", "-1,-2", "--normalize")
    base = ("evaluate", str(folder), str(scored), "--text", "a,b")
    answer = run(*base, "--task", "sts", "--label", "y", *options)
    assert answer.returncode == 0, answer.stderr
    assert not answer.stderr
    (record,) = records(answer)
    assert (record["task"], record["rows"], record["error"]) == ("sts", 20, None)
    assert set(record["spearman"]) == {"value", "low", "high", "confidence", "rounds"}  # type: ignore[call-overload]
    (plain,) = records(run(*base, "--task", "sts", "--label", "y"))
    assert plain["spearman"] != record["spearman"]
    (record,) = records(run(*base, "--task", "bitext"))
    assert record["task"] == "bitext"
    assert 0 <= record["accuracy_forward"]["value"] <= 1  # type: ignore[index,operator]


def test_evaluate_on_a_terminal_is_a_table(folder: Path, scored: Path) -> None:
    base = ("evaluate", str(folder), str(scored), "--text", "a,b", "--task")
    shown = terminal(folder, *base, "sts", "--label", "y")
    assert "spearman" in shown and "95% interval" in shown and "20 pairs, cosine" in shown
    assert "{" not in shown
    assert "reciprocal rank backward" in terminal(folder, *base, "bitext")
    assert '"accuracy_backward"' in terminal(folder, *base, "bitext", "--json")


def test_bad_rows_are_left_out_and_said(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b,y\nw5,w6,1\nw5,w7,high\nw8,w9,3\nw9 w9,w8,2\n")
    answer = run("evaluate", str(folder), str(path), "--task", "sts", "--text=a,b", "--label=y")
    assert answer.returncode == 2
    assert records(answer)[0]["skipped"] == 1
    message = b"enrobe: 1 rows were left out; the first: row 2: label 'high'; allowed: a number\n"
    assert answer.stderr == message


def test_layers(folder: Path, scored: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the train extra is not installed")
    base = ("layers", "--model", str(folder), "--dev", str(scored), "--text", "a,b", "--label", "y")
    answer = run(*base, "--output", str(tmp_path / "one"))
    assert answer.returncode == 0, answer.stderr
    (record,) = records(answer)
    written = json.loads((tmp_path / "one" / "layers.json").read_text())
    assert written == {"model": str(folder), **record}
    shown = terminal(folder, *base, "--output", str(tmp_path / "two"))
    assert "mean_sqrt_len" in shown and "best: layer" in shown and "written:" in shown


MISTAKES = [
    ["evaluate", "MODEL", "DATA", "--text", "a,b"],
    ["evaluate", "MODEL", "DATA", "--task", "stss", "--text", "a,b", "--label", "y"],
    ["evaluate", "MODEL", "DATA", "--task", "sts", "--text", "a", "--label", "y"],
    ["evaluate", "MODEL", "DATA", "--task", "sts", "--text", "a,b"],
    ["evaluate", "MODEL", "DATA", "--task", "sts", "--text", "a,x", "--label", "y"],
    ["evaluate", "MODEL", "none.tsv", "--task", "sts", "--text", "a,b", "--label", "y"],
    ["evaluate", "MODEL", "DATA", "--task", "bitext", "--text", "a,b", "--layers", "9"],
    ["evaluate", "MODEL", "DATA", "--task", "bitext", "--text", "a,b", "--layers", "x"],
    ["evaluate", "MODEL", "DATA", "--task", "bitext", "--text", "a,b", "--pool", "meen"],
    ["evaluate", "./none", "DATA", "--task", "bitext", "--text", "a,b"],
    ["layers", "--model", "MODEL", "--dev", "DATA", "--text", "a", "--label", "y"],
    ["layers", "--model", "MODEL", "--dev", "DATA", "--text", "a", "--label", "y", "--output=X"],
    ["layers", "--model", "MODEL", "--dev=DATA", "--text=a,b", "--label=y", "--output=tests"],
]


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], folder: Path, scored: Path
) -> None:
    names = {"MODEL": str(folder), "DATA": str(scored), "--dev=DATA": f"--dev={scored}"}
    answer = run(*(names.get(word, word) for word in arguments))
    assert answer.returncode == 2, answer
    assert not answer.stdout
    assert answer.stderr.count(b"\n") == 1
    assert answer.stderr.startswith(b"enrobe: ")
