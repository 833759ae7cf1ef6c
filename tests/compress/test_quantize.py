"""`quantize`: a folder that loads, a report that says what it cost, or a refusal and no folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import enrobe
from enrobe import cli
from enrobe.compress import quantize as module
from enrobe.compress import sensitivity
from enrobe.compress.timing import time_folder
from enrobe.errors import CallError, ModelError, RefusedError
from tests.tasks.heads import WORDS, bert_folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timings of a hundredth of a second: no test looks at them."""
    monkeypatch.setattr(
        module, "time_folder", lambda *a, **b: time_folder(*a, **{**b, "seconds": 0.01})
    )


def labelled(folder: Path, data: Path, count: int = 150) -> Path:
    """Texts with the labels that a model gives them, so that its accuracy is 1."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS[5:], rng.integers(3, 20))) for _ in range(count)]
    found = enrobe.load(folder).predict(texts)
    rows = [{"text": t, "label": p.label} for t, p in zip(texts, found, strict=True)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def test_a_folder_and_what_it_cost(tmp_path: Path, quick: None) -> None:
    bert_folder(tmp_path / "model", "classify")
    data = labelled(tmp_path / "model", tmp_path / "data.jsonl")
    report = enrobe.quantize(tmp_path / "model", tmp_path / "int8", evaluate=data, max_drop=0.2)
    made = enrobe.load(tmp_path / "int8")
    assert made.engine.precision == "int8"
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    right = [
        p.label == r["label"]
        for r, p in zip(rows, made.predict([r["text"] for r in rows]), strict=True)
    ]
    assert report.before["classify: accuracy"].value == 1
    assert report.after["classify: accuracy"].value == pytest.approx(np.mean(right))
    assert report.drop["classify: accuracy"] == pytest.approx(1 - np.mean(right))
    assert report.file_bytes[1] < 0.6 * report.file_bytes[0]
    assert len(report.layers_db) == 4 and min(report.layers_db) > 10
    text = (tmp_path / "int8/report.md").read_text()
    assert "classify: accuracy" in text and "one text of 128 tokens" in text
    assert (tmp_path / "int8/report.png").stat().st_size > 10_000
    stored = json.loads((tmp_path / "int8/report.json").read_text())
    assert stored == json.loads(json.dumps(report.to_dict()))
    assert stored["speed"]["int8"]["memory"] > 10e6
    with pytest.raises(CallError, match="exists and is not empty"):
        enrobe.quantize(tmp_path / "model", tmp_path / "int8")


@pytest.mark.parametrize("precision", ["float16", "int8-weights"])
def test_smaller_on_disk_alone(precision: Any, tmp_path: Path, quick: None) -> None:
    bert_folder(tmp_path / "model", "tag")
    report = enrobe.quantize(tmp_path / "model", tmp_path / "small", precision=precision)
    assert "no data was given" in report.said[0] and not report.before
    assert report.file_bytes[1] < 0.6 * report.file_bytes[0]
    made = enrobe.load(tmp_path / "small")
    assert made.engine.precision == "float32"
    words = [["the", "cat", "sat", "on", "w3"]]
    assert len(made.tag(words=words)) == 1


def test_refused_over_the_limit(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    # Nothing may stay float32, and no row may change its label.
    monkeypatch.setattr(sensitivity, "MOST_FLOAT", 0.0)
    bert_folder(tmp_path / "model", "classify", seed=8)
    data = labelled(tmp_path / "model", tmp_path / "data.jsonl", 600)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RefusedError, match=r"the costliest: \S+ \(\d+ dB\)"):
        enrobe.quantize(tmp_path / "model", tmp_path / "int8", evaluate=data, max_drop=0)
    given = ["--output", str(tmp_path / "int8"), "--evaluate", str(data), "--max-drop", "0"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["quantize", str(tmp_path / "model"), *given])
    assert ended.value.code == 3
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and "nothing was written" in said
    assert sorted(tmp_path.iterdir()) == before


def test_wrong_calls(tmp_path: Path) -> None:
    bert_folder(tmp_path / "model", "mlm")
    with pytest.raises(CallError, match="precision is 'int4'"):
        enrobe.quantize(tmp_path / "model", tmp_path / "x", precision="int4")  # type: ignore[arg-type]
    with pytest.raises(CallError, match="max_drop is 3"):
        enrobe.quantize(tmp_path / "model", tmp_path / "x", max_drop=3)
    (tmp_path / "data.jsonl").write_text('{"a": "the cat", "b": "the mat", "score": 1}\n')
    with pytest.raises(CallError, match="--task sts"):
        enrobe.quantize(tmp_path / "model", tmp_path / "x", evaluate=tmp_path / "data.jsonl")
    with pytest.raises(ModelError, match=r"could not be timed: .*no such folder"):
        time_folder(tmp_path / "nowhere", seconds=0.01)
    assert not (tmp_path / "x").exists()
