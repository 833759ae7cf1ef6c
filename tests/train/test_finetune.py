"""Fine-tuning: what is learned, what is saved, what goes on after a kill."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

import enrobe
from enrobe import checkpoint
from enrobe.config import HeadConfig
from enrobe.errors import CallError
from enrobe.text.ragged import Ragged
from enrobe.train import finetune
from enrobe.train.finetune_data import load_tasks
from enrobe.train.finetune_recipe import shares
from enrobe.train.finetune_work import HeadTraining
from enrobe.train.supervised import collate
from enrobe.train.work import Micro
from tests.support import random_rows, scaled_error
from tests.train.finetune_toys import (
    KINDS,
    equal,
    killed_at,
    labelled,
    model_folder,
    recipe,
    slots_file,
    task,
    tensors,
    training,
    two_tasks,
)
from tests.train.toys import join, log_lines, start

AUTO = {
    "classify": transformers.AutoModelForSequenceClassification,
    "multilabel": transformers.AutoModelForSequenceClassification,
    "regress": transformers.AutoModelForSequenceClassification,
    "tag": transformers.AutoModelForTokenClassification,
    "answer": transformers.AutoModelForQuestionAnswering,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without dropout: learned by heart in fewer epochs."""
    return model_folder(tmp_path_factory.mktemp("plain") / "model", dropout=0.0)


# --- what is learned ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_toy_is_learned_by_heart_and_loads_in_transformers(
    kind: str, plain: Path, tmp_path: Path
) -> None:
    path = labelled(tmp_path, kind)
    # A number takes longer than a class.
    epochs = 40 if kind == "regress" else 14
    tasks = {"mine": task(kind, path)}
    job = recipe(plain, tmp_path / "run", tasks, epochs=epochs, evaluate_every=7.0)
    result = finetune.run(job, resume=False)
    assert result.finished and result.score is not None and result.score > 0.97
    assert result.score == next(iter(result.scores["mine"].values()))
    read = checkpoint.read(result.model)
    assert list(read.heads) == ["mine"] and read.heads["mine"].kind == kind
    assert read.heads["mine"].text == (("question", "context") if kind == "answer" else ("text",))
    # The same file at prediction: what dev was scored by.
    engine = enrobe.load(result.model).engine
    theirs = AUTO[kind].from_pretrained(result.model).eval()
    for row in random_rows(3, (5, 30), 283):
        ids = torch.from_numpy(row)[None]
        with torch.inference_mode():
            answers = theirs(ids, attention_mask=torch.ones_like(ids))
        expected = (
            torch.stack([answers.start_logits, answers.end_logits], -1)[0]
            if kind == "answer"
            else answers.logits[0]
        )
        request = enrobe.engines.base.Request(heads=("mine",))  # type: ignore[attr-defined]
        ours = engine.run(Ragged.from_rows([row]), request).heads["mine"]
        ours = ours if kind in ("tag", "answer") else ours[0]
        assert scaled_error(ours, expected.numpy()) < 1e-5


def test_two_tasks_on_one_text_share_rows_and_are_learned(plain: Path, tmp_path: Path) -> None:
    tasks = two_tasks(slots_file(tmp_path))
    job = recipe(plain, tmp_path / "run", tasks, epochs=14, evaluate_every=7.0)
    work = training(job)
    assert list(work._plan.sources) == ["intent and slots"] and work._plan.epoch == 32
    result = finetune.run(job, resume=False)
    assert result.score is not None and result.score > 0.97
    model = enrobe.load(result.model)
    (found,) = model.predict_all(words=[["cat", "on", "hat", "mat"]])
    assert isinstance(found["slots"], list) and not isinstance(found["intent"], list)
    assert found["intent"].label == "cat"
    assert [(s.label, s.start, s.end) for s in found["slots"]] == [
        ("animal", 0, 1),
        ("thing", 2, 4),
    ]
    lines = [line for line in log_lines(tmp_path / "run") if "loss" in line]
    assert lines[-1]["loss"] == pytest.approx(
        lines[-1]["intent_loss"] + lines[-1]["slots_loss"], rel=1e-4
    )


