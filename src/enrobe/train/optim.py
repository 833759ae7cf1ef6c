"""Optimisers and learning-rate schedules.

AdamW    Loshchilov and Hutter 2019, arXiv:1711.05101; betas, epsilon and decay of RoBERTa (Liu
         et al. 2019, table 9)
Muon     Jordan et al. 2024; with the update's size matched to AdamW's (Liu et al. 2025,
         arXiv:2502.16982), so that one learning rate serves both
WSD      warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395)
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from enrobe.errors import CallError, ModelError, nearest, show
from enrobe.nn.kernels import kernels_for
from enrobe.train.own_adamw import OwnAdamW

OptimizerName = Literal["adamw", "muon"]
ScheduleName = Literal["linear", "wsd", "constant"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How the weights are moved.

    Raises:
        CallError: a value is not allowed.
    """

    optimizer: OptimizerName = "adamw"
    # muon: the layers' matrices by Muon, all else by AdamW
    lr: float = 6e-4
    # at its peak
    schedule: ScheduleName = "linear"
    # after the warm-up: linear down to 0; wsd: constant, then linear to 0; constant
    warmup: int | float = 0.06
    # steps, or below 1 a share of all steps: the rate rises linearly from 0
    decay: int | float = 0.2
    # wsd: its last steps, or below 1 a share of all steps
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    # on everything but norms and biases
    clip: float | None = 1.0
    # largest norm of the whole gradient; None: as it is

    def __post_init__(self) -> None:
        for name, allowed in (
            ("optimizer", get_args(OptimizerName)),
            ("schedule", get_args(ScheduleName)),
        ):
            value = getattr(self, name)
            if value not in allowed:
                hint = nearest(str(value), allowed)
                raise CallError(f"{name} is {show(value)}; allowed: {', '.join(allowed)}{hint}")
        for name in ("lr", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise CallError(f"{name} is {show(getattr(self, name))}; allowed: above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise CallError(f"weight_decay is {show(self.weight_decay)}; allowed: 0 or more")
        for name in ("warmup", "decay"):
            value = getattr(self, name)
            if not value >= 0 or (isinstance(value, float) and value >= 1):
                what = "a whole number of steps, or a share of all steps below 1"
                raise CallError(f"{name} is {show(value)}; allowed: {what}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise CallError(f"betas are {show(self.betas)}; allowed: from 0 up to 1")
        if self.clip is not None and not self.clip > 0:
            raise CallError(f"clip is {show(self.clip)}; allowed: above 0")

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0, of a run of so many steps."""
        warmup, decay = (
            round(value * steps) if isinstance(value, float) else value
            for value in (self.warmup, self.decay)
        )
        if step < warmup:
            return self.lr * (step + 1) / warmup
        if self.schedule == "constant":
            return self.lr
        down = steps - warmup if self.schedule == "linear" else min(decay, steps - warmup)
        return self.lr * min(1.0, max(0, steps - step) / max(1, down))


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    lr_scales: Mapping[str, float] | None = None,
) -> list[dict[str, object]]:
    """Decay on all but norms and biases, as BERT and RoBERTa have it; like rates together.

    lr_scales: by a parameter's name what its learning rate is multiplied by; 1 where none is given.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {
        (weight_decay, 1.0): [],
        (0.0, 1.0): [],
    }
    for name, parameter in named:
        free = name.endswith(("bias", "norm.weight"))
        key = (0.0 if free else weight_decay, (lr_scales or {}).get(name, 1.0))
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": some, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), some in groups.items()
        if some
    ]


class Optimizer:
    """One or two of torch's optimisers behind one learning rate, with a state of named tensors."""

    def __init__(
        self,
        model: nn.Module,
        config: OptimizerConfig,
        lr_scales: Mapping[str, float] | None = None,
    ) -> None:
        """Cover every parameter of a model that trains; `lr_scales` as in `parameter_groups`.

        Parameters that need no gradient are frozen.
        """
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._names = {id(parameter): name for name, parameter in named.items()}
        self.parameters = list(named.values())
        matrices = {
            name: parameter
            for name, parameter in named.items()
            if config.optimizer == "muon" and name.startswith("layers.") and parameter.ndim == 2
        }
        rest = ((n, p) for n, p in named.items() if n not in matrices)
        adamw = torch.optim.AdamW(
            parameter_groups(rest, config.weight_decay, lr_scales),
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            fused=True,
        )
        self._parts: list[torch.optim.Optimizer] = [adamw]
        fit = all(kernels_for(x) and x.is_contiguous() for x in self.parameters)
        own = kernels_for(self.parameters[0]) if self.parameters and fit and not matrices else None
        self._own = None if own is None else OwnAdamW(own, adamw)
        if matrices:
            self._parts.append(
                torch.optim.Muon(
                    parameter_groups(matrices.items(), config.weight_decay, lr_scales),
                    lr=config.lr,
                    weight_decay=config.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )

    def clip(self, most: float | None) -> Tensor:
        """The norm of the whole gradient, which is scaled to have `most` at most."""
        if self._own is None:
            return torch.nn.utils.clip_grad_norm_(
                self.parameters, math.inf if most is None else most
            )
        return self._own.clip(most)

    def step(self, lr: float) -> None:
        """Move the weights and forget the gradient."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = lr * group["lr_scale"]
            if self._own is None:
                part.step()
                part.zero_grad(set_to_none=True)
            else:
                self._own.step()

    def state(self) -> dict[str, np.ndarray]:
        """Its state as host arrays: PARAMETER|KEY."""
        found = {}
        for part in self._parts:
            for parameter, values in part.state.items():
                for key, value in values.items():
                    assert isinstance(value, Tensor)
                    name = f"{self._names[id(parameter)]}|{key}"
                    found[name] = value.detach().cpu().numpy()
        return found

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` gave.

        Raises:
            ModelError: it is that of another model.
        """
        shapes = {self._names[id(parameter)]: parameter.shape for parameter in self.parameters}
        by_name: dict[str, dict[str, Tensor]] = {}
        for name, array in state.items():
            parameter, _, key = name.rpartition("|")
            if array.shape not in ((), shapes.get(parameter)):
                raise ModelError(f"{show(name)} of shape {array.shape} belongs to no parameter")
            by_name.setdefault(parameter, {})[key] = torch.tensor(array)
        for part in self._parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    values = by_name.get(self._names[id(parameter)], {})
                    part.state[parameter] = {
                        key: value.to(parameter.device) for key, value in values.items()
                    }
        if self._own is not None:
            self._own.forget()
