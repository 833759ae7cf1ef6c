"""Do the tasks pull the shared encoder the same way? The cosine between their gradients.

Yu et al. 2020 (arXiv:2001.06782, section 2) call a negative one a conflict.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from enrobe.train.group import Group


@dataclass(frozen=True, kw_only=True, eq=False)
class Cosines:
    """What of gradients is measured: see `gradient_cosines`."""

    every: int
    # steps
    names: Sequence[str]
    # of parts of the loss
    parameters: Sequence[Tensor]
    # those that the parts share


def gradient_cosines(
    losses: Sequence[Callable[[], Mapping[str, Tensor]]],
    parameters: Sequence[Tensor],
    group: Group,
    names: Sequence[str],
) -> dict[str, float]:
    """Cosines between the gradients of losses, each over a whole batch.

    Nothing is left behind: `.grad` stays as it is.

    Args:
        losses: for each part of this process's batch what computes its losses by name; parts add
            up.
        parameters: that the gradients are taken of; the same in every process.
        group: the processes that share the batch.
        names: of the losses, the same in every process.

    Returns:
        {"A and B": cosine} of all pairs of losses that reach the parameters.
    """
    # On the host: as many copies of the encoder as there are tasks may not fit beside it.
    flat = {name: torch.zeros(sum(p.numel() for p in parameters)) for name in names}
    for compute in losses:
        computed = {name: loss for name, loss in compute().items() if loss.grad_fn is not None}
        left = len(computed)
        for name, loss in computed.items():
            left -= 1
            grads = torch.autograd.grad(loss, parameters, retain_graph=left > 0, allow_unused=True)
            start = 0
            for parameter, grad in zip(parameters, grads, strict=True):
                if grad is not None:
                    flat[name][start : start + grad.numel()] += grad.reshape(-1).cpu()
                start += parameter.numel()
    summed = {name: group.sum_tensor(gradient) for name, gradient in flat.items()}
    norms = {name: float(gradient.norm()) for name, gradient in summed.items()}
    there = [name for name in names if norms[name] > 0]
    return {
        f"{a} and {b}": float(summed[a] @ summed[b]) / (norms[a] * norms[b])
        for a, b in combinations(there, 2)
    }