def test_a_head_that_is_there_goes_on(folder: Path, tmp_path: Path) -> None:
    path = labelled(tmp_path, "classify")
    first = finetune.run(
        recipe(folder, tmp_path / "a", {"mine": task("classify", path)}, epochs=1), resume=False
    )
    again = training(recipe(first.model, tmp_path / "b", {"mine": task("classify", path)}))
    found = again.model.state_dict()
    assert all(np.array_equal(found[n].numpy(), v) for n, v in tensors(first.model).items())
    other = training(recipe(first.model, tmp_path / "b", {"other": task("classify", path)}))
    assert not np.array_equal(
        other.model.state_dict()["heads.other.out.weight"].numpy(),
        tensors(first.model)["heads.mine.out.weight"],
    )


def test_berts_pooler_is_the_first_layer_of_a_sequence_head(tmp_path: Path) -> None:
    from tests.tasks.heads import bert_folder

    bert_folder(tmp_path / "bert", "classify")
    encoder = transformers.AutoModel.from_pretrained(tmp_path / "bert")
    encoder.save_pretrained(tmp_path / "encoder")
    (tmp_path / "encoder/vocab.txt").write_text((tmp_path / "bert/vocab.txt").read_text())
    job = recipe(
        tmp_path / "encoder",
        tmp_path / "run",
        {"x": task("classify", labelled(tmp_path, "classify"))},
    )
    found = training(job).model.state_dict()["heads.x.dense.weight"]
    assert torch.equal(found, encoder.pooler.dense.weight)


# --- losses -------------------------------------------------------------------------------------


def gradients(work: HeadTraining, micros: list[Micro]) -> dict[str, Tensor]:
    """Those of a global batch that goes through in so many parts."""
    work.model.zero_grad()
    work.model.eval()
    totals = {n: sum(micro.counts.get(n, 0) for micro in micros) for n in work.objectives}
    for micro in micros:
        work.loss(micro, totals)[0].backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.clone() for n, p in work.model.named_parameters() if p.grad is not None}


