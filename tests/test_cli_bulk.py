"""`enrobe embed` and `enrobe search` as a user meets them."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.test_cli import folder as folder
from tests.test_cli import records, run, terminal
from tests.test_house import without


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "in.csv"
    path.write_text("id,body\n" + "".join(f"{n},the cat w{n}\n" for n in range(30)))
    return path


def test_embed_and_search(folder: Path, texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    options = ["--pool", "cls,mean", "--layers", "-1,-2", "--no-normalize", "--text", "body"]
    answer = run("embed", str(texts), "--output", str(output), *options, model=folder)
    assert answer.returncode == 0, answer.stderr
    assert not answer.stderr
    (facts,) = records(answer)
    assert (facts["rows"], facts["failed"], facts["dimensions"]) == (30, 0, 112)
    assert np.load(output).shape == (30, 112)
    answer = run("search", str(output), "the cat w7", "w8", "--top-k", "2")
    assert answer.returncode == 0, answer.stderr
    first, second = records(answer)
    assert first["query"] == "the cat w7"
    hit = first["hits"][0]  # type: ignore[index]
    assert (hit["row"], hit["source"], hit["number"], hit["text"]) == (7, "in.csv", 8, "the cat w7")
    assert len(second["hits"]) == 2  # type: ignore[arg-type]
    shown = terminal(folder, "search", str(output), "the cat w7", "--top-k", "2")
    assert "the cat w7" in shown and "score" in shown and "{" not in shown
    shown = terminal(folder, "embed", str(texts), "--output", str(output), *options, "--resume")
    assert "resumed at" in shown and "{" not in shown


def test_errors_of_rows(folder: Path, tmp_path: Path) -> None:
    path, output = tmp_path / "in.jsonl", tmp_path / "out.npy"
    path.write_text('{"text": "the cat"}\n{\n{"text": "mat"}\n')
    for more in ([], ["--resume"]):
        answer = run("embed", str(path), "--output", str(output), *more, model=folder)
        assert answer.returncode == 2
        assert answer.stderr.startswith(b"enrobe: 1 of 3 texts had an error")
        assert b"out.npy.errors.jsonl" in answer.stderr
    (error,) = (tmp_path / "out.npy.errors.jsonl").read_text().splitlines()
    assert json.loads(error)["row"] == 1
    assert np.isnan(np.load(output)).any(axis=1).tolist() == [False, True, False]


def test_standard_input(folder: Path, tmp_path: Path) -> None:
    for dash in (["-"], ["--input", "-"]):
        output = tmp_path / f"{len(dash)}.jsonl"
        stdin = '{"s": "the cat"}\n{"s": "é"}\n'.encode()
        answer = run(
            "embed", *dash, "--text", "s", "--output", str(output), model=folder, stdin=stdin
        )
        assert answer.returncode == 0, answer.stderr
        found = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
        assert [record["text"] for record in found] == ["the cat", "é"]
        assert not output.with_name(f"{output.name}.part").exists()
    answer = run("embed", "-", "--resume", "--output", str(tmp_path / "b.npy"), model=folder)
    assert answer.returncode == 2 and b"cannot be read again" in answer.stderr


def test_mistakes_are_one_line(folder: Path, texts: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.npy"
    np.save(there, np.zeros((2, 3), np.float32))
    new = str(tmp_path / "new.npy")
    given = [str(texts), "--text", "body", "--output"]
    mistakes = [
        ["embed", *given[:-1]],
        ["embed", "--output", new],
        ["embed", "none.txt", "--output", new],
        ["embed", str(texts), "--output", new],
        ["embed", *given, "out.txt"],
        ["embed", *given, "/nowhere/out.npy"],
        ["embed", *given, str(there)],
        ["embed", *given, str(there), "--resume"],
        ["embed", *given, new, "--pool", "cls,none"],
        ["embed", *given, new, "--layers", "-1,x"],
        ["embed", *given, new, "--layers", "99"],
        ["embed", *given, new, "--precision", "int8"],
        ["embed", *given, new, "--precision", "int4"],
        ["embed", *given, new, "--long", "cut"],
        ["embed", *given, new, "--workers", "0"],
        ["embed", *given, new, "--device", "tpu"],
        ["search", new, "x"],
        ["search", str(there), "x"],
        ["search", str(there)],
        ["search", str(there), "x", "--model", str(folder)],
        ["search", str(there), "x", "--top-k", "0"],
    ]
    for arguments in mistakes:
        answer = run(*arguments, model=folder)
        assert answer.returncode == 2, (arguments, answer)
        assert not answer.stdout
        assert answer.stderr.count(b"\n") == 1, (arguments, answer.stderr)
        assert answer.stderr.startswith(b"enrobe: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "there.npy"]


def test_no_torch_is_needed(folder: Path, texts: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "out.safetensors")
    code = f"""
from enrobe.cli import main
options = ["--text", "body", "--output", {output!r}, "--model", {str(folder)!r}]
try:
    main(["embed", {str(texts)!r}, *options])
except SystemExit as end:
    assert not end.code
main(["search", {output!r}, "the cat w7", "--top-k", "1"])
"""
    answer = without("torch", "transformers", "pyarrow", code=code)
    assert answer.returncode == 0, answer.stderr
    assert '"text": "the cat w7"' in answer.stdout
