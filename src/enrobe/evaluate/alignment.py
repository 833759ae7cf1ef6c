"""How well the vectors of one model find those of another: before and after they are aligned.

Legend: N pairs, D numbers of a vector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from enrobe.engines.base import Array
from enrobe.evaluate.similarity import distinct, search_pairs

NEIGHBOURS = 10
"""Of CSLS, as its paper has it."""


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Accuracy and mean reciprocal rank; forward is from the model's texts to the target's."""

    accuracy_forward: float
    accuracy_backward: float
    reciprocal_rank_forward: float
    reciprocal_rank_backward: float

    @property
    def accuracy(self) -> float:
        """The mean of both directions."""
        return (self.accuracy_forward + self.accuracy_backward) / 2


@dataclass(frozen=True, kw_only=True)
class LanguageAlignment:
    """Held-out pairs of one language, found among themselves."""

    pairs: int
    before: Retrieval | None
    # None where the two spaces have vectors of unlike lengths
    after: Retrieval
    csls: Retrieval
    # after, with CSLS in place of the cosine

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        return asdict(self)


def score_alignment(
    pairs: Sequence[tuple[str, str]],
    languages: Sequence[str],
    before_ND: Array,
    after_ND: Array,
    target_ND: Array,
) -> dict[str, LanguageAlignment]:
    """Retrieval of every language's pairs, in the order in which the languages come.

    Args:
        pairs: the texts; equal ones are one.
        languages: of each pair.
        before_ND, after_ND, target_ND: vectors of the first texts before and after they are moved,
            and of the second ones.
    """
    out = {}
    for name in dict.fromkeys(languages):
        rows = np.flatnonzero([own == name for own in languages]).tolist()
        some = [pairs[row] for row in rows]
        alike = before_ND.shape[1] == target_ND.shape[1]
        out[name] = LanguageAlignment(
            pairs=len(rows),
            before=_retrieval(some, before_ND[rows], target_ND[rows], 0) if alike else None,
            after=_retrieval(some, after_ND[rows], target_ND[rows], 0),
            csls=_retrieval(some, after_ND[rows], target_ND[rows], NEIGHBOURS),
        )
    return out


def mean_alignment(languages: Mapping[str, LanguageAlignment]) -> LanguageAlignment:
    """The mean over languages, each counting once."""

    def mean(name: str) -> Retrieval:
        found = [getattr(one, name) for one in languages.values()]
        parts = Retrieval.__dataclass_fields__
        return Retrieval(**{p: float(np.mean([getattr(one, p) for one in found])) for p in parts})

    some = next(iter(languages.values()))
    return LanguageAlignment(
        pairs=sum(one.pairs for one in languages.values()),
        before=mean("before") if some.before is not None else None,
        after=mean("after"),
        csls=mean("csls"),
    )


def _retrieval(
    pairs: Sequence[tuple[str, str]], model_ND: Array, target_ND: Array, neighbours: int
) -> Retrieval:
    # A text that both columns hold has two vectors, the model's and the target's.
    texts, places = distinct([(f"a{a}", f"b{b}") for a, b in pairs])
    vectors = np.empty((len(texts), model_ND.shape[1]), np.float32)
    vectors[places[:, 0]] = model_ND
    vectors[places[:, 1]] = target_ND
    there = search_pairs(vectors, places, "cosine", neighbours=neighbours)
    back = search_pairs(vectors, places[:, ::-1], "cosine", neighbours=neighbours)
    return Retrieval(
        accuracy_forward=float(there.first.mean()),
        accuracy_backward=float(back.first.mean()),
        reciprocal_rank_forward=float(there.reciprocal.mean()),
        reciprocal_rank_backward=float(back.reciprocal.mean()),
    )
