"""What a user gets back: frozen, and one `to_dict()` away from JSON."""

from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

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


@dataclass(frozen=True, eq=False)
class TokenVectors(_Result):
    """What `Model.tokens` says of one text: a vector for each of its tokens, or of its words."""

    tokens: tuple[str, ...]
    # the vocabulary's own spelling; of words: as they stand in the text
    offsets: tuple[tuple[int, int], ...]
    # start and end in characters of the text, without the spaces around a token
    vectors: npt.NDArray[np.float32]
    # (T, H)
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary whose keys are the field names; the vectors become lists."""
        return {**vars(self), "vectors": self.vectors.tolist()}

    @classmethod
    def failed(cls, text: str, error: TextError | str) -> Self:
        """The result of a text that cannot be processed."""
        return cls((), (), np.empty((0, 0), np.float32), str(error))


@dataclass(frozen=True)
class Prediction(_Result):
    """What a head says of one text, or of one pair."""

    head: str
    # its name
    label: str | tuple[str, ...] | None
    # classify: the likeliest; multilabel: all that reach their thresholds; regress: None
    probability: float | None
    # classify: the label's
    probabilities: dict[str, float]
    # each label's: of classify they sum to 1, of multilabel each stands alone; regress: none
    value: float | dict[str, float] | None
    # regress: the number; a number a label where the head has several
    cut: int = 0
    # tokens that were left out because a row had no room for them
    error: str | None = None

    @classmethod
    def failed(cls, head: str, error: TextError | str) -> Self:
        """The result of a text that cannot be processed."""
        return cls(head, None, None, {}, None, 0, str(error))


@dataclass(frozen=True)
class Span(_Result):
    """A labelled part of a text."""

    start: int
    end: int
    # characters of the text, the end exclusive; of given words: the first one, the one after
    label: str
    text: str
    # text[start:end]; of given words, joined by single spaces
    probability: float
    # the mean over its words
    error: str | None = None

    @classmethod
    def failed(cls, text: str, error: TextError | str) -> Self:
        """What stands for the spans of a text that cannot be processed."""
        return cls(0, 0, "", "", float("nan"), str(error))


@dataclass(frozen=True)
class Answer(_Result):
    """One answer to a question: a part of its context, or nothing."""

    text: str
    # context[start:end]; "" says that the context has no answer
    start: int
    end: int
    # characters of the context; both 0 for no answer
    probability: float
    # that it begins there, times that it ends there
    error: str | None = None

    @classmethod
    def failed(cls, text: str, error: TextError | str) -> Self:
        """What stands for the answers to a question that cannot be processed."""
        return cls("", 0, 0, float("nan"), str(error))
