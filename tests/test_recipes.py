"""Every recipe in recipes/ is run, shortened, on this project's own text or on toy labels."""

import json
import tomllib
from pathlib import Path

import pytest

import enrobe
from enrobe import hub
from enrobe.train.finetune_recipe import FinetuneRecipe
from enrobe.train.recipe import PretrainRecipe, read_recipe

ROOT = Path(__file__).parents[1]
ALL = sorted((ROOT / "recipes").glob("*.toml"))
FINETUNE = [path for path in ALL if "tasks" in tomllib.loads(path.read_text("utf-8"))]
RECIPES = [path for path in ALL if path not in FINETUNE]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A megabyte and more: enough for a vocabulary of 8,192."""
    files = [*ROOT.glob("src/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("*.md")]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(file.read_text("utf-8") for file in sorted(files)), "utf-8")
    return path


def shortened(recipe: Path, text: Path, folder: Path) -> list[str]:
    """Changes that keep a recipe's every table and make its run short."""
    asked = read_recipe(recipe, PretrainRecipe)
    changes = [f'output = "{folder / recipe.stem}"', f'corpus.folder = "{folder / "corpus"}"']
    for table, names in (("sources", asked.corpus.sources), ("heldout", asked.corpus.heldout)):
        changes += [f'corpus.{table}.{name}.files = ["{text}"]' for name in names]
    changes += [f"corpus.heldout.{name}.rows = 4" for name in asked.corpus.heldout]
    if asked.corpus.vocabulary:
        changes.append("corpus.vocabulary = 8192")
    return [*changes, "corpus.workers = 1", "train.steps = 2", "train.batch_rows = 4"]


def test_the_parts_of_enrobe_tiny_follow_each_other(text: Path, tmp_path: Path) -> None:
    parts = [path for path in RECIPES if path.stem.startswith("enrobe-tiny-")]
    assert len(parts) == 2
    before: Path | None = None
    for path in parts:
        changes = shortened(path, text, tmp_path)
        if before is not None:
            changes.append(f'model = "{before}"')
        result = enrobe.pretrain(path, changes=changes)
        assert result.finished
        before = result.model
    (fill,) = enrobe.load(before).fill("def <mask>(")
    assert len(fill.masks[0].candidates) == 5


OTHERS = [path for path in RECIPES if not path.stem.startswith("enrobe-tiny-")]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_a_recipe_runs(path: Path, text: Path, tmp_path: Path) -> None:
    model = read_recipe(path, PretrainRecipe).model
    if isinstance(model, str) and model not in hub.built_in():
        pytest.skip(f"{model} is not built in")
    result = enrobe.pretrain(path, changes=shortened(path, text, tmp_path))
    assert result.finished and result.model.is_dir()
    assert set(result.before) == set(result.after) != set()


def toy_row(name: str, kind: str, number: int) -> object:
    """What a label column may hold of a text of three words."""
    tags = ["O", f"B-{name}", f"I-{name}"] if number % 2 else ["O", "O", "O"]
    labels = {"classify": "ab"[number % 2], "multilabel": ["a", "b"][: number % 3], "tag": tags}
    return {**labels, "regress": float(number)}[kind]


@pytest.mark.parametrize("path", FINETUNE, ids=lambda path: path.stem)
def test_a_recipe_for_labels_runs(path: Path, tmp_path: Path) -> None:
    asked = read_recipe(path, FinetuneRecipe)
    rows = [
        {
            **{task.text[0]: ["this", "is", f"number{n}"] for task in asked.tasks.values()},
            **{t.label[0]: toy_row(name, t.kind, n) for name, t in asked.tasks.items()},
        }
        for n in range(12)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = [
        f'tasks.{name}.{part} = "{file}"' for name in asked.tasks for part in ("train", "dev")
    ]
    result = enrobe.finetune(path, changes=[*changes, f'output = "{tmp_path / "run"}"', "epochs=1"])
    assert result.finished and set(result.scores) == set(asked.tasks)
    assert set(enrobe.load(result.model).engine.heads) == set(asked.tasks)
