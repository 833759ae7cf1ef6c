"""What an engine is: a ragged batch in, arrays out.

Legend: T tokens, B rows, H hidden, V vocabulary, M asked positions, C outputs of a head.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from enrobe.config import EncoderConfig, HeadConfig
from enrobe.text.ragged import Ids, Ragged

Array = npt.NDArray[np.float32]

BUDGET = 1024
"""Places a batch: where the products of a base model reach their full rate on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which outputs are wanted; nothing else is computed.

    layers: hidden states, 0 for the embeddings up to the number of layers for the last.
    heads: names of heads.
    picked: the last layer is computed, and given, at the asked positions alone; without heads.
    """

    layers: tuple[int, ...] = ()
    heads: tuple[str, ...] = ()
    picked: bool = False


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What was asked for.

    Shapes: hidden[layer] (T, H), the last one (M, H) if picked; heads[name] (B, C) of a sequence
    head, (T, C) of a tag or answer head, (M, V) logits of a masked-LM head at the asked positions.
    """

    hidden: Mapping[int, Array] = field(default_factory=dict)
    heads: Mapping[str, Array] = field(default_factory=dict)


class Engine(Protocol):
    """Runs one model. `run` may be called from several threads."""

    name: str
    precision: str
    budget: int
    # places a batch that it is quickest with
    config: EncoderConfig
    heads: Mapping[str, HeadConfig]

    def run(self, batch: Ragged, request: Request, at: Ids | None = None) -> Outputs:
        """Compute what is asked for.

        Args:
            batch: rows of at most `config.max_tokens` tokens.
            request: layers and heads.
            at: positions (M,) in the flat batch, ascending, for the masked-LM head or a picked
                last layer; needed by these, ignored without.
        """


@runtime_checkable
class Ranks(Protocol):
    """An engine that can tell the likeliest entries without handing all logits over."""

    def best(self, batch: Ragged, head: str, at: Ids, count: int) -> tuple[Ids, Array]:
        """The likeliest entries at each asked position, and their log-probabilities.

        Shapes: (M, count) both; best first, of equal ones the lower id first.
        """


@runtime_checkable
class Sums(Protocol):
    """An engine that can sum hidden states without handing all of them over."""

    budget: int

    def sums(self, batch: Ragged, layers: Sequence[int], spans: Ids) -> list[Array]:
        """Of each layer every row's sum over its tokens from a first to before an end.

        Shapes: spans (B, 2), positions in the flat batch; the sums (B, H).
        """


def allowed_processors() -> int:
    """How many this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def allowed_threads() -> int:
    """As many as $OMP_NUM_THREADS says, else as the processors that this process may run on."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else allowed_processors()


def fewer_threads() -> int | None:
    """The allowed ones where the machine has more processors; None: an engine takes its own."""
    count = allowed_threads()
    return count if count < (os.cpu_count() or 1) else None


def check(batch: Ragged, request: Request, at: Ids | None, engine: Engine) -> None:
    """Assert what callers above must have made sure of."""
    config = engine.config
    assert len(batch) > 0 and int(batch.lengths.max()) <= config.max_tokens
    assert 0 <= int(batch.ids.min()) and int(batch.ids.max()) < config.vocab_size
    assert all(0 <= layer <= config.num_layers for layer in request.layers)
    assert all(name in engine.heads for name in request.heads)
    assert not (request.picked and request.heads)
    if request.picked or any(engine.heads[name].kind == "mlm" for name in request.heads):
        assert at is not None and len(at) > 0
        assert (np.diff(at) > 0).all() and 0 <= at[0] and at[-1] < len(batch.ids)


def picks(heads: Mapping[str, HeadConfig], request: Request, last: int) -> str | None:
    """The positions ("at" or "firsts", of rows) to which the last layer can be confined, or None.

    Where only some positions (masks, first tokens, those asked for) are read after the last layer,
    its queries, output and feed-forward are wanted there alone; keys and values everywhere.
    """
    if request.picked:
        return "at"
    if last in request.layers or not request.heads:
        return None
    kinds = [heads[name] for name in request.heads]
    if all(head.kind == "mlm" for head in kinds):
        return "at"
    if all(head.is_sequence for head in kinds):
        return "firsts"
    return None
