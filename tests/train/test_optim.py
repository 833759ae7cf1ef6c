"""Schedules against hand values, optimisers against torch's, states that go on."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from enrobe.config import HeadConfig
from enrobe.errors import CallError, ModelError
from enrobe.nn import kernels
from enrobe.nn.heads import Model
from enrobe.train.optim import Optimizer, OptimizerConfig, parameter_groups
from tests.nn.test_encoder import small


@pytest.mark.parametrize(
    ("settings", "steps", "expected"),
    [
        # Up to the peak in two steps, then down by sixths; 0 would come after the last.
        ({"warmup": 2}, 8, [0.5, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ({"warmup": 0.25}, 8, [0.5, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ({"warmup": 0}, 4, [1, 3 / 4, 2 / 4, 1 / 4]),
        ({"warmup": 0.0}, 4, [1, 3 / 4, 2 / 4, 1 / 4]),
        ({"warmup": 4}, 4, [1 / 4, 2 / 4, 3 / 4, 1]),
        ({"warmup": 9}, 3, [1 / 9, 2 / 9, 3 / 9]),
        ({"schedule": "constant", "warmup": 3}, 5, [1 / 3, 2 / 3, 1, 1, 1]),
        ({"schedule": "wsd", "warmup": 2, "decay": 3}, 8, [0.5, 1, 1, 1, 1, 1, 2 / 3, 1 / 3]),
        ({"schedule": "wsd", "warmup": 0.2, "decay": 0.4}, 5, [1, 1, 1, 1, 1 / 2]),
        ({"schedule": "wsd", "warmup": 0, "decay": 0}, 3, [1, 1, 1]),
        # The warm-up is never cut short by the decay.
        ({"schedule": "wsd", "warmup": 2, "decay": 9}, 4, [0.5, 1, 1, 0.5]),
    ],
)
def test_schedules(settings: Any, steps: int, expected: list[float]) -> None:
    config = OptimizerConfig(lr=3.0, **settings)
    found = [config.lr_at(step, steps) for step in range(steps)]
    assert found == pytest.approx([3.0 * value for value in expected])


def test_a_constant_rate_does_not_depend_on_the_end() -> None:
    config = OptimizerConfig(schedule="constant", warmup=10)
    assert [config.lr_at(s, 50) for s in range(50)] == [config.lr_at(s, 99) for s in range(50)]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("optimizer", "adam", "optimizer is 'adam'; allowed: adamw, muon; did you mean 'adamw'?"),
        ("schedule", "cosine", "schedule is 'cosine'; allowed: linear, wsd, constant"),
        ("lr", 0.0, "lr is 0.0; allowed: above 0"),
        ("lr", math.nan, "lr is nan"),
        ("lr", math.inf, "lr is inf"),
        ("eps", -1e-9, "eps is -1e-09"),
        ("weight_decay", -0.1, "weight_decay is -0.1; allowed: 0 or more"),
        ("weight_decay", math.nan, "weight_decay is nan"),
        ("warmup", 1.0, "warmup is 1.0; allowed: a whole number of steps"),
        ("warmup", -1, "warmup is -1"),
        ("warmup", math.nan, "warmup is nan"),
        ("decay", math.inf, "decay is inf"),
        ("betas", (0.9, 1.0), "betas are (0.9, 1.0)"),
        ("betas", (math.nan, 0.9), "betas are (nan, 0.9)"),
        ("clip", 0.0, "clip is 0.0; allowed: above 0"),
        ("clip", math.nan, "clip is nan"),
    ],
)
def test_a_value_that_is_not_allowed(name: str, value: object, words: str) -> None:
    with pytest.raises(CallError) as caught:
        OptimizerConfig(**{name: value})
    assert words in str(caught.value)


def model() -> Model:
    torch.manual_seed(0)
    return Model(small(num_layers=2), {"mlm": HeadConfig(kind="mlm", tied=False)})


def test_norms_and_biases_do_not_decay() -> None:
    named = dict(model().named_parameters())
    decayed, free = parameter_groups(named.items(), 0.1)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)

    def names(group: dict[str, Any]) -> set[str]:
        ids = {id(parameter) for parameter in group["params"]}
        return {name for name, parameter in named.items() if id(parameter) in ids}

    assert names(decayed) | names(free) == named.keys()
    # A norm's weight and every bias have one dimension, and nothing else has.
    assert names(free) == {name for name, value in named.items() if value.ndim == 1}
    assert "embeddings.word.weight" in names(decayed)
    assert "heads.mlm.decoder.weight" in names(decayed)
    assert len(parameter_groups(named.items(), 0.0)) == 1


def gradient(net: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_adamw_is_the_published_formula() -> None:
    net = nn.ModuleDict({"dense": nn.Linear(3, 2), "norm": nn.LayerNorm(2)})
    config = OptimizerConfig(lr=0.1, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.2)
    optimizer = Optimizer(net, config)
    wanted = {name: value.detach().double() for name, value in net.named_parameters()}
    first = {name: torch.zeros_like(value) for name, value in wanted.items()}
    second = {name: torch.zeros_like(value) for name, value in wanted.items()}
    for step in range(4):
        gradient(net, step)
        lr = 0.1 / (step + 1)
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None
            g = parameter.grad.double()
            first[name] = 0.8 * first[name] + 0.2 * g
            second[name] = 0.95 * second[name] + 0.05 * g**2
            decay = 0.2 if name == "dense.weight" else 0.0
            size = (second[name] / (1 - 0.95 ** (step + 1))).sqrt() + 1e-3
            move = first[name] / (1 - 0.8 ** (step + 1)) / size
            wanted[name] = wanted[name] * (1 - lr * decay) - lr * move
        optimizer.step(lr)
        assert all(parameter.grad is None for parameter in net.parameters())
    for name, parameter in net.named_parameters():
        assert torch.allclose(parameter.double(), wanted[name], atol=1e-6), name


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("most", [None, 0.5, 1e6])
def test_clipping_is_scaling(
    own: bool, most: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not own:
        monkeypatch.setattr(kernels, "_kernels", lambda: None)
    elif kernels._kernels() is None:
        pytest.skip("enrobe-native is not installed")
    clipped, scaled = model(), model()
    runs = [Optimizer(net, OptimizerConfig()) for net in (clipped, scaled)]
    for step in range(3):
        for net in (clipped, scaled):
            gradient(net, step)
            # A frozen part takes no part.
            net.get_parameter("heads.mlm.bias").grad = None
        grads = [p.grad for p in scaled.parameters() if p.grad is not None]
        norm = float(torch.cat([grad.double().flatten() for grad in grads]).norm())
        assert float(runs[0].clip(most)) == pytest.approx(norm, rel=1e-5)
        for grad in grads:
            grad *= min(1.0, (most or math.inf) / norm)
        for run in runs:
            run.step(0.01)
    wanted = dict(scaled.named_parameters())
    for name, parameter in clipped.named_parameters():
        assert torch.allclose(parameter, wanted[name], atol=1e-6), name


def test_muon_moves_the_matrices_of_the_layers_alone() -> None:
    net = model()
    state = moved(net, "muon", 1)
    by_muon = {name.split("|")[0] for name in state if name.endswith("|momentum_buffer")}
    by_adamw = {name.split("|")[0] for name in state if name.endswith("|exp_avg")}
    shapes = {name: value.ndim for name, value in net.named_parameters()}
    assert by_muon == {n for n, d in shapes.items() if n.startswith("layers.") and d == 2}
    assert len(by_muon) == 2 * 6
    assert by_adamw == shapes.keys() - by_muon


def test_muons_update_is_orthogonal_and_of_adamws_size() -> None:
    net = model()
    before = net.get_parameter("layers.0.up.weight").detach().clone()
    moved(net, "muon", 1, weight_decay=0.0)
    update = (net.get_parameter("layers.0.up.weight").detach() - before) / 0.01
    # Liu et al. 2025: 0.2 is the root mean square of AdamW's updates.
    assert 0.15 < float(update.square().mean().sqrt()) < 0.25
    values = torch.linalg.svdvals(update)
    assert float(values.max() / values.min()) < 3


def moved(net: Model, name: str, steps: int, **settings: Any) -> dict[str, np.ndarray]:
    optimizer = Optimizer(net, OptimizerConfig(optimizer=name, **settings))  # type: ignore[arg-type]
    for step in range(steps):
        gradient(net, step)
        optimizer.step(0.01)
    return optimizer.state()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_restored_state_goes_on_bitwise(name: Any) -> None:
    whole, other = model(), model()
    moved(whole, name, 6)
    state = moved(other, name, 3)
    optimizer = Optimizer(other, OptimizerConfig(optimizer=name))
    optimizer.restore(state)
    again = optimizer.state()
    assert again.keys() == state.keys()
    assert all(np.array_equal(again[key], state[key]) for key in state)
    for step in range(3, 6):
        gradient(other, step)
        optimizer.step(0.01)
    wanted = dict(whole.named_parameters())
    for key, parameter in other.named_parameters():
        assert torch.equal(parameter, wanted[key]), key
    # What was handed over is not written into.
    wanted_state = moved(model(), name, 3)
    assert all(np.array_equal(state[key], wanted_state[key]) for key in state)


def test_a_state_covers_what_no_gradient_reached() -> None:
    net = model()
    optimizer = Optimizer(net, OptimizerConfig())
    gradient(net, 0)
    net.get_parameter("heads.mlm.bias").grad = None
    optimizer.step(0.01)
    state = optimizer.state()
    assert not any(name.startswith("heads.mlm.bias|") for name in state)
    other = Optimizer(model(), OptimizerConfig())
    other.restore(state)
    assert other.state().keys() == state.keys()


def test_what_does_not_train_is_left_alone() -> None:
    net = model()
    net.get_parameter("embeddings.word.weight").requires_grad_(False)
    assert "embeddings.word.weight|exp_avg" not in moved(net, "adamw", 1)


@pytest.mark.parametrize("name", ["elsewhere.weight|exp_avg", "exp_avg", "layers.0.up.bias|step"])
def test_another_models_state_is_refused(name: str) -> None:
    optimizer = Optimizer(model(), OptimizerConfig())
    with pytest.raises(ModelError, match="belongs to no parameter"):
        optimizer.restore({name: np.zeros((2, 3), np.float32)})


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_rates_by_parameter(name: Any) -> None:
    """A scale of 1/2 is a run at half the rate; 0 stays, without decay."""
    scaled, half, full = model(), model(), model()
    scales = {"layers.0.up.weight": 0.5, "layers.1.up.weight": 0.0}
    config = OptimizerConfig(lr=0.1, optimizer=name)
    runs = [Optimizer(scaled, config, scales), Optimizer(half, config), Optimizer(full, config)]
    start = half.get_parameter("layers.1.up.weight").clone()
    for step in range(3):
        for net, run, lr in zip((scaled, half, full), runs, (0.1, 0.05, 0.1), strict=True):
            generator = torch.Generator().manual_seed(step)
            for parameter in net.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            run.step(lr)
    for key, value in scaled.named_parameters():
        if key == "layers.1.up.weight":
            assert torch.equal(value, start)
        else:
            other = half if key in scales else full
            assert torch.equal(value, other.get_parameter(key)), key
