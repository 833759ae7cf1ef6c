"""What fine-tuning made, as it is handed back, printed and stored."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from enrobe.evaluate.seeds import Spread


@dataclass(frozen=True, kw_only=True)
class Gain:
    """One metric of a task that was trained alone, and together with the others."""

    alone: Spread
    together: Spread
    difference: Spread
    # together less alone, each seed by itself


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """What a run made; of several, the one with the best score.

    `scores` are {task: {metric: value}} on the dev rows at the best step, each task's first metric
    the one that it was chosen by, and `score` the mean of those; the model is that step's.
    """

    model: Path
    # a model folder; where a signal stopped the run, that of its last checkpoint
    step: int
    best_step: int
    finished: bool
    early: bool
    # whether patience ended it
    scores: Mapping[str, Mapping[str, float]]
    # empty where a signal stopped it
    score: float | None
    tokens: int
    # gone through in this call, by all runs
    seconds: float
    # of training in this call
    evaluation_seconds: float
    # of measuring
    seed: int
    spread: Mapping[str, Mapping[str, Spread]] = field(default_factory=dict)
    # {task: {metric: ...}} over `seeds`, where there are some
    gains: Mapping[str, Mapping[str, Gain]] = field(default_factory=dict)
    # {task: {metric: ...}}, with `baseline`

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        return {**asdict(self), "model": str(self.model)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any], model: Path) -> "FinetuneResult":
        """What a run of an earlier call made, of its `to_dict`; nothing of it was done in this one.

        Raises:
            TypeError, AttributeError: the record is none.
        """
        nothing = {"tokens": 0, "seconds": 0.0, "evaluation_seconds": 0.0}
        return cls(**{**record, **nothing, "model": model})
