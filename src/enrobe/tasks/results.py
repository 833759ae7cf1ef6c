"""What a user gets back: frozen, and one `to_dict()` away from JSON."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from enrobe.errors import TextError


@dataclass(frozen=True)
class _Result:
    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary whose keys are the field names; an error becomes its message."""
        return asdict(self)


@dataclass(frozen=True)
class Candidate(_Result):
    """One filling of one mask."""

    word: str
    # as a person would write it: no space, no marks of the vocabulary
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    # the vocabulary's own spelling
    probability: float
    # over the whole vocabulary; with `targets`, over the targets
    log_probability: float
    # natural log of the probability over the whole vocabulary, with `targets` too


@dataclass(frozen=True)
class Mask(_Result):
    """One mask of a text, with its fillings, best first (with `targets`: in the order given)."""

    start: int
    end: int
    # characters of the input
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class JointFill(_Result):
    """All masks of a text filled together."""

    words: tuple[str, ...]
    log_probability: float
    # natural log of the chain-rule product


@dataclass(frozen=True)
class Fill(_Result):
    """What `Model.fill` says of one text."""

    text: str
    masks: tuple[Mask, ...]
    joint: tuple[JointFill, ...] = ()
    # best first; empty unless asked for
    error: str | None = None

    @classmethod
    def failed(cls, text: str, error: TextError | str) -> Self:
        """The result of a text that cannot be processed."""
        return cls(text, (), (), str(error))


@dataclass(frozen=True)
class Score(_Result):
    """What `Model.score` says of one text."""

    text: str
    log_likelihood: float
    # natural log, summed over the tokens
    tokens: int
    # how many were scored; special tokens are not
    error: str | None = None

    @classmethod
    def failed(cls, text: str, error: TextError | str) -> Self:
        """The result of a text that cannot be processed."""
        return cls(text, float("nan"), 0, str(error))
