"""`optimize`: everything tried is told, the winner is a folder that loads."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import enrobe
from enrobe import cli
from enrobe.compress import optimize as module
from enrobe.compress import quantize as quantizing
from enrobe.compress.optimize import front
from enrobe.compress.optimize_report import Choice
from enrobe.compress.timing import Speed, time_folder
from enrobe.errors import CallError
from tests.compress.test_quantize import labelled
from tests.tasks.heads import bert_folder


def choice(latency: float, lost: float) -> Choice:
    speed = Speed(
        p50={16: 1.0, 128: latency},
        p99={16: 1.0, 128: latency},
        runs={16: 20, 128: 20},
        tokens_per_second=1.0,
        load_seconds=1.0,
        memory=1,
        peak_memory=1,
    )
    return Choice(engine="onnx", precision="int8", threads=1, lost=lost, speed=speed)


def test_the_front_is_what_no_other_beats() -> None:
    quick, middle, exact = choice(1, 0.02), choice(2, 0.01), choice(5, 0.0)
    beaten = [choice(3, 0.01), choice(6, 0.0), choice(2, 0.015)]
    assert front([*beaten, exact, quick, middle]) == [quick, middle, exact]
    short = replace(quick, speed=replace(quick.speed, p50={16: 4.0}))
    assert short.latency == 4.0


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (module, quantizing):
        monkeypatch.setattr(
            place, "time_folder", lambda *a, **b: time_folder(*a, **{**b, "seconds": 0.01})
        )
    # One engine is enough here; the others have tests of their own.
    monkeypatch.setattr(module, "find_spec", lambda name: None)


def test_the_winner_is_a_folder(tmp_path: Path, quick: None, capsys: Any) -> None:
    bert_folder(tmp_path / "model", "classify")
    data = labelled(tmp_path / "model", tmp_path / "data.jsonl", 40)
    given = ["--evaluate", str(data), "--output", str(tmp_path / "best"), "--threads", "1"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["optimize", str(tmp_path / "model"), *given, "--max-drop", "0.5"])
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    ways = {(c["engine"], c["precision"], c["threads"]) for c in said["choices"]}
    assert ways == {("onnx", "float32", 1), ("onnx", "int8", 1)}
    assert [line.split(" is not")[0] for line in said["said"]] == ["openvino", "torch", "native"]
    best = enrobe.load(tmp_path / "best")
    assert best.engine.precision == said["winner"]["precision"]
    assert len(best.predict(["the cat sat"])) == 1
    text = (tmp_path / "best/optimize.md").read_text()
    assert "| best | onnx |" in text and (tmp_path / "best/optimize.png").is_file()
    with pytest.raises(CallError, match="threads are"):
        module.optimize(
            tmp_path / "model", tmp_path / "x", data=module.Data(file=data), threads=(10_000,)
        )
