"""Which layer and pooling know most about a task: a score for each.

Classes are told apart by a probe (Alain and Bengio 2016; Conneau and Kiela 2018, SentEval); scored
pairs by Spearman's correlation of cosines, which needs no training.

Legend: L layers, P poolings, N rows, H hidden.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from enrobe.engines.base import Array
from enrobe.errors import CallError, TextError, show
from enrobe.evaluate.files import pairs, scored
from enrobe.evaluate.intervals import Interval, Measure, difference, intervals, mean, plain
from enrobe.evaluate.metrics import spearman
from enrobe.evaluate.probes import (
    POOLS,
    PROBE_C,
    check_probe,
    chunk_size,
    pair_features,
    pooled_layers,
    probe,
    stored_layers,
)
from enrobe.evaluate.rows import Rows, read_rows
from enrobe.evaluate.similarity import Progress, distinct, paired_similarity
from enrobe.sentence_folder import PoolName
from enrobe.tasks.model import Model

_Place = tuple[int, PoolName]


@dataclass(frozen=True)
class LayerScore:
    """What one layer and pooling scored."""

    layer: int
    # 0 is the embeddings
    pool: PoolName
    score: Interval
    level: bool
    # these rows do not tell it from the best: the paired interval of the difference holds 0


@dataclass(frozen=True, kw_only=True)
class LayersReport:
    """A score for every layer and pooling."""

    task: Literal["classes", "pairs"]
    metric: Literal["accuracy", "spearman"]
    train_rows: int
    # 0 for scored pairs
    dev_rows: int
    skipped: int
    # rows of either file that could not be read
    error: str | None
    # of the first one of them
    majority: float | None
    # accuracy of the label that train has most often
    probe_c: float | None
    not_converged: int
    # probes that had not when they were stopped
    best: LayerScore
    scores: tuple[LayerScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary whose keys are the field names; what is not defined is None."""
        return dict(plain(self))


