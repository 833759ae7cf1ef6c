"""How far a score rests on the seed: several runs' mean, and where the mean of all seeds lies."""

from collections.abc import Sequence
from dataclasses import dataclass

from enrobe.errors import MissingExtraError
from enrobe.evaluate.intervals import CONFIDENCE


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A number that every seed gives once.

    `low` and `high` bound the mean over all seeds by Student's t with one degree of freedom less
    than there are runs, as if seeds' scores were normally distributed; None for a single run.
    """

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]
    # in the order of the seeds

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of one value or more.

        Raises:
            MissingExtraError: of several values, without scipy.
        """
        count = len(values)
        mean = sum(values) / count
        if count == 1:
            return cls(mean=mean, low=None, high=None, values=tuple(values))
        variance = sum((value - mean) ** 2 for value in values) / (count - 1)
        half = _quantile(count - 1) * (variance / count) ** 0.5
        return cls(mean=mean, low=mean - half, high=mean + half, values=tuple(values))


def _quantile(degrees: int) -> float:
    """Of Student's t, at which the two tails together have what CONFIDENCE leaves."""
    try:
        from scipy.special import stdtrit
    except ImportError:
        raise MissingExtraError("scipy", "train", "an interval over seeds") from None
    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))
