"""Layers that are unfrozen one by one, layers that are computed twice, masked words besides."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enrobe import checkpoint
from enrobe.config import EncoderConfig, HeadConfig
from enrobe.data.masking import Masker
from enrobe.errors import CallError
from enrobe.nn.heads import Model
from enrobe.train import finetune
from enrobe.train.finetune_recipe import MASKED, MaskedLMTable
from tests.support import random_rows
from tests.train.finetune_toys import (
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
from tests.train.toys import furthest, join, log_lines, start


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("base") / "model")


# --- gradual unfreezing -------------------------------------------------------------------------


def test_layers_are_unfrozen_from_the_top(folder: Path, tmp_path: Path) -> None:
    tasks = {"mine": task("classify", labelled(tmp_path, "classify"))}
    before = tensors(folder)
    # The model is that of the last step: no other is measured.
    end: dict[str, Any] = {"evaluate_every": 9.0}
    # 4 updates an epoch; heads, then a layer more every 3 steps, then the embeddings.
    for epochs, moved in ((0.75, ()), (1.5, ("layers.1.",)), (2.25, ("layers.",))):
        job = recipe(folder, tmp_path / f"{epochs}", tasks, epochs=epochs, unfreeze_every=3, **end)
        after = tensors(finetune.run(job, resume=False).model)
        for name in before.keys() & after.keys():
            same = np.array_equal(before[name], after[name])
            # A key's bias moves no softmax: its gradient is nothing but rounding.
            assert same != name.startswith(moved) if moved else same, (epochs, name)
    end |= {"epochs": 3, "unfreeze_every": 0.75}
    job = recipe(folder, tmp_path / "all", tasks, freeze="embeddings", **end)
    after = tensors(finetune.run(job, resume=False).model)
    word = "embeddings.word.weight"
    assert np.array_equal(before[word], after[word])
    last = replace(job, train=replace(job.train, freeze=None), output=tmp_path / "last")
    assert not np.array_equal(before[word], tensors(finetune.run(last, resume=False).model)[word])


@pytest.mark.slow
def test_unfreezing_goes_on_exactly(folder: Path, tmp_path: Path) -> None:
    tasks = {"mine": task("classify", labelled(tmp_path, "classify"))}
    whole, killed = (
        recipe(folder, tmp_path / n, tasks, epochs=3, unfreeze_every=4) for n in ("whole", "killed")
    )
    expected = finetune.run(whole, resume=False)
    assert join(start(killed_at, killed, False, 6)) == [9]
    assert equal(finetune.run(killed, resume=True).model, expected.model)
    last = "checkpoints/step-000000012/optimizer.safetensors"
    assert (tmp_path / "whole" / last).read_bytes() == (tmp_path / "killed" / last).read_bytes()


def test_what_is_never_trained_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = {"mine": task("classify", labelled(tmp_path, "classify"))}
    finetune.run(recipe(folder, tmp_path / "r", tasks, epochs=1, unfreeze_every=1.0), resume=False)
    assert "the run ends before the 2 lowest layers and the embeddings" in capsys.readouterr().err
    with pytest.raises(CallError, match="unfreeze_every is 0; allowed: above 0"):
        recipe(folder, tmp_path / "x", tasks, unfreeze_every=0)


# --- gradient checkpointing ---------------------------------------------------------------------


def test_layers_that_are_run_again_give_the_same_gradients() -> None:
    torch.manual_seed(4)
    config = EncoderConfig(
        family="roberta",
        vocab_size=30,
        hidden_size=16,
        num_layers=3,
        num_heads=2,
        intermediate_size=24,
        max_positions=42,
        position_offset=2,
        type_vocab_size=1,
        hidden_dropout=0.2,
        attention_dropout=0.2,
    )
    model = Model(config, {"c": HeadConfig(kind="classify", labels=("a", "b"), dropout=0.1)})
    rows = random_rows(5, (7, 3, 7), 30)
    ids, offsets = torch.from_numpy(np.concatenate(rows)), np.array([0, 7, 10, 17])
    found = []
    for again in (False, True):
        model.gradient_checkpointing = again
        model.zero_grad()
        torch.manual_seed(8)
        out = model(ids, offsets, torch.zeros_like(ids), heads=["c"]).heads["c"]
        out.square().sum().backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert furthest(*found) == 0.0


def test_it_changes_no_bit_of_a_run_and_may_be_switched(folder: Path, tmp_path: Path) -> None:
    tasks = two_tasks(slots_file(tmp_path))
    made = {
        again: finetune.run(
            recipe(folder, tmp_path / f"{again}", tasks, epochs=1, gradient_checkpointing=again),
            resume=False,
        )
        for again in (False, True)
    }
    assert equal(made[False].model, made[True].model)
    other = recipe(folder, tmp_path / "True", tasks, epochs=1, gradient_checkpointing=False)
    assert finetune.run(other, resume=True).finished


# --- masked LM besides --------------------------------------------------------------------------


def masked(job: Any, **table: Any) -> Any:
    return replace(job, masked_lm=MaskedLMTable(**{"rate": 0.3, **table}))


def test_masks_are_a_function_of_seed_epoch_and_row(folder: Path, tmp_path: Path) -> None:
    job = masked(recipe(folder, tmp_path / "r", two_tasks(slots_file(tmp_path)), batch_rows=7))
    work = training(job)
    plan = work._plan
    texts = plan.sources[MASKED]
    # Each text once, though two tasks label it.
    assert len({row.ids.tobytes() for row in texts}) == len(texts) <= 32
    assert plan.epoch == len(plan.sources["intent and slots"]) + len(texts)
    masker = Masker(job.masked_lm, work._tokenizer, seed=job.seed)
    from enrobe.text.ragged import Ragged

    seen = 0
    for step in range(plan.steps):
        rows = plan.batch(step)
        places = [plan._mixture.at(at) for at in range(plan._bounds[step], plan._bounds[step + 1])]
        own = [place for place in places if place.source == 1]
        found = [row for row in rows if MASKED in row.targets]
        assert len(found) == len(own)
        for row, place in zip(found, own, strict=True):
            alone = masker(Ragged.from_rows([texts[place.row].ids]), [place.row], place.epoch)
            assert np.array_equal(row.ids, alone.ids)
            assert np.array_equal(row.places, alone.positions)
            assert np.array_equal(row.targets[MASKED], alone.targets)
            assert np.array_equal(row.targets[MASKED], texts[place.row].ids[row.places])
            seen += 1
    assert seen > len(texts)


def test_its_loss_is_cross_entropy_of_what_was_masked(folder: Path, tmp_path: Path) -> None:
    work = training(
        masked(recipe(folder, tmp_path / "r", two_tasks(slots_file(tmp_path))), weight=0.5)
    )
    work.model.eval()
    micros = work.batch(0)
    assert len(micros) == 2
    totals = {n: sum(micro.counts.get(n, 0) for micro in micros) for n in work.objectives}
    losses = [work.loss(micro, totals) for micro in micros]
    rows = [row for row in work._plan.batch(0) if MASKED in row.targets]
    summed = 0.0
    for row in rows:
        ids = torch.from_numpy(row.ids)
        logits = work.model(
            ids, np.array([0, len(ids)]), torch.zeros_like(ids), heads=[MASKED], at=row.places
        ).heads[MASKED]
        targets = torch.from_numpy(row.targets[MASKED])
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        summed += float(loss.detach())
    mean = summed / totals[MASKED] * len(rows) / totals[".rows"]
    assert float(losses[1][1][f"{MASKED}_loss"].detach()) == pytest.approx(mean, rel=1e-5)
    assert float(losses[1][0].detach()) == pytest.approx(0.5 * mean, rel=1e-5)


def test_the_head_comes_from_the_checkpoint_and_is_no_part_of_the_result(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "model", mlm=True)
    tasks = {"mine": task("classify", labelled(tmp_path, "classify"))}
    job = masked(recipe(base, tmp_path / "run", tasks, epochs=1))
    before = training(job).model.state_dict()
    for name, value in tensors(base).items():
        if name.startswith("heads.mlm."):
            assert np.array_equal(before[name.replace("mlm", MASKED)].numpy(), value)
    result = finetune.run(job, resume=False)
    assert list(checkpoint.read(result.model).heads) == ["mine"]
    assert not (result.model / "masked_lm.safetensors").exists()
    lines = [line for line in log_lines(tmp_path / "run") if "loss" in line]
    assert {"mine_loss", f"{MASKED}_loss"} <= lines[0].keys()
    cosines = [line["cosines"] for line in log_lines(tmp_path / "run") if "cosines" in line]
    assert list(cosines[0]) == [f"mine and {MASKED}"]


def test_it_goes_on_exactly(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "model", mlm=True)
    tasks = two_tasks(slots_file(tmp_path))
    whole, killed = (
        masked(recipe(base, tmp_path / n, tasks, epochs=1, weighting="uncertainty"), final_rate=0.1)
        for n in ("whole", "killed")
    )
    expected = finetune.run(whole, resume=False)
    assert join(start(killed_at, killed, False, 3)) == [9]
    assert equal(finetune.run(killed, resume=True).model, expected.model)
    last = f"checkpoints/step-{expected.step:09d}"
    for file in ("optimizer.safetensors", "model/masked_lm.safetensors"):
        one, other = (tmp_path / name / last / file for name in ("whole", "killed"))
        assert one.read_bytes() == other.read_bytes()


def test_a_task_of_its_name_is_refused(tmp_path: Path) -> None:
    for name, changes in ((MASKED, {}), ("a", {"head": MASKED})):
        with pytest.raises(CallError, match="is the name of masked LM's own task"):
            recipe(tmp_path, tmp_path / "r", {name: task("classify", tmp_path / "a", **changes)})
    with pytest.raises(CallError, match="weight is 0; allowed: above 0"):
        MaskedLMTable(weight=0)
