"""What is added up between two lines of a run's log, and what the device could do at most."""

import math
import time
from collections.abc import Mapping

import torch


class Stretch:
    """The steps between two lines of the log."""

    def __init__(self) -> None:
        self.steps = 0
        self.seconds = self.tokens = self.flops = 0.0
        self.last: dict[str, float] = {}
        self.sums: dict[str, float] = {}

    def add(self, values: Mapping[str, float], tokens: float, flops: float) -> None:
        """One step's."""
        self.steps += 1
        self.tokens += tokens
        self.flops += flops
        self.last = dict(values)
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def numbers(self, peak: float) -> dict[str, float]:
        """Means over the steps; the learning rate is the last step's."""
        means = {name: value / self.steps for name, value in self.sums.items()}
        return {
            **means,
            "lr": self.last["lr"],
            "tokens_per_second": self.tokens / self.seconds,
            "utilisation": self.flops / self.seconds / peak,
        }


def peak(device: torch.device, half: bool) -> float:
    """This device's own matrix products, operations a second: the best of a few."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if half else torch.float32
    # Random numbers: a GPU multiplies ones faster, since fewer bits change.
    matrix = torch.randn(size, size, device=device).to(dtype)
    best = math.inf
    for _ in range(10):
        began = time.perf_counter()
        matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
