"""What an encoder and its heads are, whatever family's spelling they were read from.

Frozen, keyword-only and checked: a value that is wrong is named together with what is allowed.
"""

from dataclasses import dataclass, fields
from typing import Literal

from enrobe.errors import ModelError, show

HeadKind = Literal["mlm", "classify", "multilabel", "regress", "tag", "answer"]
HEAD_KINDS: tuple[HeadKind, ...] = ("mlm", "classify", "multilabel", "regress", "tag", "answer")
SEQUENCE_KINDS: tuple[HeadKind, ...] = ("classify", "multilabel", "regress")

# Upper limits keep a hostile config.json from making us loop or allocate; no real model is near.
_LIMITS: dict[str, tuple[int, int]] = {
    "vocab_size": (1, 10_000_000),
    "hidden_size": (1, 65_536),
    "num_layers": (1, 1_000),
    "num_heads": (1, 4_096),
    "intermediate_size": (1, 1_000_000),
    "max_positions": (1, 10_000_000),
    "position_offset": (0, 1_000_000),
    "type_vocab_size": (0, 1_000),
    "pad_id": (0, 10_000_000),
}
_SHARES = ("hidden_dropout", "attention_dropout")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The sizes of one encoder: post-norm, absolute positions, exact GELU.

    Raises:
        ModelError: a size is out of range, or two sizes contradict each other.
    """

    family: str
    # a key of `dialects.DIALECTS`; nothing but spelling follows from it
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int
    # rows of the position table, the unused ones before `position_offset` included
    position_offset: int = 0
    # position id of a row's first token: padding_idx + 1 in RoBERTa's kin, 0 in BERT's
    type_vocab_size: int = 0
    # rows of the token-type table; 0: the family has none
    pad_id: int = 1
    layer_norm_eps: float = 1e-5
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_range: float = 0.02
    # standard deviation of the normal distribution that new weights are drawn from

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ModelError(
                    f"{name} is {show(value)}; allowed: a whole number from {low} to {high}"
                )
        for name in _SHARES:
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < 1:
                raise ModelError(f"{name} is {show(value)}; allowed: from 0 up to 1")
        for name in ("layer_norm_eps", "initializer_range"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < 1:
                raise ModelError(f"{name} is {show(value)}; allowed: above 0, below 1")
        if self.hidden_size % self.num_heads:
            raise ModelError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if self.pad_id >= self.vocab_size:
            raise ModelError(f"pad_id {self.pad_id} is not below vocab_size {self.vocab_size}")
        if self.max_tokens < 3:
            raise ModelError(
                f"max_positions {self.max_positions} leaves {self.max_tokens} positions after "
                f"position_offset {self.position_offset}; allowed: 3 or more"
            )

    @property
    def max_tokens(self) -> int:
        """The longest row in tokens, specials included: 514 RoBERTa positions serve 512."""
        return self.max_positions - self.position_offset

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """One head on an encoder: what it answers, and how its published form is built.

    Raises:
        ModelError: a value that is not allowed, labels that are missing or repeated, or what its
            kind has no use for.
    """

    kind: HeadKind
    labels: tuple[str, ...] = ()
    # one a class or tag, in the order of the outputs; empty for mlm and answer
    activation: Literal["tanh", "relu"] = "tanh"
    # between the two layers of a sequence head
    input_dropout: float = 0.0
    # on the first token's vector, before the first layer of a sequence head
    dropout: float = 0.1
    # before the last layer
    tied: bool = True
    # mlm: the decoder is the word-embedding table
    temperature: float = 1.0
    # logits are divided by it before they become probabilities (Guo et al. 2017)
    thresholds: tuple[float, ...] = ()
    # multilabel: one a label; a label is given from this probability on; (): 0.5 for all
    no_answer: float | None = None
    # answer: "" is the answer where its probability against the best span's is above this; None:
    # there is always an answer
    text: tuple[str, ...] = ()
    # the columns that it was trained on: one, or the two of a pair; (): not known
    metric: str | None = None
    # what it was chosen by
    limit: int | None = None
    # the longest row in tokens that it was trained on; None: the model's own

    def __post_init__(self) -> None:
        if self.kind not in HEAD_KINDS:
            raise ModelError(f"head kind {show(self.kind)}; allowed: {', '.join(HEAD_KINDS)}")
        if self.kind in (*SEQUENCE_KINDS, "tag") and not self.labels:
            raise ModelError(f"a {self.kind} head has no labels")
        if len(set(self.labels)) < len(self.labels):
            raise ModelError(f"a {self.kind} head has the same label twice: {show(self.labels)}")
        if not (_is_number(self.temperature) and 1e-6 <= self.temperature <= 1e6):
            raise ModelError(f"temperature is {show(self.temperature)}; allowed: 1e-6 to 1e6")
        if self.kind in ("regress", "mlm") and self.temperature != 1:
            raise ModelError(f"temperature is {self.temperature}; a {self.kind} head has none")
        shares = [*self.thresholds, *([] if self.no_answer is None else [self.no_answer])]
        if not all(_is_number(share) and 0 <= share <= 1 for share in shares):
            raise ModelError(f"thresholds or no_answer {show(shares)}; allowed: from 0 to 1")
        if self.thresholds and self.kind != "multilabel":
            raise ModelError(f"thresholds are for multilabel; the head is of kind {self.kind}")
        if self.thresholds and len(self.thresholds) != len(self.labels):
            raise ModelError(f"{len(self.thresholds)} thresholds and {len(self.labels)} labels")
        if self.no_answer is not None and self.kind != "answer":
            raise ModelError(f"no_answer is for answer; the head is of kind {self.kind}")
        if len(self.text) > 2:
            raise ModelError(f"text names {len(self.text)} columns; allowed: 1 or 2")
        if self.limit is not None and (type(self.limit) is not int or self.limit < 3):
            raise ModelError(f"limit is {show(self.limit)}; allowed: 3 or more")

    @property
    def width(self) -> int:
        """Number of outputs a row, or a token (tag, answer); 0 for mlm: the vocabulary."""
        return 2 if self.kind == "answer" else len(self.labels)

    @property
    def is_sequence(self) -> bool:
        """True where the head answers once a row, from the row's first token."""
        return self.kind in SEQUENCE_KINDS


def check_head_name(name: str) -> None:
    """Raise ModelError for a name that no head can have: it is part of its tensors' names."""
    if not isinstance(name, str) or not name or len(name) > 100 or not name.isprintable():
        raise ModelError(f"a head is called {show(name)}; allowed: 1 to 100 printable characters")
    if "." in name or "/" in name:
        raise ModelError(f"a head is called {show(name)}; allowed: a name without dot and slash")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def describe(config: EncoderConfig) -> dict[str, object]:
    """The fields of a configuration, for `info` and for tests."""
    return {field.name: getattr(config, field.name) for field in fields(config)}