def furthest(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    zero = torch.zeros(())
    return max(float((one.get(n, zero) - other.get(n, zero)).abs().max()) for n in {*one, *other})


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty"])
def test_gradients_of_a_mixed_batch_are_those_of_its_tasks(
    weighting: str, folder: Path, tmp_path: Path
) -> None:
    """Partly labelled rows, two tasks on the same texts, one on others; however it is split."""
    tasks = two_tasks(slots_file(tmp_path))
    tasks["intent"]["weight"] = 2.0
    tasks["number"] = task("regress", labelled(tmp_path, "regress", rows=20))
    work = training(recipe(folder, tmp_path / "run", tasks, weighting=weighting, batch_rows=20))
    if weighting == "uncertainty":
        with torch.no_grad():
            work._log_variances().copy_(torch.tensor([0.3, -0.2, 0.5]))
    rows = work._plan.batch(0)

    def micros(*parts: Any, kinds: Any = work._kinds) -> list[Micro]:
        made = [collate(part, kinds) for part in parts]
        return [Micro(batch=b, counts=c, flops=0.0, arrays=a) for b, c, a in made]

    whole = gradients(work, micros(rows))
    assert furthest(whole, gradients(work, micros(rows[:3], rows[3:4], rows[4:]))) < 1e-6
    total: dict[str, Tensor] = {}
    for name, weight in (("intent", 2.0), ("slots", 1.0), ("number", 1.0)):
        own = [row for row in rows if name in row.targets]
        batch, counts, arrays = collate(own, {name: work._kinds[name]})
        # A batch of this task alone, by plain torch.
        work.model.zero_grad()
        out = work.model(
            torch.from_numpy(batch.ids),
            batch.offsets,
            torch.from_numpy(batch.types),
            heads=[name],
        ).heads[name]
        targets = torch.from_numpy(arrays[f"{name}.targets"])
        if name == "number":
            mean = (out[:, 0] - targets).square().mean()
        else:
            at = arrays.get(f"{name}.places", arrays[f"{name}.rows"])
            mean = torch.nn.functional.cross_entropy(out[torch.from_numpy(at)], targets)
        part = weight * mean * len(own) / len(rows)
        if weighting == "uncertainty":
            s = work._log_variances()[list(work._names).index(name)]
            part = weight * len(own) / len(rows) * (torch.exp(-s) * mean + s / 2)
        part.backward()  # type: ignore[no-untyped-call]
        for key, parameter in work.model.named_parameters():
            if parameter.grad is not None:
                total[key] = total.get(key, torch.zeros(())) + parameter.grad
        assert counts[f"{name}.rows"] == len(own)
    assert furthest(whole, total) < 1e-5


def test_balanced_classes_have_weights_of_mean_1(folder: Path, tmp_path: Path) -> None:
    path = labelled(tmp_path, "tag")
    work = training(
        recipe(folder, tmp_path / "run", {"t": task("tag", path)}, class_weights="balanced")
    )
    counts = work._plan.class_counts("t", len(work._head("t").labels))
    weights = work._class_weights["t"].numpy()
    assert (weights * counts).sum() == pytest.approx(counts.sum())
    assert np.ptp(weights * counts) < 1e-3


# --- exact resume -------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_a_killed_run_ends_bitwise_as_one_that_was_not(
    many: bool, folder: Path, tmp_path: Path
) -> None:
    if many:
        tasks = two_tasks(slots_file(tmp_path))
        tasks["number"] = task("regress", labelled(tmp_path, "regress", rows=20))
    else:
        tasks = {"mine": task("classify", labelled(tmp_path, "classify"))}
    settings: dict[str, Any] = {"epochs": 3, "layer_decay": 0.9, "evaluate_every": 5}
    settings["weighting"] = "uncertainty" if many else "fixed"
    whole = recipe(folder, tmp_path / "whole", tasks, **settings)
    killed = recipe(folder, tmp_path / "killed", tasks, **settings)
    expected = finetune.run(whole, resume=False)
    # Step 6 is in the middle of the second epoch (of the first, with all the tasks).
    assert join(start(killed_at, killed, False, 6)) == [9]
    assert (tmp_path / "killed/checkpoints/latest").read_text() == "step-000000006\n"
    result = finetune.run(killed, resume=True)
    assert result.scores == expected.scores and result.best_step == expected.best_step
    assert equal(result.model, expected.model)
    last = f"checkpoints/step-{expected.step:09d}"
    assert equal(tmp_path / "whole" / last / "model", tmp_path / "killed" / last / "model")
    files = ["optimizer.safetensors", *(["model/weighting.json"] if many else [])]
    for file in files:
        one, other = (tmp_path / name / last / file for name in ("whole", "killed"))
        assert one.read_bytes() == other.read_bytes()
    if many:
        learned = json.loads((tmp_path / "whole" / last / "model/weighting.json").read_text())
        assert list(learned) == ["intent", "slots", "number"] and all(learned.values())
        assert not (expected.model / "weighting.json").exists()


