"""The log: JSON lines that survive kills, TensorBoard where it is installed, progress."""

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from enrobe.train.log import Log
from tests.train.toys import log_lines

NUMBERS = {"loss": 2.3456789, "lr": 1e-4, "tokens_per_second": 12345.678, "utilisation": 0.5}


def write(folder: Path, start: int, stop: int, *, steps: int = 100) -> None:
    log = Log(folder, steps=steps, start=start)
    if not start:
        log.evaluation(0, {"wiki": {"loss": 9.0, "perplexity": 8103.083927}})
    for step in range(start + 1, stop + 1):
        log.step(step, {**NUMBERS, "loss": float(step)})
    log.close()


def test_lines_are_json_with_what_was_given(tmp_path: Path) -> None:
    write(tmp_path, 0, 2)
    first, second, _ = log_lines(tmp_path)
    assert first == {"step": 0, "evaluation": {"wiki": {"loss": 9.0, "perplexity": 8103.08}}}
    assert second == {"step": 1, **NUMBERS, "loss": 1.0, "tokens_per_second": 12345.7}


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    log = Log(tmp_path, steps=3, start=0)
    log.step(1, NUMBERS)
    assert [line["step"] for line in log_lines(tmp_path)] == [1]
    log.close()


@pytest.mark.parametrize(
    "rest", ["", '{"step": 7, "lo', "\0\0\0\0", '{"step": 3}', "{}\n", '{"step": null}\n', "x}\n"]
)
def test_a_resumed_run_has_each_step_once_and_in_order(rest: str, tmp_path: Path) -> None:
    write(tmp_path, 0, 6)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(rest)
    # Killed after step 6, with a checkpoint of step 4.
    write(tmp_path, 4, 8)
    assert [line["step"] for line in log_lines(tmp_path)] == list(range(9))
    # Killed again, before the first checkpoint of a new try.
    write(tmp_path, 0, 2)
    assert [line["step"] for line in log_lines(tmp_path)] == [0, 1, 2]
    assert not (tmp_path / ".log.jsonl").exists()


def test_bytes_that_are_no_text_go_too(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe}\n')
    write(tmp_path, 1, 2)
    assert [line["step"] for line in log_lines(tmp_path)] == [1, 2]


def test_without_a_folder_nothing_is_said(tmp_path: Path, capsys: Any) -> None:
    log = Log(None, steps=3, start=0)
    log.step(1, NUMBERS)
    log.evaluation(1, {"wiki": {"loss": 1.0}})
    log.say("hello")
    log.close()
    assert capsys.readouterr() == ("", "")


def test_lines_go_to_standard_error_where_there_is_no_terminal(tmp_path: Path, capsys: Any) -> None:
    write(tmp_path, 0, 2)
    out, error = capsys.readouterr()
    assert out == ""
    assert [json.loads(line) for line in error.splitlines()] == log_lines(tmp_path)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_line_that_a_person_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    write(tmp_path, 50, 100)
    lines = screen.getvalue().split("\r\033[K")
    assert re.fullmatch(
        r"step 75 of 100 \(75%\)  loss 75\.000  12,346 tokens/s  0:00:00 left", lines[25]
    )
    # The last one stays, and the prompt comes below it.
    assert screen.getvalue().endswith("left\n") and screen.getvalue().count("\n") == 1
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    write(tmp_path, 0, 1)
    assert "step 0  wiki: loss 9.0, perplexity 8103.08\n" in screen.getvalue()


def plotted(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def test_tensorboard_has_the_same_numbers(tmp_path: Path) -> None:
    write(tmp_path, 0, 3)
    found = plotted(tmp_path)
    assert found["train/loss"] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert [step for step, _ in found["train/tokens_per_second"]] == [1, 2, 3]
    assert found["train/lr"][0][1] == pytest.approx(1e-4)
    assert found["wiki/loss"] == [(0, 9.0)]
    assert found.keys() == {f"train/{name}" for name in NUMBERS} | {"wiki/loss", "wiki/perplexity"}


def test_tensorboard_forgets_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    write(tmp_path, 0, 6)
    write(tmp_path, 4, 8)
    assert [step for step, _ in plotted(tmp_path)["train/loss"]] == list(range(1, 9))
    write(tmp_path, 0, 2)
    assert [step for step, _ in plotted(tmp_path)["train/loss"]] == [1, 2]
    assert [step for step, _ in plotted(tmp_path)["wiki/loss"]] == [0]


def test_without_tensorboard_the_log_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    write(tmp_path, 0, 2)
    assert [line["step"] for line in log_lines(tmp_path)] == [0, 1, 2]
    assert not (tmp_path / "tensorboard").exists()
