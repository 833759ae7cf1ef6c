"""torch's AdamW, with its steps and the gradient's norm by enrobe-native."""

import math
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Floats = npt.NDArray[np.float32]


@dataclass(kw_only=True, eq=False)
class _Moved:
    """A parameter's memory, and that of its state, flat."""

    place: int
    # where the parameter was when this was made
    steps: Floats
    # (), a view of torch's count
    x: Floats
    mean: Floats
    square: Floats


class OwnAdamW:
    """Moves what a torch.optim.AdamW holds, whose state and groups stay where they are."""

    def __init__(self, kernels: ModuleType, optimizer: torch.optim.AdamW) -> None:
        self._kernels = kernels
        self._optimizer = optimizer
        self._moved: dict[int, _Moved] = {}
        self._factor = 1.0
        # what the next step multiplies gradients by

    def clip(self, most: float | None) -> Tensor:
        """The norm of the whole gradient; the next step scales it to have `most` at most."""
        groups = self._optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        grads = [one.grad.numpy().ravel() for one in parameters if one.grad is not None]
        norm = math.sqrt(self._kernels.sum_of_squares(grads, torch.get_num_threads()))
        # As torch has it. `step` does the scaling, and need not go through all of it for that.
        self._factor = 1.0 if most is None else min(1.0, most / (norm + 1e-6))
        return torch.tensor(norm)

    def step(self) -> None:
        """Move the weights and forget the gradient."""
        beta1, beta2 = self._optimizer.defaults["betas"]
        tensors, hows = [], []
        for group in self._optimizer.param_groups:
            keep = 1 - group["lr"] * group["weight_decay"]
            for parameter in group["params"]:
                grad = parameter.grad
                if grad is None:
                    continue
                moved = self._of(parameter)
                moved.steps += 1
                steps = float(moved.steps)
                hows.append((group["lr"] / (1 - beta1**steps), keep, (1 - beta2**steps) ** -0.5))
                tensors.append((moved.x, grad.numpy().ravel(), moved.mean, moved.square))
                parameter.grad = None
        eps, threads = self._optimizer.defaults["eps"], torch.get_num_threads()
        self._kernels.adamw(tensors, hows, beta1, beta2, eps, self._factor, threads)
        self._factor = 1.0

    def forget(self) -> None:
        """To be called when the optimiser's state is another."""
        self._moved.clear()

    def _of(self, parameter: nn.Parameter) -> _Moved:
        moved = self._moved.get(id(parameter))
        if moved is None or moved.place != parameter.data_ptr():
            state = self._optimizer.state[parameter]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            moved = self._moved[id(parameter)] = _Moved(
                place=parameter.data_ptr(),
                steps=state["step"].numpy(),
                x=_flat(parameter),
                mean=_flat(state["exp_avg"]),
                square=_flat(state["exp_avg_sq"]),
            )
        return moved


def _flat(x: Tensor) -> Floats:
    """The same memory, as one row."""
    flat: Floats = x.detach().view(-1).numpy()
    return flat
