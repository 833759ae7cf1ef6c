"""Distilling as a whole: what is learned, what is written, what goes on after a kill."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import enrobe
from enrobe import checkpoint
from enrobe.errors import CallError
from enrobe.sentence_folder import Dense, SentenceSettings, read_sentence_settings
from enrobe.text.ragged import Ragged
from enrobe.train import distil, finetune
from enrobe.train.distil import Teacher
from enrobe.train.vectors import SentenceVectors, TextRow, text_rows
from tests.support import random_documents, write_txt
from tests.train.distil_toys import (
    corpus_tables,
    killed_at,
    recipe,
    teacher_folder,
    texts_tables,
    values,
)
from tests.train.finetune_toys import labelled, slots_file, task, two_tasks
from tests.train.finetune_toys import recipe as finetune_recipe
from tests.train.toys import ALONE, join, log_lines, same, start, toml, weights

NARROW = {"layers": 2, "hidden_size": 24, "num_heads": 3}
HIDDEN = {"hidden": 0.5, "hidden_distance": "cosine"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_folder(tmp_path_factory.mktemp("teacher") / "model")


def work_of(given: dict[str, Any]) -> Any:
    """The work that a run would train."""
    asked = recipe(given)
    read = checkpoint.read(Path(asked.teacher))
    return distil._JOBS[type(asked)](asked, Teacher(read, ALONE)).work


def gradients(work: Any, step: int = 0) -> dict[str, torch.Tensor]:
    """Of a step, without dropout."""
    work.model.zero_grad()
    work.model.eval()
    micros = work.batch(step)
    totals = {n: sum(micro.counts.get(n, 0) for micro in micros) for n in work.objectives}
    for micro in micros:
        work.loss(micro, totals)[0].backward()
    return {n: p.grad.clone() for n, p in work.model.named_parameters() if p.grad is not None}


# --- masked LM ----------------------------------------------------------------------------------


def test_a_student_with_all_layers_begins_as_its_teacher(teacher: Path, tmp_path: Path) -> None:
    losses = {"soft": 1.0, "hard": 0.0, "hidden": 1.0}
    work = work_of(
        values(
            teacher, tmp_path / "r", student={"layers": 3}, losses=losses, **corpus_tables(tmp_path)
        )
    )
    work.model.eval()
    micros = work.batch(0)
    totals = {n: sum(micro.counts[n] for micro in micros) for n in work.objectives}
    assert len(micros) > 1
    for micro in micros:
        loss, parts = work.loss(micro, totals)
        assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
        assert float(parts["hard_loss"]) > 0.1


@pytest.mark.parametrize("losses", [{"soft": 0.7, "hard": 0.3, **HIDDEN}, {"soft": 2.0}])
def test_however_a_batch_is_split_its_gradient_is_one(
    losses: dict[str, Any], teacher: Path, tmp_path: Path
) -> None:
    tables = corpus_tables(tmp_path)
    found = []
    for number, micro_tokens in enumerate((40, 1000)):
        given = values(teacher, tmp_path / f"{number}", student=NARROW, losses=losses, **tables)
        given["train"]["micro_tokens"] = micro_tokens
        found.append(gradients(work_of(given)))
    one, other = found
    assert one.keys() == other.keys()
    assert any(name.startswith("projections.") for name in one) == ("hidden" in losses)
    for name, gradient in one.items():
        assert torch.allclose(gradient, other[name], atol=1e-5), name


def test_the_masked_loss_is_that_of_whole_logits(teacher: Path, tmp_path: Path) -> None:
    """Written out with torch: DistilBERT's three losses."""
    losses = {"soft": 5.0, "hard": 2.0, "temperature": 2.0, "hidden": 1.0}
    losses["hidden_distance"] = "cosine"
    losses["hidden_layers"] = [[2, 3]]
    given = values(
        teacher, tmp_path / "r", student={"layers": 2}, losses=losses, **corpus_tables(tmp_path)
    )
    given["train"]["micro_tokens"] = 1000
    work = work_of(given)
    work.model.eval()
    (micro,) = work.batch(0)
    found = float(work.loss(micro, micro.counts)[0].detach())
    ids, types = torch.from_numpy(micro.batch.ids), torch.from_numpy(micro.batch.types)
    at, targets = micro.arrays["positions"], torch.from_numpy(micro.arrays["targets"])

    def outputs(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        last = model.config.num_layers
        with torch.no_grad():
            out = model(ids, micro.batch.offsets, types, layers=(last,), heads=["mlm"], at=at)
        return out.heads["mlm"], out.hidden[last]

    (s, own), (t, theirs) = outputs(work.model), outputs(work._teacher)
    f = torch.nn.functional
    soft = f.kl_div(f.log_softmax(s / 2, -1), f.softmax(t / 2, -1), reduction="batchmean") * 2**2
    cosine = f.cosine_embedding_loss(own, theirs, torch.ones(len(own)))
    expected = 5 * soft + 2 * f.cross_entropy(s, targets) + cosine
    assert found == pytest.approx(float(expected), rel=1e-5)


# --- vectors ------------------------------------------------------------------------------------


def sentence_teacher(folder: Path, settings: SentenceSettings) -> Path:
    from enrobe.sentence_folder import write_sentence_settings

    teacher_folder(folder, heads=False)
    write_sentence_settings(folder, settings, width=40)
    return folder


def dense(outputs: int, inputs: int, activation: Any, *, bias: bool) -> Dense:
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((outputs, inputs)).astype(np.float32)
    return Dense(weight=weight, bias=weight[:, 0] if bias else None, activation=activation)


SETTINGS = [
    SentenceSettings(steps=("normalize",), max_tokens=12),
    SentenceSettings(pool=("cls", "max", "mean", "mean_sqrt_len"), truncate_dim=70),
    SentenceSettings(
        pool=("mean",),
        include_prompt=False,
        prompts={"query": "query: "},
        default_prompt="query: ",
        steps=(dense(30, 40, "Tanh", bias=True), "normalize"),
        truncate_dim=20,
    ),
    SentenceSettings(
        pool=("cls",), steps=("normalize", dense(7, 40, "Sigmoid", bias=False)), lower_case=True
    ),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["norm", "pools", "dense", "lower"])
def test_vectors_are_those_of_embed(settings: SentenceSettings, tmp_path: Path) -> None:
    folder = sentence_teacher(tmp_path / "m", settings)
    texts = ["", "The Cat", *random_documents(3, 6, words=30)]
    texts = [" ".join(text.split()) for text in texts]
    expected = enrobe.load(folder).embed(texts, long="truncate")
    teacher = Teacher(checkpoint.read(folder), ALONE)
    rows = text_rows(teacher.tokenizer, teacher.read.config, settings, texts)
    assert all(isinstance(row, TextRow) for row in rows)
    batch = Ragged.from_rows([row.ids for row in rows])  # type: ignore[union-attr]
    with torch.no_grad():
        hidden = teacher.model(
            torch.from_numpy(batch.ids), batch.offsets, torch.from_numpy(batch.types), layers=(3,)
        ).hidden[3]
        found = SentenceVectors(settings, hidden=40, projected=None)(hidden, rows, batch.offsets)
    assert found.shape == expected.shape
    assert np.abs(found.numpy() - expected).max() < 2e-5 * max(1, np.abs(expected).max())


@pytest.mark.parametrize(
    "student",
    [{"layers": 2}, pytest.param(NARROW, marks=pytest.mark.slow)],
    ids=["layers", "narrow"],
)
def test_a_student_comes_near_its_teachers_vectors(student: dict[str, Any], tmp_path: Path) -> None:
    folder = sentence_teacher(tmp_path / "teacher", SETTINGS[0])
    given = values(folder, tmp_path / "run", student=student, **texts_tables(tmp_path))
    given["train"] |= {"steps": 60, "batch_rows": 8, "evaluate_every": 20, "save_every": 60}
    result = distil.run(recipe(given), resume=False)
    assert result.finished and result.student is not None and result.teacher is not None
    cosine = result.student.scores["heldout"]["cosine"]
    evaluations = [x["evaluation"] for x in log_lines(tmp_path / "run") if "evaluation" in x]
    assert cosine == max(x["heldout"]["cosine"] for x in evaluations) > 0.8
    # What the folder gives is what was measured; the projection is in it.
    texts = Path(given["texts"]["heldout"][0]).read_text().splitlines()
    models = [enrobe.load(path) for path in (result.model, folder)]
    own, theirs = (model.embed(texts, long="truncate") for model in models)
    assert own.shape == theirs.shape
    assert float((own * theirs).sum(1).mean()) == pytest.approx(cosine, abs=1e-5)
    steps = read_sentence_settings(result.model).steps
    assert len(steps) == (2 if student is NARROW else 1)
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["kept"]["heldout"]["cosine"] == cosine
    assert "tokens a second" in (tmp_path / "run/report.md").read_text()


def test_texts_that_cannot_be_read_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sentence_teacher(tmp_path / "teacher", SETTINGS[0])
    path = tmp_path / "x.jsonl"
    lines = [
        json.dumps({"s": "the cat"}),
        "{",
        json.dumps({"s": "a\ud800"}),
        json.dumps({"s": " "}),
    ]
    path.write_text("\n".join(lines) + "\n")
    given = values(folder, tmp_path / "run", texts={"files": [str(path)], "column": "s"})
    result = distil.run(recipe(given), resume=False)
    assert result.finished
    said = capsys.readouterr().err
    assert "1 rows cannot be read" in said and "1 texts cannot be read" in said


# --- trained heads ------------------------------------------------------------------------------

HEAD_TRAIN = {"epochs": 2, "batch_rows": 8, "lr": 5e-3, "save_every": 3, "keep": 9}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A teacher with a head of every kind, two on the same texts, and the tables of its tasks."""
    folder = tmp_path_factory.mktemp("several")
    base = teacher_folder(folder / "base", heads=False, dropout=0.0)
    tasks = two_tasks(slots_file(folder))
    for kind in ("multilabel", "regress", "answer"):
        tasks[kind] = task(kind, labelled(folder, kind, rows=12))
    made = finetune.run(finetune_recipe(base, folder / "run", tasks, epochs=6), resume=False)
    return made.model, tasks


def heads_values(
    several: tuple[Path, dict[str, Any]], output: Path, *names: str, **tables: Any
) -> dict[str, Any]:
    folder, tasks = several
    some = {name: tasks[name] for name in names or tasks}
    return values(folder, output, tasks=some, **tables) | {
        "train": HEAD_TRAIN | tables.get("train", {})
    }


def more_texts(folder: Path) -> Path:
    """Texts that nobody has labelled; one of them is longer than a row, one empty."""
    return write_txt(folder / "more.txt", ["the cat sat. " * 20, "a hat", "zebras on mats"])


@pytest.mark.parametrize("augment", [None, "copies", "files", "both"])
def test_a_student_of_every_kind_of_head_begins_as_its_teacher(
    augment: str | None, several: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    losses = {"soft": 1.0, "hard": 0.0, "hidden": 1.0}
    given = heads_values(several, tmp_path / "r", student={"layers": 3}, losses=losses)
    given["train"] = {**given["train"], "micro_tokens": 40}
    if augment:
        given["tasks"] = {n: t for n, t in given["tasks"].items() if n != "answer"}
        given["augment"] = {"copies": 2, "words": 0.4} if augment != "files" else {}
        if augment != "copies":
            given["augment"]["files"] = [str(more_texts(tmp_path))]
    work = work_of(given)
    work.model.eval()
    seen = set()
    for step in range(4):
        micros = work.batch(step)
        totals = {n: sum(micro.counts[n] for micro in micros) for n in work.objectives}
        for micro in micros:
            loss, _ = work.loss(micro, totals)
            assert float(loss.detach()) == pytest.approx(0.0, abs=2e-5)
            seen |= {name for name in given["tasks"] if micro.counts[name]}
        rows = sum(micro.counts[".rows"] for micro in micros)
        assert rows == given["train"]["batch_rows"] * (1 + bool(augment))
    assert seen == set(given["tasks"])


def test_other_words_are_another_each_epoch(
    several: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    given = heads_values(several, tmp_path / "r", "intent", "slots", student={"layers": 1})
    given["augment"] = {"copies": 2, "words": 0.4}
    plan = work_of(given)._plan
    (rows,), (both,) = plan.sources.values(), plan.beside.values()
    first, second = both[: len(rows)], both[len(rows) :]
    assert any(
        (a.ids.shape != b.ids.shape) or (a.ids != b.ids).any()
        for a, b in zip(first, second, strict=True)
    )
    at = {
        id(row): (copy, n)
        for copy, made in enumerate((first, second))
        for n, row in enumerate(made)
    }
    numbers = {id(row): n for n, row in enumerate(rows)}
    seen = []
    for step in range(plan.steps):
        batch = plan.batch(step)
        half = len(batch) // 2
        for row, other in zip(batch[:half], batch[half:], strict=True):
            copy, n = at[id(other)]
            assert n == numbers[id(row)]
            seen.append(copy)
    assert seen == [0] * len(rows) + [1] * len(rows)


def test_texts_without_labels_go_along_with_what_the_teacher_says_of_them(
    several: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    texts = [f"the cat sat {end}" for end in ("on a mat", "here", "and sat", "there and there")]
    file = tmp_path / "more.jsonl"
    file.write_text("".join(json.dumps({"said": text}) + "\n" for text in texts))
    given = heads_values(several, tmp_path / "r", "intent", "slots", student={"layers": 1})
    given["augment"] = {"files": [str(file)], "column": "said"}
    plan = work_of(given)._plan
    model = enrobe.load(several[0], device="cpu", precision="float32")
    (beside,) = plan.beside.values()
    tokenizer = model.tokenizer
    at = {tokenizer.decode(row.ids[1:-1].tolist()).strip(): row for row in beside}
    assert sorted(at) == sorted(texts)
    labels = checkpoint.read(several[0]).heads
    for text, said, tags in zip(
        texts, model.predict(texts, head="intent"), model.tag(texts, head="slots"), strict=True
    ):
        row = at[text]
        assert labels["intent"].labels[int(row.targets["intent"])] == said.label
        assert row.soft["intent"].shape == (len(labels["intent"].labels),)
        told = [labels["slots"].labels[int(i)] for i in row.targets["slots"]]
        assert len(told) == len(text.split())
        assert (told == ["O"] * len(told)) == (not tags)
    # One each, again and again.
    half = given["train"]["batch_rows"]
    seen = {id(row) for step in range(plan.steps) for row in plan.batch(step)[half:]}
    assert seen <= {id(row) for row in beside} and len(seen) == len(texts)


def test_without_a_teachers_loss_it_is_fine_tuning(
    several: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    given = heads_values(
        several, tmp_path / "a", "intent", student={"layers": 3}, losses={"soft": 0.0}
    )
    own = distil.run(recipe(given), resume=False)
    plain = finetune_recipe(several[0], tmp_path / "b", given["tasks"], **given["train"])
    assert same(weights(own.model), weights(finetune.run(plain, resume=False).model))


def test_the_soft_loss_of_a_batch_is_its_tasks_sum(
    several: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Two tasks on the same rows: T^2 KL of each over its targets, written out."""
    losses = {"soft": 0.7, "hard": 0.0, "temperature": 3.0}
    names = ("intent", "slots")
    given = heads_values(several, tmp_path / "r", *names, student={"layers": 1}, losses=losses)
    work = work_of(given)
    work.model.eval()
    (micro,) = work.batch(0)
    found = float(work.loss(micro, micro.counts)[0].detach())
    teacher = Teacher(checkpoint.read(several[0]), ALONE).model
    ids, types = torch.from_numpy(micro.batch.ids), torch.from_numpy(micro.batch.types)
    expected = 0.0
    for name in names:
        at = micro.arrays["slots.places" if name == "slots" else "intent.rows"]
        with torch.no_grad():
            s, t = (
                model(ids, micro.batch.offsets, types, heads=[name]).heads[name][at] / 3
                for model in (work.model, teacher)
            )
        each = (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1).mean() * 9
        expected += 0.7 * float(each) * micro.counts[f"{name}.rows"] / micro.counts[".rows"]
    assert found == pytest.approx(expected, rel=1e-4)


def test_all_heads_are_learned_at_once(
    several: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("intent", "slots", "multilabel")
    given = heads_values(
        several, tmp_path / "run", *names, student={"layers": [1, 3]}, train={"epochs": 6}
    )
    result = distil.run(recipe(given), resume=False)
    assert "heads without a task are left out: regress, answer" in capsys.readouterr().err
    assert result.student is not None and result.teacher is not None
    assert set(result.student.scores) == set(result.teacher.scores) == set(names)
    theirs = result.teacher.scores["intent"]["accuracy"]
    assert result.kept["intent"]["accuracy"] == pytest.approx(
        result.student.scores["intent"]["accuracy"] / theirs
    )
    assert result.smaller is not None and result.smaller > 1
    model = enrobe.load(result.model)
    assert set(model.engine.heads) == set(names) and model.config.num_layers == 2
    assert isinstance(model.predict_all(words=[["cat", "on"]])[0]["slots"], list)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("intend", {}, r"no head 'intend'; its: intent, .*.*did you mean 'intent'"),
        ("intent", {"head": "slots"}, r"kind is classify; the teacher's head is of kind tag"),
        (
            "intent",
            {"kind": "tag", "label": "slots"},
            r"kind is tag; the teacher's head is of kind",
        ),
    ],
)
def test_a_task_needs_a_head_of_its_kind(
    name: str,
    change: dict[str, Any],
    message: str,
    several: tuple[Path, dict[str, Any]],
    tmp_path: Path,
) -> None:
    tasks = {name: {**several[1]["intent"], **change}}
    given = values(several[0], tmp_path / "r", tasks=tasks) | {"train": HEAD_TRAIN}
    with pytest.raises(CallError, match=message):
        distil.run(recipe(given), resume=False)


