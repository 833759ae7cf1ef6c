"""`enrobe finetune` and `enrobe evaluate` of a head, from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest

from enrobe.cli import main
from tests.train.finetune_toys import labelled, model_folder, slots_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("base") / "model")


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def answer(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_one_task_by_options_and_its_evaluation(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = labelled(tmp_path, "classify"), tmp_path / "run"
    options = ["--train", path, "--dev", path, "--model", folder, "--output", output]
    assert call("finetune", *options, "--set", "epochs=1", "train.batch_rows=8") == 0
    made, err = answer(capsys)
    assert f"{path}: read as kind classify, text 'text', label 'label'" in err
    assert made["finished"] and made["step"] == 4
    assert call("evaluate", made["model"], path) == 0
    found, _ = answer(capsys)
    assert (found["head"], found["kind"], found["rows"]) == ("classify", "classify", 32)
    for name, value in made["scores"]["classify"].items():
        interval = found["scores"][name]
        assert interval["value"] == pytest.approx(value, abs=1e-5)
        assert interval["low"] <= interval["value"] <= interval["high"]
    # There is a result already.
    assert call("finetune", *options) == 2
    assert "exists and is not empty" in capsys.readouterr().err


def test_a_recipe_and_one_head_of_several(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slots_file(tmp_path).rename(tmp_path / "rows.jsonl")
    recipe = tmp_path / "recipe.toml"
    files = 'train = "rows.jsonl"\ndev = ["rows.jsonl"]\ntext = "tokens"\n'
    recipe.write_text(
        f'model = "{folder}"\noutput = "run"\n[train]\nepochs = 1\n'
        f'[tasks.intent]\nkind = "classify"\n{files}label = "label"\n'
        f'[tasks.slots]\nkind = "tag"\n{files}label = "slots"\n'
    )
    assert call("finetune", recipe) == 0
    made, _ = answer(capsys)
    assert set(made["scores"]) == {"intent", "slots"}
    rows = tmp_path / "rows.jsonl"
    assert call("evaluate", made["model"], rows) == 2
    assert "name one: 'intent', 'slots'" in capsys.readouterr().err
    # What was not guessed of the head is of the file.
    rows.write_text(rows.read_text() + "not json\n")
    head = ["--head", "slots", "--label", "slots"]
    assert call("evaluate", made["model"], rows, *head) == 2
    found, err = answer(capsys)
    assert found["skipped"] == 1 and "1 rows were left out" in err
    assert found["scores"]["f1"]["value"] == pytest.approx(made["scores"]["slots"]["f1"], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to learn from; fix: a recipe, or --train FILE --output DIR"),
        (["--train", "a.csv"], "no output is named; fix: --output DIR"),
        (["a.toml", "--model", "x"], "--model beside a recipe; fix: --set KEY=VALUE"),
        (["missing.toml"], "missing.toml"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("finetune", *arguments) == 2
    assert words in capsys.readouterr().err
