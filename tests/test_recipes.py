"""Every recipe in recipes/ is run, shortened, on this project's own text or on toy labels."""

import json
import tomllib
from pathlib import Path

import pytest

import enrobe
from enrobe import hub
from enrobe.data.examples import TaskConfig
from enrobe.train.align_recipe import AlignRecipe
from enrobe.train.distil_recipe import DistilCorpus, DistilHeads, DistilTexts, kind_of
from enrobe.train.finetune_recipe import FinetuneRecipe, FinetuneTable
from enrobe.train.recipe import PretrainRecipe, read_recipe
from tests.tasks.toys import word_folder

ROOT = Path(__file__).parents[1]
ALL = sorted((ROOT / "recipes").glob("*.toml"))
DISTIL = [path for path in ALL if "teacher" in tomllib.loads(path.read_text("utf-8"))]
OF_LABELS = [path for path in ALL if "tasks" in tomllib.loads(path.read_text("utf-8"))]
FINETUNE = [path for path in OF_LABELS if path not in DISTIL]
ALIGN = [path for path in ALL if "pairs" in tomllib.loads(path.read_text("utf-8"))]
RECIPES = [path for path in ALL if path not in (*FINETUNE, *DISTIL, *ALIGN)]


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


@pytest.mark.slow
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


# A vocabulary of 250,000 takes a minute.
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.slow] if path.stem == "multilingual" else [])
        for path in OTHERS
    ],
    ids=lambda path: path.stem,
)
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


def toy_labels(tasks: dict[str, TaskConfig], folder: Path) -> list[str]:
    """Changes that have tasks read a file of toy rows."""
    rows = [
        {
            **{task.text[0]: ["this", "is", f"number{n}"] for task in tasks.values()},
            **{t.label[0]: toy_row(name, t.kind, n) for name, t in tasks.items()},
        }
        for n in range(12)
    ]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f'tasks.{name}.{part} = "{file}"' for name in tasks for part in ("train", "dev")]


@pytest.mark.parametrize("path", FINETUNE, ids=lambda path: path.stem)
def test_a_recipe_for_labels_runs(path: Path, tmp_path: Path) -> None:
    asked = read_recipe(path, FinetuneRecipe)
    changes = toy_labels(asked.tasks, tmp_path)
    changes += [f'output = "{tmp_path / "run"}"', "epochs=1"]
    changes += ["seeds = [1, 2]"] if asked.seeds else []
    result = enrobe.finetune(path, changes=changes)
    assert result.finished and set(result.scores) == set(asked.tasks)
    assert set(enrobe.load(result.model).engine.heads) == set(asked.tasks)


@pytest.mark.parametrize("path", DISTIL, ids=lambda path: path.stem)
def test_a_recipe_for_distilling_runs(path: Path, text: Path, tmp_path: Path) -> None:
    """With the built-in model for a teacher, or fine-tuned on toy rows."""
    asked = read_recipe(path, kind_of)
    changes = [f'output = "{tmp_path / "run"}"']
    if isinstance(asked, DistilHeads):
        changes += toy_labels(asked.tasks, tmp_path)
        tasks = read_recipe(path, kind_of, changes).finetuning().tasks  # type: ignore[attr-defined]
        table = FinetuneTable(epochs=1)
        teacher = enrobe.finetune(
            FinetuneRecipe(
                output=tmp_path / "teacher", tasks=tasks, model="enrobe-tiny", train=table
            )
        )
        changes += [f'teacher = "{teacher.model}"', "epochs = 1"]
    else:
        changes += ["train.steps = 2", "train.batch_rows = 4", 'teacher = "enrobe-tiny"']
    if isinstance(asked, DistilCorpus):
        changes += [f'corpus.{part}.enwiki.files = ["{text}"]' for part in ("sources", "heldout")]
        changes += ["corpus.heldout.enwiki.rows = 4", "train.warmup = 0"]
    if isinstance(asked, DistilTexts):
        some = tmp_path / "some.txt"
        some.write_text("".join(f"this is number {n}\n" for n in range(8)))
        changes += [f'texts.{part} = ["{some}"]' for part in ("files", "heldout")]
        changes += ["train.warmup = 0"]
    result = enrobe.distill(path, changes=changes)
    assert result.finished and result.student is not None and result.teacher is not None
    assert result.student.parameters < result.teacher.parameters
    assert set(result.student.scores) == set(result.teacher.scores) != set()


@pytest.mark.parametrize("path", ALIGN, ids=lambda path: path.stem)
def test_a_recipe_for_pairs_runs(path: Path, tmp_path: Path) -> None:
    table = tomllib.loads(path.read_text("utf-8"))["pairs"]
    for seed, name in enumerate(("model", "target")):
        (tmp_path / name).mkdir()
        word_folder(tmp_path / name, "bert", seed=seed)
    columns = [*table["text"], *([table["language"]] if "language" in table else [])]
    rows = [{name: f"w{n} w{n + 1}" for name in columns} for n in range(5, 40)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = [f'{name} = "{tmp_path / name}"' for name in ("model", "target")]
    changes += [f'output = "{tmp_path / "run"}"', f'pairs.files = ["{file}"]']
    assert read_recipe(path, AlignRecipe, changes).pairs.heldout == table["heldout"]
    assert enrobe.align(path, changes=changes).mean.pairs > 0