def test_what_is_drawn_is_not_frozen(several: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    given = heads_values(several, tmp_path / "r", student=NARROW, train={"freeze": "embeddings"})
    with pytest.raises(CallError, match="freeze is 'embeddings' and the student has a new shape"):
        recipe(given)


def test_a_label_that_the_teacher_does_not_know_is_named(
    several: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "x.jsonl"
    rows = [{"tokens": ["a", "cat"], "label": label} for label in ("cat", "zebra") * 3]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {"intent": {**several[1]["intent"], "train": str(path), "dev": str(path)}}
    given = values(several[0], tmp_path / "r", tasks=tasks) | {"train": HEAD_TRAIN}
    with pytest.raises(CallError, match="does not know the label 'zebra'; allowed: "):
        distil.run(recipe(given), resume=False)


# --- exact resume -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["corpus", "texts", "heads"])
def test_a_killed_run_ends_bitwise_as_one_that_was_not(
    kind: str, teacher: Path, several: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    def given(name: str) -> dict[str, Any]:
        if kind == "heads":
            augment = {"copies": 3, "files": [str(more_texts(tmp_path))]}
            more = {"augment": augment, "student": NARROW, "losses": HIDDEN}
            names = [one for one in several[1] if one != "answer"]
            return heads_values(several, tmp_path / name, *names, **more)
        tables = corpus_tables(tmp_path) if kind == "corpus" else texts_tables(tmp_path)
        return values(teacher, tmp_path / name, student=NARROW, losses=HIDDEN, **tables)

    expected = distil.run(recipe(given("whole")), resume=False)
    assert join(start(killed_at, given("killed"), False, 3)) == [9]
    result = distil.run(recipe(given("killed")), resume=True)
    assert result.step == expected.step and result.finished
    assert same(weights(result.model), weights(expected.model))
    last = f"checkpoints/step-{result.step:09d}"
    for file in ("optimizer.safetensors", "model/projections.safetensors"):
        one, other = (tmp_path / name / last / file for name in ("whole", "killed"))
        assert one.read_bytes() == other.read_bytes()
    assert not (result.model / "projections.safetensors").exists()
    assert result.student is not None and expected.student is not None
    assert result.student.scores == expected.student.scores


def test_another_teacher_is_another_run(teacher: Path, tmp_path: Path) -> None:
    given = values(teacher, tmp_path / "run", student={"layers": 1}, **texts_tables(tmp_path))
    given["train"]["steps"] = 2
    distil.run(recipe(given), resume=False)
    other = teacher_folder(tmp_path / "other", dropout=0.2)
    with pytest.raises(CallError, match=r"data.teacher is .* put it back"):
        distil.run(recipe({**given, "teacher": str(other)}), resume=True)


def test_kept_answers_serve_another_run(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = texts_tables(tmp_path)
    for name in ("one", "two"):
        given = values(
            teacher, tmp_path / name, student={"layers": 1}, cache=str(tmp_path / "kept"), **tables
        )
        distil.run(recipe(given), resume=False)
        said = capsys.readouterr().err
        assert ("0 of 40 rows are there" in said) == (name == "one")


# --- recipes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": {}}, r"one of \[tasks.NAME\].*this one has \[tasks\] and \[texts\]"),
        ({"texts": None}, r"this one has none of them"),
        ({"teecher": "x"}, r"unknown key teecher; did you mean 'teacher'"),
        ({"student": {"layer": 2}}, r"unknown key student.layer; did you mean 'layers'"),
        ({"student": {"layers": 4}}, r"layers is 4; the teacher has 3"),
        ({"losses": {"soft": 1.0}}, r"unknown key losses.soft"),
        ({"losses": {"vector": 0.0}}, r"vector and hidden are 0; allowed: one above 0"),
        ({"losses": {"vector": -1.0}}, r"vector is -1.0; allowed: 0 or more"),
        ({"losses": {"vector_distance": "l2"}}, r"losses.vector_distance is 'l2'"),
        ({"losses": {"hidden": 1.0, "hidden_layers": [[1, 4]]}}, r"\[1, 4\]; allowed: 0"),
        ({"losses": {"hidden_layers": []}}, r"hidden_layers is empty"),
        ({"texts": {"files": []}}, r"\[texts\] files is empty"),
        ({"texts": {"files": ["none.txt"]}}, r"none.txt: no such file"),
        ({"seed": -1}, r"seed is -1; allowed"),
    ],
)
def test_a_bad_recipe_is_one_line_with_what_is_allowed(
    change: dict[str, Any], message: str, teacher: Path, tmp_path: Path
) -> None:
    given = values(teacher, tmp_path / "run", **texts_tables(tmp_path)) | change
    path = tmp_path / "recipe.toml"
    path.write_text(toml({key: value for key, value in given.items() if value is not None}))
    with pytest.raises(CallError, match=message) as caught:
        enrobe.distill(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "tables", "message"),
    [
        (["answer"], {"augment": {"copies": 1}}, "tasks.answer is of kind answer"),
        (["intent"], {"augment": {"copies": 1}, "losses": {"soft": 0.0}}, "no teacher is asked"),
        (["intent"], {"augment": {"copies": -1}}, "copies is -1; allowed: 0 or more"),
        (["intent"], {"augment": {"words": 0.0}}, "words is 0.0; allowed: above 0, up to 1"),
        (["intent"], {"augment": {"column": "a"}}, "column is 'a' and no files are given"),
        (["intent"], {"augment": {"files": ["no.txt"]}, "losses": {"soft": 0.0}}, "no teacher is"),
    ],
)
def test_rows_without_labels_are_for_a_teacher_of_labels(
    names: list[str],
    tables: dict[str, Any],
    message: str,
    several: tuple[Path, dict[str, Any]],
    tmp_path: Path,
) -> None:
    with pytest.raises(CallError, match=message):
        recipe(heads_values(several, tmp_path / "r", *names, **tables))


def test_texts_without_labels_are_single_ones(
    several: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "x.jsonl"
    known = checkpoint.read(several[0]).heads["intent"].labels[:2]
    rows = [{"a": f"cat {n}", "b": "mat", "label": label} for n, label in enumerate(known * 5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"train": str(path), "dev": str(path), "text": ["a", "b"], "label": "label"}
    tasks = {"intent": {**several[1]["intent"], **files}}
    given = values(several[0], tmp_path / "r", tasks=tasks) | {"train": HEAD_TRAIN}
    given["augment"] = {"files": [str(more_texts(tmp_path))]}
    with pytest.raises(CallError, match=r"tasks\.intent has two texts a row"):
        distil.run(recipe(given), resume=False)


def test_a_corpus_needs_a_masked_lm_head(tmp_path: Path) -> None:
    folder = teacher_folder(tmp_path / "t", heads=False)
    with pytest.raises(CallError, match=r"its heads: none; \[corpus\] needs one for masked LM"):
        distil.run(recipe(values(folder, tmp_path / "r", **corpus_tables(tmp_path))), resume=False)


def test_a_second_student_goes_on_with_the_first(teacher: Path, tmp_path: Path) -> None:
    tables = corpus_tables(tmp_path)
    first = distil.run(
        recipe(values(teacher, tmp_path / "a", student=NARROW, **tables)), resume=False
    )
    given = values(teacher, tmp_path / "b", student={"model": str(first.model)}, **tables)
    begun = work_of(given).model.state_dict()
    made = checkpoint.read(first.model).tensors
    assert all(np.array_equal(begun[name].numpy(), made[name]) for name in begun)