def score_layers(
    model: Model,
    *,
    train: str | os.PathLike[str] | None = None,
    dev: str | os.PathLike[str],
    text: Sequence[str],
    label: str,
    seed: int = 0,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> LayersReport:
    """Score every layer, 0 (the embeddings) to the last, with every pooling.

    Labels are classes, told apart by a probe: logistic regression (C = 0.01) on standardised
    vectors. The labels of two text columns are scores where there is no `train`, or where one is a
    fraction such as 3.8.

    Args:
        train, dev: csv, tsv, jsonl (gz and xz of them) or parquet; scored pairs take dev alone.
        text: one text column, or two. The classes of pairs are told from (u, v, |u - v|, u * v) of
            the two vectors.
        label: the column of labels.
        seed: of the bootstrap.
        scratch: a folder for the vectors of all layers while probes are trained, 16 * (L+1) * H
            bytes a text; None: the system's.
        progress: called now and then with how far the encoder is.

    Long texts are read in windows, as in `Model.embed`; prompts, and what a folder does after
    pooling, are left out. A row that cannot be read is left out; the report has their number.

    Raises:
        CallError: an argument or a file is wrong, or train has one class alone.
        ModelError: the folder's sentence-transformers files cannot be used.
        MissingExtraError: classes without scikit-learn.
    """
    if len(text) not in (1, 2) or len(set(text)) != len(text):
        raise CallError(f"{len(text)} text columns; allowed: one, or two; fix: --text A or A,B")
    dev_rows = read_rows(Path(dev), text, label)
    if len(text) == 2 and (train is None or _has_fractions(dev_rows)):
        return _pairs(model, *scored(dev_rows), seed, progress)
    if train is None:
        raise CallError("classes take rows to learn from; fix: --train F")
    check_probe()
    train_rows = read_rows(Path(train), text, label)
    return _classes(model, train_rows, dev_rows, seed, scratch, progress)


def _has_fractions(rows: Rows) -> bool:
    try:
        kept, scores = scored(rows)
    except CallError:
        return False
    return len(kept.errors) == len(rows.errors) and any(score % 1 for score in scores)


def _pairs(
    model: Model, rows: Rows, scores: Sequence[float], seed: int, progress: Progress | None
) -> LayersReport:
    size = chunk_size(model) // 2
    errors = list(rows.errors)
    blocks = []
    if progress is not None:
        progress(0, 0, 0.0)
    for start in range(0, len(scores), size):
        texts, places = distinct(pairs(rows)[start : start + size])
        vectors_LPNH, failed = pooled_layers(model, texts)
        errors += [str(error) for error in failed.values()]
        blocks.append(
            [[paired_similarity(v, places, "cosine") for v in layer] for layer in vectors_LPNH]
        )
        if progress is not None:
            done = min(start + size, len(scores))
            progress(2 * done, 0, done / len(scores))
    alike_LPN = np.concatenate(blocks, axis=2)
    good_N = ~np.isnan(alike_LPN).any(axis=(0, 1))
    if not good_N.any():
        raise CallError(f"no pair can be read; the first: {errors[0] if errors else 'NaN'}")
    truth_N = np.asarray(scores)[good_N]
    measures = {
        (layer, pool): spearman(alike_LPN[layer, p][good_N], truth_N)
        for layer in range(len(alike_LPN))
        for p, pool in enumerate(POOLS)
    }
    best, compared = _compared(measures, seed)
    return LayersReport(
        task="pairs",
        metric="spearman",
        train_rows=0,
        dev_rows=int(good_N.sum()),
        skipped=len(rows.errors) + int((~good_N).sum()),
        error=errors[0] if errors else None,
        majority=None,
        probe_c=None,
        not_converged=0,
        best=best,
        scores=compared,
    )


@dataclass(frozen=True, eq=False)
class _Side:
    """The rows of one file that can be used. Shapes: places (N, 1 or 2), labels (N,)."""

    places: npt.NDArray[np.int64]
    labels: npt.NDArray[np.str_]

    def features(self, vectors_NH: Array) -> Array:
        columns = [np.asarray(vectors_NH[places_N]) for places_N in self.places.T]
        return columns[0] if len(columns) == 1 else pair_features(*columns)


def _side(rows: Rows, number: Mapping[str, int], failed: Mapping[int, TextError]) -> _Side:
    places = [[number[text] for text in row] for row in rows.texts]
    good = [n for n, row in enumerate(places) if not failed.keys() & set(row)]
    if not good:
        raise CallError(f"no row can be read; the first: {next(iter(failed.values()))}")
    chosen = np.array([places[n] for n in good], np.int64)
    return _Side(chosen, np.array([str(rows.labels[n]) for n in good]))


def _classes(
    model: Model,
    train: Rows,
    dev: Rows,
    seed: int,
    scratch: Path | None,
    progress: Progress | None,
) -> LayersReport:
    texts = list(dict.fromkeys(text for rows in (train, dev) for row in rows.texts for text in row))
    number = {text: n for n, text in enumerate(texts)}
    _check_classes(np.array([str(label) for label in train.labels]))
    measures: dict[_Place, Measure] = {}
    not_converged = 0
    with stored_layers(model, texts, scratch, progress) as stored:
        learn, test = (_side(rows, number, stored.failed) for rows in (train, dev))
        known, counts = _check_classes(learn.labels)
        for layer in range(model.config.num_layers + 1):
            for p, pool in enumerate(POOLS):
                vectors_NH = stored.vectors(layer, p)
                features = learn.features(vectors_NH)
                answer = probe(features, learn.labels, test.features(vectors_NH))
                measures[layer, pool] = mean(answer.labels == test.labels)
                not_converged += not answer.converged
    best, compared = _compared(measures, seed)
    errors = [*train.errors, *dev.errors, *(str(error) for error in stored.failed.values())]
    read = len(learn.labels) + len(test.labels)
    return LayersReport(
        task="classes",
        metric="accuracy",
        train_rows=len(learn.labels),
        dev_rows=len(test.labels),
        skipped=sum(len(rows.texts) + len(rows.errors) for rows in (train, dev)) - read,
        error=errors[0] if errors else None,
        majority=mean(test.labels == known[counts.argmax()]).value,
        probe_c=PROBE_C,
        not_converged=not_converged,
        best=best,
        scores=compared,
    )


def _check_classes(
    labels: npt.NDArray[np.str_],
) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.int64]]:
    """Each class, and how many rows have it."""
    known, counts = np.unique(labels, return_counts=True)
    if len(known) < 2:
        raise CallError(f"train has one class alone, {show(known[0])}; a probe tells two or more")
    return known, counts


def _compared(
    measures: Mapping[_Place, Measure], seed: int
) -> tuple[LayerScore, tuple[LayerScore, ...]]:
    """The best (of equal ones the lowest layer), and every score, with intervals."""
    values = intervals(list(measures.values()), seed=seed)
    top = max(measures, key=lambda place: np.nan_to_num(measures[place].value, nan=-2))
    scores = {}
    for place, value in zip(measures, values, strict=True):
        gap = difference(measures[top], measures[place], seed=seed)
        scores[place] = LayerScore(*place, value, place == top or gap.low <= 0)
    return scores[top], tuple(scores.values())
