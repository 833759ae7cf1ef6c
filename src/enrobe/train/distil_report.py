"""What a student has kept of its teacher, and what it costs."""

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from enrobe import checkpoint
from enrobe.atomic import replace_file
from enrobe.engines.base import BUDGET, Request
from enrobe.engines.onnx import OnnxEngine
from enrobe.text.ragged import Ids, Ragged, plan

Scores = Mapping[str, Mapping[str, float]]

# Enough for a figure that repeats, little enough to wait for.
_TOKENS = 4_096
_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two."""

    parameters: int
    tokens_per_second: float
    # of the onnx engine, float32, on this machine
    scores: Scores
    # {task or set of texts: {measure: value}} on held-out data


@dataclass(frozen=True, kw_only=True)
class DistilResult:
    """What a run made.

    `kept` is, for each measure, the student's score over the teacher's; there is none for a
    measure that is a loss, or where the teacher's score is 0.
    """

    model: Path
    # a model folder; where a signal stopped the run, that of its last checkpoint
    step: int
    best_step: int
    finished: bool
    student: Side | None
    # None, as the teacher, where a signal stopped the run
    teacher: Side | None
    tokens: int
    # gone through in this call
    seconds: float
    # of training in this call
    teacher_seconds: float
    # of answers that were computed and kept in this call
    kept: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    faster: float | None = None
    # how many times
    smaller: float | None = None
    # how many times, in parameters

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        return {**asdict(self), "model": str(self.model)}

    def compared(self) -> list[tuple[str, str, str, str]]:
        """What is compared, the teacher's, the student's, how they relate; of a finished run."""
        student, teacher = self.student, self.teacher
        if student is None or teacher is None:
            return []
        rows = []
        for name, measures in teacher.scores.items():
            for measure, value in measures.items():
                share = self.kept.get(name, {}).get(measure)
                note = "" if share is None else f"{share:.1%} kept"
                label = f"{name} {measure.replace('_', ' ')}"
                rows.append((label, f"{value:.4f}", f"{student.scores[name][measure]:.4f}", note))
        rows.append(
            (
                "parameters",
                f"{teacher.parameters:,}",
                f"{student.parameters:,}",
                f"{self.smaller:.2f} times fewer",
            )
        )
        rows.append(
            (
                "tokens a second",
                f"{teacher.tokens_per_second:,.0f}",
                f"{student.tokens_per_second:,.0f}",
                f"{self.faster:.2f} times as many",
            )
        )
        return rows


# Of which less is better: no share of them is kept.
_LOSSES = ("loss", "perplexity")


def kept_shares(student: Scores, teacher: Scores) -> dict[str, dict[str, float]]:
    """The student's scores over the teacher's."""
    return {
        name: {
            measure: student[name][measure] / value
            for measure, value in own.items()
            if measure not in _LOSSES and value
        }
        for name, own in teacher.items()
    }


def parameters(read: checkpoint.Checkpoint) -> int:
    """How many numbers a model has; a pooler that no answer reads is left out."""
    shapes = checkpoint.shapes(read.config, read.heads)
    sizes = [
        int(np.prod(shape)) for name, shape in shapes.items() if not name.startswith("pooler.")
    ]
    return sum(sizes)


def speeds(folders: Sequence[Path], rows: Sequence[Ids]) -> list[float]:
    """Tokens a second of models on the same rows, in turn; medians of a few rounds.

    All heads are asked but masked LM's; a model without another gives its last layer.

    Args:
        folders: of the models.
        rows: ids of the first so many of which are read.
    """
    taken: list[Ids] = []
    for row in rows:
        if sum(map(len, taken)) >= _TOKENS:
            break
        taken.append(row)
    groups = plan([len(row) for row in taken], budget=BUDGET)
    batches = [Ragged.from_rows([taken[i] for i in group]) for group in groups]
    engines = [OnnxEngine(checkpoint.read(folder)) for folder in folders]
    requests = []
    for engine in engines:
        heads = tuple(name for name, head in engine.heads.items() if head.kind != "mlm")
        layers = () if heads else (engine.config.num_layers,)
        requests.append(Request(layers=layers, heads=heads))
    seconds: list[list[float]] = [[] for _ in engines]
    # The first round builds the sessions and is not counted.
    for number in range(_ROUNDS + 1):
        for engine, request, times in zip(engines, requests, seconds, strict=True):
            began = time.perf_counter()
            for batch in batches:
                engine.run(batch, request)
            if number:
                times.append(time.perf_counter() - began)
    tokens = sum(map(len, taken))
    return [tokens / statistics.median(times) for times in seconds]


def write_report(folder: Path, result: DistilResult) -> None:
    """report.json and report.md in the folder of a run."""
    replace_file(folder / "report.json", json.dumps(result.to_dict(), indent=2) + "\n")
    lines = ["| | teacher | student | |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in result.compared()]
    replace_file(folder / "report.md", "\n".join(lines) + "\n")
