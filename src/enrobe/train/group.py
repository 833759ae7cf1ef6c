"""The processes that train one model together, or the only one.

`torchrun --nproc-per-node N -m enrobe pretrain RECIPE` starts several; each computes its share of
every global batch, and gradients are summed. Loss is divided by the global count of targets, so the
result is that of one process, up to rounding.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from enrobe.errors import CallError

# Gradients go out in pieces of about this many numbers.
_BUCKET = 2**25


@dataclass(frozen=True)
class Group:
    """How many processes there are, which one this is, and the device that it uses."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: str) -> "Group":
        """The group that torchrun describes in the environment, or a process alone.

        Args:
            device: "auto" is a GPU where there is one; "cpu", "cuda".

        Raises:
            CallError: there is no GPU, and one is asked for.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise CallError("device is 'cuda', and PyTorch finds no GPU; fix: device = \"auto\"")
        cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls(0, 1, torch.device("cuda" if cuda else "cpu"))
        local = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(local)
        if not dist.is_initialized():
            # Counts are host numbers: gloo sums them without making a GPU wait.
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
        return cls(dist.get_rank(), size, local)

    @classmethod
    @contextmanager
    def joined(cls, device: str) -> "Iterator[Group]":
        """The group while a block runs; see `join`."""
        group = cls.join(device)
        try:
            yield group
        finally:
            group.leave()

    def leave(self) -> None:
        """End what `join` began."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            self.sum([0.0])

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sums over all processes, as double precision."""
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor)
        return [float(number) for number in tensor]

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """The sum over all processes of a tensor on the host, which may be overwritten."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Give every process the sum of all processes' gradients."""
        if self.size == 1:
            return
        reached = self.sum([parameter.grad is not None for parameter in parameters])
        bucket: list[Tensor] = []
        for parameter, count in zip(parameters, reached, strict=True):
            if not count:
                # As in one process, what no loss reached is not moved: no decay either.
                continue
            if parameter.grad is None:
                # A process whose share did not reach it takes part all the same.
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            if sum(grad.numel() for grad in bucket) >= _BUCKET:
                _sum(bucket)
                bucket = []
        if bucket:
            _sum(bucket)


def _sum(grads: Sequence[Tensor]) -> None:
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(flat)
    sizes = [grad.numel() for grad in grads]
    for grad, part in zip(grads, torch.split(flat, sizes), strict=True):
        grad.copy_(part.view_as(grad))
