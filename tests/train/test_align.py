"""Alignment: the split, the rotation in a folder, and what is measured."""

import json
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import enrobe
from enrobe import checkpoint
from enrobe.errors import CallError
from enrobe.evaluate.alignment import score_alignment
from enrobe.evaluate.similarity import search_pairs
from enrobe.sentence_folder import SentenceSettings
from enrobe.tasks.pooling import normalize
from enrobe.train import align_training
from enrobe.train.align import AlignResult
from enrobe.train.align_pairs import Pairs, read_pairs, split
from enrobe.train.align_recipe import AlignRecipe, PairsTable
from enrobe.train.distil_vectors import VectorDistilling
from enrobe.train.loop import TrainConfig
from tests.tasks.toys import word_folder
from tests.test_cli import records, run, terminal
from tests.train.toys import same, weights


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences, and for a translation the same words in another order."""
    print("seed 3")
    chance = random.Random(3)
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = []
    for _ in range(300):
        words = chance.choices([f"w{n}" for n in range(5, 60)], k=6)
        for language in ("de", "fr"):
            other = chance.sample(words, len(words))
            rows.append({"eng": " ".join(words), "source": " ".join(other), "lang": language})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    found = []
    for seed, family in ((4, "bert"), (9, "roberta")):
        folder = tmp_path_factory.mktemp(family)
        word_folder(folder, family, seed=seed)
        found.append(folder)
    return found[0], found[1]


def recipe_of(models: tuple[Path, Path], pairs_file: Path, output: Path) -> AlignRecipe:
    table = PairsTable(files=(pairs_file,), text=("eng", "source"), language="lang", heldout=0.5)
    return AlignRecipe(
        output=output, model=str(models[0]), target=str(models[1]), pairs=table, prompt="w7 "
    )


@pytest.fixture(scope="module")
def result(
    models: tuple[Path, Path], pairs_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> AlignResult:
    return enrobe.align(recipe_of(models, pairs_file, tmp_path_factory.mktemp("out") / "run"))


def test_the_rotation_raises_retrieval(result: AlignResult) -> None:
    assert set(result.languages) == {"de", "fr"} and result.method == "rotation"
    assert result.mean.before is not None
    assert result.mean.after.accuracy > 3 * result.mean.before.accuracy
    assert result.heldout == sum(one.pairs for one in result.languages.values())
    assert result.pairs + result.heldout == 600


def test_the_folder_gives_the_rotated_vectors(
    result: AlignResult, models: tuple[Path, Path], pairs_file: Path
) -> None:
    _, heldout = split(read_pairs(recipe_of(models, pairs_file, Path()).pairs), 0.5, 1)
    model, target = enrobe.load(result.model), enrobe.load(models[1])
    rows = [n for n, name in enumerate(heldout.languages) if name == "fr"]
    english = model.embed([heldout.texts[n][0] for n in rows])
    others = target.embed([heldout.texts[n][1] for n in rows])
    np.testing.assert_allclose(np.linalg.norm(english, axis=1), 1, atol=1e-5)
    found = (normalize(others) @ english.T).argmax(1) == np.arange(len(rows))
    assert found.mean() == pytest.approx(result.languages["fr"].after.accuracy_backward)
    # The prompt is the folder's own now.
    plain = enrobe.load(models[0]).embed(["w9 w10"], prompt="w7 ", normalize=True)
    step = model.sentence.steps[-2]
    assert not isinstance(step, str) and step.bias is not None
    moved = normalize(plain @ step.weight.T + step.bias)
    np.testing.assert_allclose(model.embed(["w9 w10"]), moved, atol=1e-5)


def test_sentence_transformers_files_say_the_same(result: AlignResult) -> None:
    modules = json.loads((result.model / "modules.json").read_text())
    kinds = [entry["type"].rsplit(".", 1)[1] for entry in modules]
    assert kinds == ["Transformer", "Pooling", "Normalize", "Dense", "Normalize"]
    report = json.loads((result.model.parent / "align.json").read_text())
    assert report == result.to_dict()
    assert (result.model.parent / "align.md").read_text().count("\n") == 5


def test_no_text_is_learned_from_and_measured_on() -> None:
    print("seed 8")
    chance = random.Random(8)
    texts = [(f"e{chance.randrange(300)}", f"x{chance.randrange(900)}") for _ in range(1000)]
    learned, heldout = split(Pairs(texts, ["all"] * 1000), 0.5, 1)
    for side in (0, 1):
        assert not {a[side] for a in learned.texts} & {b[side] for b in heldout.texts}
    # Which ones does not depend on their order, and does on the seed.
    again = split(Pairs(texts[::-1], ["all"] * 1000), 0.5, 1)[1]
    assert sorted(again.texts) == sorted(heldout.texts)
    assert sorted(split(Pairs(texts, ["all"] * 1000), 0.5, 2)[1].texts) != sorted(heldout.texts)
    share = len({a for a, _ in heldout.texts}) / len({a for a, _ in texts})
    assert share == pytest.approx(0.5, abs=0.1)


def test_csls_is_the_papers() -> None:
    print("seed 6")
    generator = np.random.default_rng(6)
    x, noise = generator.standard_normal((2, 40, 5)).astype(np.float32)
    y = x + noise
    y[:, 0] += np.linspace(0, 3, 40)
    a, b = normalize(x), normalize(y)
    cosine = a @ b.T
    near_a = np.sort(cosine, axis=1)[:, -10:].mean(1)
    near_b = np.sort(cosine, axis=0)[-10:].mean(0)
    scores = 2 * cosine - near_a[:, None] - near_b[None, :]
    vectors, places = np.concatenate([x, y]), np.stack([np.arange(40), np.arange(40, 80)], 1)
    expected = scores.argmax(1) == np.arange(40)
    found = search_pairs(vectors, places, "cosine", neighbours=10)
    assert found.first.astype(bool).tolist() == expected.tolist()
    plain = search_pairs(vectors, places, "cosine")
    assert plain.first.astype(bool).tolist() == (cosine.argmax(1) == np.arange(40)).tolist()
    assert found.first.tolist() != plain.first.tolist()


def test_a_space_of_another_width_has_no_before() -> None:
    vectors = np.eye(4, dtype=np.float32)
    one = score_alignment(
        [(str(n), str(n)) for n in range(4)], ["all"] * 4, vectors[:, :3], vectors, vectors
    )["all"]
    assert one.before is None and one.after.accuracy == 1


def test_what_is_wrong(models: tuple[Path, Path], pairs_file: Path, tmp_path: Path) -> None:
    recipe = recipe_of(models, pairs_file, tmp_path / "run")
    with pytest.raises(CallError, match="no column 'englisch'; it has: eng, source, lang"):
        enrobe.align(replace(recipe, pairs=replace(recipe.pairs, text=("englisch", "source"))))
    with pytest.raises(CallError, match="text is 'eng' twice"):
        PairsTable(files=(pairs_file,), text=("eng", "eng"))
    few = tmp_path / "few.jsonl"
    few.write_text('{"eng": "w5", "source": "w6"}\n')
    with pytest.raises(CallError, match="fix: more pairs"):
        enrobe.align(
            replace(recipe, pairs=PairsTable(files=(few,), text=("eng", "source"), heldout=0.5))
        )
    assert not (tmp_path / "run").exists()


def test_the_command(models: tuple[Path, Path], pairs_file: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "align.toml"
    recipe.write_text(
        f'model = "{models[0]}"\ntarget = "{models[1]}"\noutput = "out"\n'
        f'[pairs]\nfiles = ["{pairs_file}"]\ntext = ["eng", "source"]\nheldout = 0.5\n'
    )
    answer = run("align", str(recipe))
    assert answer.returncode == 0, answer.stderr
    assert records(answer)[0]["method"] == "rotation"
    shown = terminal(models[0], "align", str(recipe), "--set", 'output="again"')
    assert "pairs learned from" in shown and "with CSLS" in shown
    answer = run("align", str(recipe))
    assert answer.returncode == 2 and answer.stderr.count(b"\n") == 1


# --- training -----------------------------------------------------------------------------------


def training(models: tuple[Path, Path], pairs_file: Path, output: Path) -> AlignRecipe:
    recipe = recipe_of(models, pairs_file, output)
    table = TrainConfig(
        steps=60, batch_rows=32, lr=2e-3, warmup=5, evaluate_every=30, save_every=20, log_every=20
    )
    return replace(recipe, train=table, pairs=replace(recipe.pairs, most=100))


def test_training_places_both_texts_where_the_target_does(
    models: tuple[Path, Path], pairs_file: Path, tmp_path: Path
) -> None:
    recipe = training(models, pairs_file, tmp_path / "run")
    result = enrobe.align(recipe)
    assert result.finished and result.method == "training"
    _, heldout = split(read_pairs(recipe.pairs), 0.5, 1)
    model, target = enrobe.load(result.model), enrobe.load(models[1])
    rows = [n for n, name in enumerate(heldout.languages) if name == "de"]
    own = normalize(model.embed([heldout.texts[n][0] for n in rows]))
    theirs = normalize(target.embed([heldout.texts[n][1] for n in rows]))
    # At first it is 0.06.
    assert (own * theirs).sum(axis=1).mean() > 0.9
    right = (own @ theirs.T).argmax(1) == np.arange(len(rows))
    assert right.mean() == pytest.approx(result.languages["de"].after.accuracy_forward)
    # The prompt that it learned with is its folder's own.
    assert model.sentence.default_prompt == "w7 "


def test_a_text_is_placed_where_the_target_places_its_partner(models: tuple[Path, Path]) -> None:
    read = checkpoint.read(models[0])
    placed = {"b": np.array([1.0, 2.0], np.float32), "d": np.array([3.0, 4.0], np.float32)}
    pairs = [("w5", "b"), ("w6 w7", "d"), ("b", "b")]
    rows, vectors = align_training._data(read, SentenceSettings(), pairs, placed)
    assert [len(row.ids) for row in rows] == [3, 4, 3]
    assert vectors.tolist() == [[1, 2], [3, 4], [1, 2]]


def test_training_that_is_stopped_goes_on_to_the_same_end(
    models: tuple[Path, Path], pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = enrobe.align(training(models, pairs_file, tmp_path / "whole"))
    recipe = training(models, pairs_file, tmp_path / "parts")
    plain, calls = VectorDistilling.loss, []

    def stopped(self: VectorDistilling, *arguments: Any) -> Any:
        calls.append(0)
        if len(calls) == 25:
            signal.raise_signal(signal.SIGTERM)
        return plain(self, *arguments)

    monkeypatch.setattr(VectorDistilling, "loss", stopped)
    part = enrobe.align(recipe)
    assert not part.finished and part.languages == {} and part.to_dict()["mean"] is None
    again = enrobe.align(recipe, resume=True)
    assert again.finished and same(weights(whole.model), weights(again.model))
    assert again.languages == whole.languages


def test_a_rotation_has_nothing_to_resume(
    models: tuple[Path, Path], pairs_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(CallError, match="a rotation is found at once"):
        enrobe.align(recipe_of(models, pairs_file, tmp_path / "x"), resume=True)
