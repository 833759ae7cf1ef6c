"""Scores of layers: against vectors and probes made one by one, and the folder that they go to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import enrobe
from enrobe.errors import CallError, MissingExtraError
from enrobe.evaluate import probes
from enrobe.evaluate.layers import score_layers
from enrobe.evaluate.layers_folder import as_markdown, by_layer, write_layers
from enrobe.evaluate.metrics import spearman
from enrobe.evaluate.probes import POOLS, pooled_layers
from tests.evaluate.test_similarity import random_pairs
from tests.support import scaled_error
from tests.tasks.toys import WORDS, word_folder

LONG = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> enrobe.Model:
    out = tmp_path_factory.mktemp("model")
    word_folder(out, "roberta", seed=5, max_positions=LONG + 2)
    return enrobe.load(out)


def labelled(path: Path, seed: int, count: int) -> Path:
    """Texts in which one of two words says the class."""
    generator = np.random.default_rng(seed)
    with path.open("w") as file:
        for n in range(count):
            words = [*generator.choice(WORDS[5:], size=4), WORDS[n % 2]]
            record = {"t": " ".join(generator.permutation(words)), "y": n % 2 == 0}
            file.write(json.dumps(record) + "\n")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    return labelled(folder / "train.jsonl", 1, 120), labelled(folder / "dev.jsonl", 2, 60)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.tsv"
    lines = [f"{a}\t{b}\t{n / 2}" for n, (a, b) in enumerate(random_pairs(7, 40))]
    path.write_text("\n".join(["a\tb\ty", *lines]) + "\n")
    return path


def test_one_pass_gives_what_embed_gives_layer_by_layer(
    model: enrobe.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Among them the empty text and one of several windows.
    texts = ["w5 w6", "", " ".join(WORDS[:50]), "w7"]
    runs = []
    run = model.engine.run
    monkeypatch.setattr(model.engine, "run", lambda *a: runs.append(a[1]) or run(*a))
    vectors, failed = pooled_layers(model, [*texts, "\ud800"])
    assert len({request.layers for request in runs}) == 1
    assert sum(len(request.layers) for request in runs) == len(runs) * 4
    assert list(failed) == [4]
    assert np.isnan(vectors[:, :, 4]).all()
    for layer in range(model.config.num_layers + 1):
        for p, pool in enumerate(POOLS):
            expected = model.embed(texts, pool=pool, layers=layer)
            assert scaled_error(vectors[layer, p, :4], expected) <= 1e-6, (layer, pool)


def test_scored_pairs(model: enrobe.Model, scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = score_layers(model, dev=scored, text=["a", "b"], label="y")
    assert (report.task, report.metric, report.train_rows, report.dev_rows) == (
        "pairs",
        "spearman",
        0,
        40,
    )
    pairs = random_pairs(7, 40)
    for score in report.scores:
        a, b = (
            model.embed([p[side] for p in pairs], pool=score.pool, layers=score.layer).astype(float)
            for side in (0, 1)
        )
        # Row by row: vectors that are all the same then have the same cosines to the last digit.
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        expected = spearman((a * b).sum(axis=1) / lengths, range(40))
        # A rank may be another where two cosines are equal but for rounding.
        assert score.score.value == pytest.approx(expected.value, abs=2e-3, nan_ok=True)
    known = [s for s in report.scores if not np.isnan(s.score.value)]
    assert report.best == max(known, key=lambda s: s.score.value)
    assert report.best.level
    # With labels that are fractions train is not looked at; and chunks change nothing.
    monkeypatch.setattr(probes, "_BYTES", 1)
    again = score_layers(model, train=Path("none.csv"), dev=scored, text=["a", "b"], label="y")
    ours, theirs = ([s.score.value for s in r.scores] for r in (again, report))
    assert ours == pytest.approx(theirs, abs=2e-3, nan_ok=True)


def test_classes(
    model: enrobe.Model, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    linear = pytest.importorskip("sklearn.linear_model", reason="the train extra is not installed")
    train, dev = files
    report = score_layers(model, train=train, dev=dev, text=["t"], label="y")
    assert (report.task, report.metric, report.train_rows, report.dev_rows) == (
        "classes",
        "accuracy",
        120,
        60,
    )
    assert len(report.scores) == 4 * len(POOLS)
    assert report.majority == 0.5
    # The embeddings alone say which words there are.
    assert report.best.score.value > 0.9
    texts, labels = [], []
    for path in files:
        records = [json.loads(line) for line in path.read_text().splitlines()]
        texts.append([record["t"] for record in records])
        labels.append([str(record["y"]) for record in records])
    for score in report.scores:
        learn, test = (model.embed(t, pool=score.pool, layers=score.layer) for t in texts)
        middle, scale = learn.mean(axis=0), learn.std(axis=0)
        scale[scale < 1e-6] = np.inf
        probe = linear.LogisticRegression(C=report.probe_c, max_iter=1000)
        probe.fit((learn - middle) / scale, labels[0])
        expected = probe.score((test - middle) / scale, labels[1])
        assert score.score.value == pytest.approx(expected, abs=1.5 / 60), score
    # cls of the embeddings is the same in every text: no better than the commonest label.
    blind = next(s for s in report.scores if (s.layer, s.pool) == (0, "cls"))
    assert blind.score.value == 0.5
    assert not blind.level
    monkeypatch.setattr(probes, "_BYTES", 1)
    again = score_layers(model, train=train, dev=dev, text=["t"], label="y")
    ours, theirs = ([s.score.value for s in r.scores] for r in (again, report))
    assert ours == pytest.approx(theirs, abs=1.5 / 60)


def test_classes_of_pairs(model: enrobe.Model, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the train extra is not installed")
    for name, seed in (("train", 1), ("dev", 2)):
        generator = np.random.default_rng(seed)
        with (tmp_path / f"{name}.csv").open("w") as file:
            file.write("a,b,y\n")
            for n in range(80):
                one, other = generator.choice(WORDS[:6], size=2, replace=False)
                file.write(f"{one},{one if n % 2 else other},{n % 2}\n")
    report = score_layers(
        model,
        train=tmp_path / "train.csv",
        dev=tmp_path / "dev.csv",
        text=["a", "b"],
        label="y",
    )
    assert report.task == "classes"
    assert report.best.score.value > 0.9


def test_bad_rows_and_labels_that_train_lacks(
    model: enrobe.Model, files: tuple[Path, Path], tmp_path: Path
) -> None:
    pytest.importorskip("sklearn", reason="the train extra is not installed")
    dev = tmp_path / "dev.jsonl"
    lines = ['{"t": "w5", "y": true}', '{"t": "w6"}', '{"t": "\\ud800", "y": true}']
    dev.write_text("\n".join([*lines, '{"t": "w5", "y": "maybe"}']))
    report = score_layers(model, train=files[0], dev=dev, text=["t"], label="y")
    assert (report.dev_rows, report.skipped) == (2, 2)
    assert report.error is not None and report.error.startswith("row 2: no column 'y'")
    assert report.best.score.value == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": ["t"], "train": None}, "fix: --train F"),
        ({"text": []}, "0 text columns"),
        ({"text": ["t", "t"]}, "2 text columns"),
        ({"text": ["t"], "label": "x"}, "no column 'x'"),
        ({"text": ["t"], "train": "none.csv"}, "No such file"),
        ({"text": ["t", "y"], "train": None}, "allowed: a string"),
    ],
)
def test_mistakes(
    model: enrobe.Model, files: tuple[Path, Path], options: Any, message: str
) -> None:
    given = {"train": files[0], "dev": files[1], "label": "y", **options}
    with pytest.raises(CallError) as caught:
        score_layers(model, **given)
    assert message in str(caught.value)


def test_one_class_alone(model: enrobe.Model, files: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the train extra is not installed")
    train = tmp_path / "train.csv"
    train.write_text("t,y\nw5,A\nw6,A\n")
    with pytest.raises(CallError, match="one class alone, 'A'"):
        score_layers(model, train=train, dev=train, text=["t"], label="y")


def test_the_folder(model: enrobe.Model, scored: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the train extra is not installed")
    out = tmp_path / "layers"
    options: Any = {"name": "toy", "dev": scored, "text": ["a", "b"], "label": "y"}
    report = write_layers(model, out, **options)
    assert sorted(path.name for path in out.iterdir()) == ["layers.json", "layers.md", "layers.png"]
    written = json.loads((out / "layers.json").read_text())
    assert written == {"model": "toy", **report.to_dict()}
    assert (out / "layers.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "layers.md").read_text()
    assert page == as_markdown(report, "toy")
    best = report.best
    assert f"best: layer {best.layer}, {best.pool}, spearman {best.score.value:.4f}" in page
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(by_layer(report)) == 1 + model.config.num_layers + 1
    assert [row for row in rows if "**" in row] == [rows[1 + best.layer]]
    with pytest.raises(CallError, match="not empty"):
        write_layers(model, out, **options)
    with pytest.raises(CallError, match="no column"):
        write_layers(model, tmp_path / "other", **{**options, "label": "z"})
    assert [path.name for path in tmp_path.iterdir()] == ["layers"]


def test_without_the_extra(
    model: enrobe.Model,
    files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.linear_model", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn.*enrobe\[train\]"):
        score_layers(model, train=files[0], dev=files[1], text=["t"], label="y")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match="matplotlib"):
        write_layers(
            model, tmp_path / "x", name="", train=files[0], dev=files[1], text=["t"], label="y"
        )
    assert not (tmp_path / "x").exists()
