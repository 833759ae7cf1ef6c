"""Two processes equal one; a signal to one of them stops both."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from enrobe.errors import CallError
from enrobe.train import pretrain
from enrobe.train.group import Group
from enrobe.train.state import LATEST, Checkpoints, load_state
from tests.train.toys import (
    ALONE,
    Toy,
    corpus_files,
    evaluate_job,
    fit_toy,
    furthest,
    join,
    log_lines,
    recipe_values,
    same,
    start_two,
    toml,
    toy_job,
    toy_recipe,
    weights,
)


def test_a_process_alone_is_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    group = Group.join("cpu")
    assert group == ALONE and group.first
    group.wait()
    assert group.sum([1.0, 2.5]) == [1.0, 2.5]
    parameter = torch.nn.Parameter(torch.ones(2))
    group.sum_gradients([parameter])
    assert parameter.grad is None
    group.leave()


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_a_gpu_that_is_not_there_is_said() -> None:
    with pytest.raises(CallError, match=r"device is 'cuda', and PyTorch finds no GPU; fix: "):
        Group.join("cuda")
    assert Group.join("auto").device.type == "cpu"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_processes_equal_one_with_unequal_shares(optimizer: str, tmp_path: Path) -> None:
    changes = {"optimizer": optimizer, "clip": 0.2, "steps": 8, "lr": 0.02, "weight_decay": 0.1}
    alone = Toy(dropout=0.0)
    (tmp_path / "two").mkdir()
    processes = start_two(toy_job, tmp_path / "two", changes, None, False)
    fit_toy(alone, tmp_path / "one", **changes)
    assert join(*processes) == [0, 0]
    first, second = (load_file(tmp_path / f"two/{rank}.safetensors") for rank in range(2))
    assert same(first, second)
    assert furthest(first, alone.weights()) <= 1e-6
    # What no loss reaches is not moved, nor does it decay.
    assert torch.equal(first["spare.weight"], Toy().model.spare.weight)
    ours, theirs = log_lines(tmp_path / "two"), log_lines(tmp_path / "one")
    assert [line["step"] for line in ours] == [2, 4, 6, 8]
    for one, other in zip(ours, theirs, strict=True):
        for name in ("loss", "gradient_norm", "rows_share", "lr"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), name


def test_a_signal_to_one_stops_both_and_they_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "two"
    folder.mkdir()
    # The second process has three losses a step: this one falls into the fourth step.
    assert join(*start_two(toy_job, folder, {}, 3 * 3, False)) == [0, 0]
    latest = Checkpoints(folder / "checkpoints", keep=2).named(LATEST)
    assert latest is not None and load_state(latest)[0].step == 4
    assert join(*start_two(toy_job, folder, {}, None, True)) == [0, 0]
    assert [line["step"] for line in log_lines(folder)] == [2, 4, 6]
    alone = Toy(dropout=0.0)
    fit_toy(alone, tmp_path / "one")
    assert furthest(load_file(folder / "0.safetensors"), alone.weights()) <= 1e-6


@pytest.mark.parametrize("packing", ["documents", "full"])
def test_pretraining_by_two_equals_one(packing: str, tmp_path: Path) -> None:
    files = corpus_files(tmp_path / "files")
    changes: dict[str, Any] = {
        "corpus__packing": packing,
        "model__hidden_dropout": 0.0,
        "model__attention_dropout": 0.0,
        "train__clip": 0.5,
        "train__evaluate_every": 3,
    }
    recipe = toy_recipe(files, tmp_path / "two", **changes)
    processes = start_two(evaluate_job, recipe, tmp_path)
    alone = pretrain.run(toy_recipe(files, tmp_path / "one", **changes), resume=False)
    assert join(*processes) == [0, 0]
    assert furthest(weights(tmp_path / "two/model"), weights(alone.model)) <= 1e-5
    for rank in range(2):
        measured = json.loads((tmp_path / f"{rank}.json").read_text())
        for name, results in alone.after.items():
            assert measured[name] == pytest.approx(dict(results), rel=1e-4)
    shares = {line.get("masked_share") for line in log_lines(tmp_path / "two")}
    assert shares == {line.get("masked_share") for line in log_lines(tmp_path / "one")}


@pytest.mark.slow
def test_torchrun_starts_the_command_line_twice(tmp_path: Path) -> None:
    files = corpus_files(tmp_path / "files")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(toml(recipe_values(files, tmp_path / "two")))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
            *("-m", "enrobe", "pretrain", str(recipe)),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    alone = pretrain.run(toy_recipe(files, tmp_path / "one"), resume=False)
    # Dropout is on, and differs by the process: alike, not equal.
    assert furthest(weights(tmp_path / "two/model"), weights(alone.model)) < 0.1
    assert [line["step"] for line in log_lines(tmp_path / "two")] == [0, *range(1, 7), 6]


def test_rows_that_cannot_be_shared_out_are_refused(tmp_path: Path) -> None:
    recipe = toy_recipe(corpus_files(tmp_path / "files"), tmp_path / "run", train__batch_rows=3)
    group = Group(1, 2, torch.device("cpu"))
    model, tokenizer, start = pretrain._model(recipe, ALONE)
    rows, heldout = pretrain.corpus_rows(recipe, tokenizer, ALONE)
    with pytest.raises(CallError, match="batch_rows 3 over 2 processes; allowed: a multiple"):
        pretrain.MaskedLM(model, tokenizer, start, rows, heldout, recipe, group)
