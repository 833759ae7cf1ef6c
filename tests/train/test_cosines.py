"""Cosines between the gradients of tasks: right, and without a trace in what is trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from enrobe.errors import CallError
from enrobe.train import finetune
from enrobe.train.cosines import gradient_cosines
from tests.train.finetune_toys import (
    equal,
    killed_at,
    labelled,
    model_folder,
    recipe,
    slots_file,
    task,
    two_tasks,
)
from tests.train.toys import ALONE, join, log_lines, start


def three_tasks(folder: Path) -> dict[str, Any]:
    tasks = two_tasks(slots_file(folder))
    tasks["number"] = task("regress", labelled(folder, "regress", rows=20))
    return tasks


def test_by_the_formula() -> None:
    """Two parts of a batch; one loss is the other turned round, one reaches nothing shared."""
    torch.manual_seed(11)
    shared, own = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3))
    parts = [torch.randn(2, 4), torch.randn(5, 4)]

    def losses(x: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(x @ shared)
        a = hidden.square().sum()
        return {"a": a, "b": -3 * a, "c": (hidden @ own).sum(), "d": own.sum(), "e": torch.ones(())}

    found = gradient_cosines(
        [lambda: losses(parts[0]), lambda: losses(parts[1])], [shared], ALONE, list("abcde")
    )
    assert list(found) == ["a and b", "a and c", "b and c"]
    assert found["a and b"] == pytest.approx(-1.0)
    whole = losses(torch.cat(parts))
    grads = [torch.autograd.grad(whole[n], shared, retain_graph=True)[0].flatten() for n in "ac"]
    assert found["a and c"] == pytest.approx(float(torch.cosine_similarity(*grads, dim=0)))
    assert shared.grad is None and own.grad is None


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty"])
def test_weights_are_bitwise_the_same_with_and_without(weighting: str, tmp_path: Path) -> None:
    base = model_folder(tmp_path / "model", dropout=0.1)
    models = {}
    for every in (0, 2):
        job = recipe(
            base,
            tmp_path / f"{every}",
            three_tasks(tmp_path),
            gradient_cosines=every,
            weighting=weighting,
            micro_tokens=60,
        )
        models[every] = finetune.run(job, resume=False).model
    assert equal(models[0], models[2])
    lines = [line for line in log_lines(tmp_path / "2") if "cosines" in line]
    assert [line["step"] for line in lines] == list(range(1, 14, 2))
    assert not [line for line in log_lines(tmp_path / "0") if "cosines" in line]
    assert set(lines[0]["cosines"]) == {
        "intent and slots",
        "intent and number",
        "slots and number",
    }
    assert all(-1 <= value <= 1 for line in lines for value in line["cosines"].values())


def test_a_killed_run_logs_each_once(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "model")
    whole, killed = (
        recipe(base, tmp_path / name, three_tasks(tmp_path), epochs=1, gradient_cosines=3)
        for name in ("whole", "killed")
    )
    finetune.run(whole, resume=False)
    # Measured in step 4 and again in 7: it is killed after the latter and goes on after 6.
    assert join(start(killed_at, killed, False, 6)) == [9]
    finetune.run(killed, resume=True)
    one, other = (
        [line for line in log_lines(tmp_path / name) if "cosines" in line]
        for name in ("whole", "killed")
    )
    assert [line["step"] for line in one] == [1, 4, 7]
    assert [line["step"] for line in other] == [1, 4, 7]
    for line, same in zip(one, other, strict=True):
        assert same["cosines"] == pytest.approx(line["cosines"], abs=1e-4)


def test_one_task_or_a_frozen_encoder_has_none(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "model")
    one = {"mine": task("classify", labelled(tmp_path, "classify"))}
    settings: dict[str, Any] = {"epochs": 1, "gradient_cosines": 1}
    finetune.run(recipe(base, tmp_path / "one", one, **settings), resume=False)
    frozen = recipe(base, tmp_path / "f", three_tasks(tmp_path), freeze="encoder", **settings)
    finetune.run(frozen, resume=False)
    for name in ("one", "f"):
        assert not [line for line in log_lines(tmp_path / name) if "cosines" in line]
    with pytest.raises(CallError, match="gradient_cosines is -1; allowed: 0 or more"):
        recipe(base, tmp_path / "x", one, gradient_cosines=-1)
