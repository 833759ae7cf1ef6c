"""What a fine-tuning run leaves: the tuned model, its card, its report."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import enrobe
from enrobe import checkpoint
from enrobe.evaluate.task_report import escaped
from enrobe.train import finetune
from tests.train.finetune_toys import (
    KINDS,
    labelled,
    model_folder,
    recipe,
    slots_file,
    task,
    two_tasks,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("base") / "model")


def front_matter(card: str) -> Any:
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_report(kind: str, folder: Path, tmp_path: Path) -> None:
    train, dev = labelled(tmp_path, kind), labelled(tmp_path, kind, rows=20, seed=2)
    job = recipe(
        folder, tmp_path / "run", {"my task": task(kind, train, dev=str(dev))}, epochs=4, lr=2e-3
    )
    result = finetune.run(job, resume=False)
    report = tmp_path / "run/report"
    metrics = json.loads((report / "metrics.json").read_text())
    own = metrics["tasks"]["my task"]
    assert {name: score["value"] for name, score in own["scores"].items()} == pytest.approx(
        result.scores["my task"]
    )
    assert metrics["mean"] == pytest.approx(result.score) and own["rows"] == 20
    assert metrics["cost"]["tokens"] == result.tokens > 0
    for score in own["scores"].values():
        assert score["low"] <= score["value"] <= score["high"]
    pictures = {path.name for path in report.glob("*.png")}
    expected = {"curves.png", *({"numbers-my_task.png"} if kind == "regress" else ())}
    expected |= {"confusion-my_task.png"} if kind in ("classify", "tag") else set()
    expected |= {"calibration-my_task.png"} if kind != "regress" else set()
    assert pictures == expected
    text = (report / "report.md").read_text()
    assert pictures == set(re.findall(r"\]\((.+\.png)\)", text))
    assert "## my task" in text and "## Data" in text and "## What it took" in text
    # What is stored is what was reported, and what predicts.
    head = checkpoint.read(result.model).heads["my task"]
    assert head.temperature == own["fitted"]["temperature"]
    assert list(head.thresholds) == own["fitted"]["thresholds"]
    assert (head.temperature != 1) == (kind != "regress")
    change = own["fitted"]["likelihood"]
    assert kind == "regress" or change["after"] <= change["before"]
    card = (result.model / "README.md").read_text()
    matter = front_matter(card)
    assert matter["library_name"] == "transformers" and "base_model" not in matter
    assert "license" not in matter and "language" not in matter
    assert "pipeline_tag" in matter and kind in matter["tags"]
    (entry,) = matter["model-index"][0]["results"]
    assert entry["dataset"]["name"] == dev.name
    assert entry["metrics"][0]["value"] == pytest.approx(result.score, abs=1e-4)
    assert str(tmp_path) not in card


def test_the_card_runs(folder: Path, tmp_path: Path) -> None:
    job = recipe(folder, tmp_path / "run", two_tasks(slots_file(tmp_path)), epochs=1)
    result = finetune.run(job, resume=False)
    card = (result.model / "README.md").read_text()
    assert front_matter(card)["library_name"] == "enrobe"
    code = card.split("```python\n")[1].split("```")[0].replace("FOLDER", str(result.model))
    calls = code.replace("text", repr("cat on the mat"))
    assert "head='intent'" in calls and "head='slots'" in calls
    exec(calls, {})
    assert set(json.loads((tmp_path / "run/report/metrics.json").read_text())["tasks"]) == {
        "intent",
        "slots",
    }


def test_probabilities_are_calibrated_and_labels_are_not_moved(
    folder: Path, tmp_path: Path
) -> None:
    path = labelled(tmp_path, "classify")
    job = recipe(folder, tmp_path / "run", {"mine": task("classify", path)}, epochs=3)
    result = finetune.run(job, resume=False)
    tuned = enrobe.load(result.model)
    plain = enrobe.load(tmp_path / f"run/checkpoints/step-{result.best_step:09d}/model")
    temperature = tuned.engine.heads["mine"].temperature
    assert temperature != 1 and plain.engine.heads["mine"].temperature == 1
    for one, other in zip(
        tuned.predict(["cat on", "the hat"]), plain.predict(["cat on", "the hat"]), strict=True
    ):
        assert one.label == other.label and one.probability != other.probability


def test_a_run_that_goes_on_has_a_report_of_its_end(folder: Path, tmp_path: Path) -> None:
    tasks = {"mine": task("classify", labelled(tmp_path, "classify"))}
    job = recipe(folder, tmp_path / "run", tasks, epochs=1)
    finetune.run(job, resume=False)
    first = (tmp_path / "run/report/metrics.json").read_text()
    again = finetune.run(job, resume=True)
    second = (tmp_path / "run/report/metrics.json").read_text()
    assert again.finished and json.loads(first)["tasks"] == json.loads(second)["tasks"]


def test_without_matplotlib_there_is_a_report_without_pictures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    tasks = {"mine": task("classify", labelled(tmp_path, "classify"))}
    finetune.run(recipe(folder, tmp_path / "run", tasks, epochs=1), resume=False)
    names = {path.name for path in (tmp_path / "run/report").iterdir()}
    assert names == {"metrics.json", "report.md"}
    assert "the report has no pictures" in capsys.readouterr().err


def test_a_text_is_no_markup() -> None:
    assert escaped("a|b\n*c* <i>") == r"a\|b \*c\* &lt;i&gt;"
    assert len(escaped("x" * 1000)) == 240
