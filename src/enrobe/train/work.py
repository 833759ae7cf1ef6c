"""What the loop trains, and what its kinds share.

Legend: T tokens, B rows.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from enrobe.config import EncoderConfig
from enrobe.errors import CallError, EnrobeError
from enrobe.text.ragged import Ids, Ragged


@dataclass(frozen=True, kw_only=True, eq=False)
class Micro:
    """Rows that go through the model at once, and what the loss needs besides.

    `counts` are the targets of each objective; a loss is divided by their sum over the whole
    global batch. `arrays` belong to the task.
    """

    batch: Ragged
    counts: Mapping[str, float]
    flops: float
    # of its forward and backward products
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results on held-out data: {set: {measure: value}}, and the score, higher is better."""

    results: Mapping[str, Mapping[str, float]]
    score: float | None


class Work(Protocol):
    """What is trained: the loop knows nothing else of a task."""

    @property
    def model(self) -> nn.Module:
        """All that is trained."""

    @property
    def objectives(self) -> Sequence[str]:
        """Names of the counts of targets, the same in every process."""

    def batch(self, step: int) -> Sequence[Micro]:
        """This process's share of the global batch of a step; a function of the step alone."""

    def loss(
        self, micro: Micro, totals: Mapping[str, float]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss to descend, over global totals of targets, and what adds up to be logged."""

    def evaluate(self) -> Evaluation:
        """Measure on held-out data; every process calls it."""

    def write(self, folder: Path) -> None:
        """Write the model to a new folder."""

    def read(self, folder: Path) -> None:
        """Take over the weights that `write` wrote."""


def named(error: OSError, folder: Path) -> EnrobeError:
    """A file's error as one of ours, which names the file, or else the folder of the run."""
    if isinstance(error, EnrobeError):
        return error
    return CallError(f"{error.filename or folder}: {error.strerror or error}")


def say(text: str) -> None:
    """A line for whoever watches; of several processes the first one speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(f"enrobe: {text}", file=sys.stderr, flush=True)


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows in their order, in groups of at most `budget` tokens, or of one row.

    Args:
        lengths: of the rows, in tokens.
        budget: tokens that go through the model at once.

    Returns:
        The numbers of the rows of each group.
    """
    groups: list[list[int]] = []
    tokens = 0
    for index, length in enumerate(lengths):
        if not groups or tokens + length > budget:
            groups.append([])
            tokens = 0
        groups[-1].append(index)
        tokens += length
    return groups


def encoder_flops(config: EncoderConfig, lengths: Ids, *, read: int | None = None) -> float:
    """Operations of the layers' matrix products, forward; one of (a, b) and (b, c) is 2abc.

    Args:
        config: the encoder's.
        lengths: of the rows (B,).
        read: positions at which the last layer's queries, output and feed-forward are run; None:
            all of them.
    """
    tokens = float(lengths.sum())
    last = tokens if read is None else float(read)
    hidden, full = config.hidden_size, config.num_layers - 1
    pairs = float((lengths.astype(np.float64) ** 2).sum())
    keys_and_values = tokens * 2 * hidden * hidden
    rest = 2 * hidden * (hidden + config.intermediate_size)
    layers = (full + 1) * keys_and_values + (full * tokens + last) * rest
    return 2 * (layers + 2 * hidden * pairs * (full + last / tokens))


def masked_lm_flops(config: EncoderConfig, lengths: Ids, masked: int) -> float:
    """Operations, forward, of an encoder whose masked-LM head reads so many positions."""
    hidden = config.hidden_size
    head = 2 * masked * hidden * (hidden + config.vocab_size)
    return encoder_flops(config, lengths, read=masked) + head


def model_arrays(model: nn.Module) -> dict[str, npt.NDArray[Any]]:
    """A model's tensors by name, on the host."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
