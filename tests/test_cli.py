"""The command line as a user meets it: processes, pipes and files."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import reference

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat", "."]
WORDS += [f"w{i}" for i in range(97 - len(WORDS))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "tiny"
    reference(out, "bert", "mlm", seed=4)
    (out / "vocab.txt").write_text("\n".join(WORDS))
    return out


def run(
    *arguments: str, model: Path | None = None, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    variables.pop("ENROBE_MODEL", None)
    if model is not None:
        variables["ENROBE_MODEL"] = str(model)
    return subprocess.run(
        [sys.executable, "-m", "enrobe", *arguments],
        input=stdin,
        capture_output=True,
        env=variables,
        timeout=120,
    )


def records(answer: subprocess.CompletedProcess[bytes]) -> list[dict[str, object]]:
    return [json.loads(line) for line in answer.stdout.decode().splitlines()]


# --- fill and score -----------------------------------------------------------------------------


def test_fill_arguments(folder: Path) -> None:
    answer = run("fill", "the [MASK] sat", "[MASK] .", "--top-k", "2", model=folder)
    assert answer.returncode == 0, answer.stderr
    assert not answer.stderr
    first, second = records(answer)
    assert first["text"] == "the [MASK] sat"
    assert len(first["masks"][0]["candidates"]) == 2  # type: ignore[index]
    assert second["error"] is None


def test_every_option_of_fill_arrives(folder: Path) -> None:
    text = "the [MASK] sat [MASK]"
    answer = run("fill", text, "--target", "cat", "mat", model=folder)
    (record,) = records(answer)
    words = [c["word"] for c in record["masks"][0]["candidates"]]  # type: ignore[index]
    assert words == ["cat", "mat"]
    (record,) = records(run("fill", text, "--joint", "--top-k", "3", model=folder))
    assert len(record["joint"]) == 3  # type: ignore[arg-type]
    (record,) = records(run("fill", text, "--max-pieces", "2", model=folder))
    assert record["error"] is None


@pytest.mark.parametrize("dash", [["-"], [], ["--input", "-"]])
def test_standard_input(dash: list[str], folder: Path) -> None:
    answer = run("fill", *dash, model=folder, stdin="the [MASK]\n[MASK] é\n".encode())
    assert answer.returncode == 0, answer.stderr
    assert [record["text"] for record in records(answer)] == ["the [MASK]", "[MASK] é"]


def test_standard_input_as_json_lines(folder: Path) -> None:
    answer = run("fill", "-", "--text", "s", model=folder, stdin=b'{"s": "a [MASK]"}\n')
    assert records(answer)[0]["text"] == "a [MASK]"


def test_a_bad_row_gets_its_error_and_the_rest_is_answered(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    lines = ['{"text": "the [MASK]"}', "{", '{"text": "none"}', '{"text": "\\ud800 [MASK]"}']
    path.write_text("\n".join([*lines, '{"text": "[MASK] sat"}']) + "\n")
    out = tmp_path / "out.jsonl"
    answer = run("fill", "--input", str(path), "--output", str(out), model=folder)
    assert answer.returncode == 2
    assert answer.stderr == b"enrobe: 3 of 5 texts had an error\n"
    assert not answer.stdout
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["error"] is None for record in found] == [True, False, False, False, True]
    assert "line 2: not JSON" in found[1]["error"]
    assert "no mask" in found[2]["error"]
    assert "surrogate" in found[3]["error"]


def test_score(folder: Path) -> None:
    answer = run("score", "the cat sat", "--method", "within_word", model=folder)
    (record,) = records(answer)
    assert record["tokens"] == 3
    assert record["log_likelihood"] < 0  # type: ignore[operator]
    answer = run("score", model=folder, stdin=b"the cat\n\n")
    assert answer.returncode == 2
    # NaN is no JSON.
    assert [record["log_likelihood"] is None for record in records(answer)] == [False, True]


def test_many_rows_come_in_order(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    texts = ["the " * (n * 7 % 40) + f"[MASK] w{n % 50}" for n in range(2500)]
    path.write_text("\n".join(texts) + "\n")
    answer = run("fill", "--input", str(path), "--top-k", "1", model=folder)
    assert answer.returncode == 0, answer.stderr
    assert [record["text"] for record in records(answer)] == texts


def test_a_reader_that_leaves_early_is_no_error(folder: Path) -> None:
    command = f"{sys.executable} -m enrobe fill --input - | head -n 1"
    answer = subprocess.run(
        command,
        shell=True,
        input=b"the [MASK]\n" * 5000,
        capture_output=True,
        env={**os.environ, "ENROBE_MODEL": str(folder)},
        timeout=120,
    )
    assert answer.stdout.count(b"\n") == 1
    assert b"Traceback" not in answer.stderr
    assert b"Exception" not in answer.stderr


# --- what a terminal shows ----------------------------------------------------------------------


def terminal(folder: Path, *arguments: str) -> str:
    """Run with a real pseudo-terminal as standard output."""
    ours, theirs = pty.openpty()
    variables = {**os.environ, "ENROBE_MODEL": str(folder), "TERM": "dumb", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-m", "enrobe", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=variables,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other side has closed
            break
        if not part:
            break
        shown += part
    process.wait(timeout=60)
    os.close(ours)
    return shown.decode()


def test_a_table_on_a_terminal(folder: Path) -> None:
    shown = terminal(folder, "fill", "the [MASK] \x1b[31m sat", "--top-k", "3", "--joint")
    assert "probability" in shown
    assert "joint" in shown
    assert "{" not in shown
    assert "\x1b[31m sat" not in shown
    assert "a token" in terminal(folder, "score", "the cat")
    assert "30 " not in terminal(folder, "info") and "family" in terminal(folder, "info")


def test_json_on_a_terminal_when_asked(folder: Path) -> None:
    assert '"masks"' in terminal(folder, "fill", "the [MASK]", "--json")


def test_no_text_at_all_on_a_terminal(folder: Path) -> None:
    assert "enrobe: no text; give it" in terminal(folder, "fill")


# --- info ---------------------------------------------------------------------------------------


def test_info(folder: Path) -> None:
    (facts,) = records(run("info", str(folder)))
    assert facts["family"] == "bert"
    assert (facts["layers"], facts["hidden"], facts["vocabulary"]) == (3, 56, 97)
    assert facts["longest_row"] == 512
    assert facts["heads"] == {"mlm": {"kind": "mlm", "labels": []}}
    parameters = facts["parameters"]
    assert isinstance(parameters, int)
    memory = facts["memory"]
    assert isinstance(memory, dict)
    assert memory["float32"] == 4 * parameters
    assert parameters < memory["int8"] < memory["float16"]
    assert facts["tokenizer"]["kind"] == "WordPiece"  # type: ignore[index]


# --- mistakes -----------------------------------------------------------------------------------

MISTAKES = [
    ["fill", "no mask here"],
    ["fill", "the <mask>"],
    ["fill", "[MASK]", "none"],
    ["fill", "[MASK]", "--top-k", "0"],
    ["fill", "[MASK]", "--top-k", "many"],
    ["fill", "[MASK]", "--top-k", "1000000"],
    ["fill", "[MASK]", "--top-k"],
    ["fill", "[MASK]", "--max-pieces", "-3"],
    ["fill", "[MASK]", "--target", "☃"],
    ["fill", "[MASK]", "--target"],
    ["fill", "[MASK]", "--target", "cat", "--joint"],
    ["fill", "[MASK]", "--model", "someone/unknown"],
    ["fill", "[MASK]", "--model", "unknown"],
    ["fill", "[MASK]", "--model", "./unknown"],
    ["fill", "[MASK]", "--model", ""],
    ["fill", "[MASK]", "--model", __file__],
    ["fill", "[MASK]", "--unknown", "x"],
    ["fill", "[MASK]", "--input", "x.txt"],
    ["fill", "--input", "missing.txt"],
    ["fill", "--input", __file__],
    ["fill", "--input", "missing.txt", "--output", "/nowhere/out.jsonl"],
    ["fill", "[MASK]", "--output", "/nowhere/out.jsonl"],
    ["score", ""],
    ["score", "x", "--method", "none"],
    ["info", "./unknown"],
    ["info", "a", "b"],
    ["convert", "./unknown", "--output", "/tmp"],
    ["convert", "./unknown"],
    ["convert"],
    ["unknown"],
    ["fil", "x"],
    ["--unknown"],
]


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str], folder: Path) -> None:
    answer = run(*arguments, model=folder)
    assert answer.returncode == 2, answer
    assert not answer.stdout
    assert answer.stderr.count(b"\n") == 1
    assert answer.stderr.startswith(b"enrobe: ")


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for arguments in (["info", str(tmp_path)], ["fill", "[MASK]", "--model", str(tmp_path)]):
        answer = run(*arguments)
        assert answer.returncode == 2
        assert answer.stderr.count(b"\n") == 1


def test_no_model_named() -> None:
    # There is no built-in model, or one that writes <mask>.
    answer = run("fill", "[MASK]")
    assert (answer.returncode, answer.stderr.count(b"\n")) == (2, 1)
    assert b"ENROBE_MODEL" in answer.stderr or b"<mask>" in answer.stderr


def test_the_input_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "[MASK]"}\n')
    answer = run("fill", "--input", str(path), "--output", str(path), model=folder)
    assert answer.returncode == 2
    assert path.read_text() == '{"text": "[MASK]"}\n'


def test_help_and_version() -> None:
    for arguments in ([], ["--help"], ["fill", "--help"], ["--version"]):
        answer = run(*arguments)
        assert answer.returncode == 0
        assert answer.stdout
        assert not answer.stderr