def test_the_seed_decides(folder: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    tasks = {"mine": task("classify", labelled(tmp_path, "classify"))}
    made = []
    for n, seed in enumerate((1, 1, 2)):
        job = replace(recipe(folder, tmp_path / f"{n}", tasks, epochs=1), seed=seed)
        made.append(finetune.run(job, resume=False).model)
    assert equal(made[0], made[1]) and not equal(made[0], made[2])


def test_another_file_is_another_run(folder: Path, tmp_path: Path) -> None:
    path = labelled(tmp_path, "classify")
    tasks = {"mine": task("classify", path)}
    finetune.run(recipe(folder, tmp_path / "run", tasks, epochs=1), resume=False)
    # It may lie elsewhere.
    moved = path.rename(tmp_path / "moved.jsonl")
    tasks = {"mine": task("classify", moved)}
    job = recipe(folder, tmp_path / "run", tasks, epochs=1)
    assert finetune.run(job, resume=True).finished
    moved.write_text(moved.read_text() + '{"text": "cat", "label": "cat"}\n')
    with pytest.raises(CallError, match=r"tasks\.mine\.dev is"):
        finetune.run(job, resume=True)


# --- what stays, what moves ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freeze", "still"),
    [
        ("embeddings", ("embeddings.",)),
        (1, ("embeddings.", "layers.0.")),
        ("encoder", ("embeddings.", "layers.")),
    ],
)
def test_freezing(freeze: Any, still: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    tasks = {"mine": task("classify", labelled(tmp_path, "classify"))}
    result = finetune.run(recipe(folder, tmp_path / "run", tasks, freeze=freeze), resume=False)
    before, after = tensors(folder), tensors(result.model)
    for name in before.keys() & after.keys():
        # RoBERTa has one token type, and unused positions move by decay alone.
        assert np.array_equal(before[name], after[name]) == name.startswith(still), name


def test_more_layers_than_there_are(folder: Path, tmp_path: Path) -> None:
    tasks = {"mine": task("classify", labelled(tmp_path, "classify"))}
    with pytest.raises(CallError, match=r"train\.freeze is 3; the model has 2 layers"):
        finetune.run(recipe(folder, tmp_path / "run", tasks, freeze=3), resume=False)


# --- the data -----------------------------------------------------------------------------------


def test_a_label_that_only_dev_has_counts_as_wrong(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, dev = labelled(tmp_path, "classify"), tmp_path / "dev.jsonl"
    dev.write_text('{"text": "cat", "label": "dog"}\n{"text": "hat", "label": "dog"}\n')
    tasks = {"mine": task("classify", path, dev=str(dev))}
    result = finetune.run(recipe(folder, tmp_path / "run", tasks, epochs=1), resume=False)
    assert result.scores["mine"]["accuracy"] == 0.0
    assert "labels are not among those of train: 'dog'" in capsys.readouterr().err


def test_a_split_off_dev_set_is_kept_from_the_other_tasks(folder: Path, tmp_path: Path) -> None:
    tasks = two_tasks(slots_file(tmp_path, rows=60), dev=[])
    loaded = load_tasks(recipe(folder, tmp_path / "run", tasks))
    held = {row.text for data in loaded.values() for row in data.dev}
    assert held
    assert not held & {row.text for data in loaded.values() for row in data.train}


def test_tasks_may_share_a_head(folder: Path, tmp_path: Path) -> None:
    a, b = (labelled(tmp_path, "classify", seed=seed) for seed in (1, 2))
    tasks = {name: task("classify", path, head="word") for name, path in (("a", a), ("b", b))}
    result = finetune.run(recipe(folder, tmp_path / "run", tasks, epochs=1), resume=False)
    assert list(checkpoint.read(result.model).heads) == ["word"] and set(result.scores) == {
        "a",
        "b",
    }
    tasks["b"] = task("regress", labelled(tmp_path, "regress"), head="word")
    with pytest.raises(CallError, match="shared by tasks of kind classify and regress"):
        recipe(folder, tmp_path / "other", tasks)


def test_a_shared_head_has_the_labels_of_all_its_tasks(plain: Path, tmp_path: Path) -> None:
    """Labels in another order and some of their own; a row both tasks read may differ in label."""
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path, names in ((a, ("cat", "hat", "mat")), (b, ("sat", "mat", "on"))):
        rows = [{"text": f"{w} {v}", "label": w} for w in names for v in ("the", "and", "was")]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {name: task("classify", path, head="word") for name, path in (("a", a), ("b", b))}
    tasks["again"] = task("classify", a, head="word", weight=0.5)
    job = recipe(plain, tmp_path / "run", tasks, epochs=16, evaluate_every=8.0)
    assert list(training(job)._plan.sources) == ["a and again", "b"]
    result = finetune.run(job, resume=False)
    assert checkpoint.read(result.model).heads["word"].labels == ("cat", "hat", "mat", "on", "sat")
    assert {name: one["accuracy"] for name, one in result.scores.items()} == dict.fromkeys(tasks, 1)


@pytest.mark.parametrize(
    ("settings", "rows", "of_small"),
    [({}, 50, 0.2), ({"sampling_cap": 15}, 25, 0.4), ({"sampling": "uniform"}, 50, 0.5)],
)
def test_batches_are_drawn_in_the_ratio_asked_for(
    settings: dict[str, Any], rows: int, of_small: float, folder: Path, tmp_path: Path
) -> None:
    tasks = {
        "big": task("classify", labelled(tmp_path, "classify", rows=40)),
        "small": task("regress", labelled(tmp_path, "regress", rows=10)),
    }
    plan = training(
        recipe(folder, tmp_path / "r", tasks, epochs=8, batch_rows=10, **settings)
    )._plan
    assert plan.epoch == rows and plan.steps == 8 * rows / 10
    drawn = [row for step in range(plan.steps) for row in plan.batch(step)]
    assert sum("small" in row.targets for row in drawn) == pytest.approx(
        of_small * len(drawn), abs=1
    )
    # Capped or not, every row has its turn.
    assert {id(row) for row in drawn} == {id(row) for own in plan.sources.values() for row in own}


def test_batches_by_tokens_hold_every_row_once(folder: Path, tmp_path: Path) -> None:
    path = labelled(tmp_path, "classify", rows=50)
    job = recipe(
        folder, tmp_path / "r", {"m": task("classify", path)}, batch_rows=None, batch_tokens=40
    )
    plan = training(job)._plan
    batches = [plan.batch(step) for step in range(plan.steps)]
    assert sum(map(len, batches)) == 100
    assert all(sum(len(row.ids) for row in rows) <= 40 for rows in batches)
    assert {id(row) for rows in batches for row in rows} == {id(r) for r in plan.sources["m"]}


def test_sampling() -> None:
    def of(**settings: Any) -> dict[str, int]:
        table = enrobe.train.finetune_recipe.FinetuneTable(**settings)  # type: ignore[attr-defined]
        return shares({"a": 900, "b": 100}, table)

    assert of() == {"a": 900, "b": 100}
    assert of(sampling_cap=300) == {"a": 300, "b": 100}
    assert of(sampling="uniform") == {"a": 1, "b": 1}
    assert of(sampling=2.0) == {"a": 30, "b": 10}
    uneven = of(sampling=3.0)
    assert uneven["a"] / uneven["b"] == pytest.approx(9 ** (1 / 3), rel=1e-3)


# --- recipes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_tokens": 100}, "batch_rows is 8 and batch_tokens 100"),
        ({"freeze": "layers"}, "freeze"),
        ({"weighting": "learned"}, "weighting"),
        ({"sampling": 0.0}, "sampling is 0.0; allowed: above 0"),
        ({"sampling": 2.0, "sampling_cap": 5}, "sampling_cap is for proportional"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"evaluate_every": 0.0}, "evaluate_every is 0.0"),
        ({"patience": 0}, "patience is 0"),
        ({"epoch": 3}, "unknown key train.epoch; did you mean 'epochs'?"),
    ],
)
def test_a_value_that_is_not_allowed(settings: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(CallError) as caught:
        recipe(tmp_path, tmp_path / "r", {"x": task("classify", tmp_path / "a.csv")}, **settings)
    assert words in str(caught.value)


def test_a_metric_that_a_kind_has_not(folder: Path, tmp_path: Path) -> None:
    path = labelled(tmp_path, "classify")
    with pytest.raises(CallError, match=r"tasks\.m: metric is 'f1'; allowed here: accuracy"):
        training(recipe(folder, tmp_path / "r", {"m": task("classify", path, metric="f1")}))
    job = recipe(folder, tmp_path / "r", {"m": task("classify", path, metric="matthews")}, epochs=1)
    result = finetune.run(job, resume=False)
    assert next(iter(result.scores["m"])) == "matthews"
    assert checkpoint.read(result.model).heads["m"].metric == "matthews"


def test_patience_ends_it_and_the_best_is_written(folder: Path, tmp_path: Path) -> None:
    tasks = {"mine": task("classify", labelled(tmp_path, "classify"))}
    job = recipe(folder, tmp_path / "r", tasks, lr=1e-9, epochs=9, evaluate_every=1, patience=2)
    result = finetune.run(job, resume=False)
    assert (result.step, result.best_step, result.early, result.finished) == (3, 1, True, True)
    assert equal(result.model, tmp_path / "r/checkpoints/step-000000001/model")


def test_heads_are_as_the_family_publishes_them(folder: Path, tmp_path: Path) -> None:
    path = labelled(tmp_path, "answer")
    head = training(recipe(folder, tmp_path / "r", {"q": task("answer", path)})).model.head_configs
    assert head["q"] == HeadConfig(
        kind="answer", dropout=0.0, text=("question", "context"), metric="f1"
    )
