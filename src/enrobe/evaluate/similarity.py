"""How well a model's vectors tell likeness: scored pairs (STS), and finding translations (bitext).

Legend: N pairs, A and B distinct texts of either side, D numbers of a vector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from enrobe.engines.base import Array
from enrobe.errors import CallError, TextError
from enrobe.evaluate.intervals import (
    CONFIDENCE,
    ROUNDS,
    Floats,
    Interval,
    check_rows,
    intervals,
    plain,
)
from enrobe.evaluate.metrics import pearson, spearman
from enrobe.evaluate.retrieval import Found, found
from enrobe.sentence_folder import PoolName, SimilarityName
from enrobe.tasks.calls import Errors, check_errors, raise_error
from enrobe.tasks.embed import EmbedOptions
from enrobe.tasks.model import Model
from enrobe.tasks.pooling import normalize, similarity

Pair = tuple[str, str]
Progress = Callable[[int, int, float | None], None]
"""Takes the texts that are done, 0 (tokens are not counted), and the share of all."""

_CHUNK = 2048
"""Texts embedded at a time."""
_SCORES = 1 << 23
"""Scores held at a time."""


class Embedding(TypedDict, total=False):
    """How vectors are made; what is left out is as the folder says (`Model.embed`)."""

    pool: PoolName | Sequence[PoolName] | None
    layers: int | Sequence[int] | None
    normalize: bool | None
    prompt: str | None


@dataclass(frozen=True, kw_only=True)
class StsReport:
    """How well the similarity of pairs follows the scores that people gave them."""

    task: str = "sts"
    rows: int
    skipped: int
    # rows that could not be read
    error: str | None
    # of the first one of them
    similarity: SimilarityName
    spearman: Interval
    pearson: Interval

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary whose keys are the field names; what is not defined is None."""
        return dict(plain(self))


@dataclass(frozen=True, kw_only=True)
class BitextReport:
    """How often the other half of a pair is found among all of them, from either side."""

    task: str = "bitext"
    rows: int
    skipped: int
    error: str | None
    similarity: SimilarityName
    accuracy_forward: Interval
    # the first column looks for the second
    accuracy_backward: Interval
    reciprocal_rank_forward: Interval
    reciprocal_rank_backward: Interval

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary whose keys are the field names; what is not defined is None."""
        return dict(plain(self))


def evaluate_sts(
    model: Model,
    pairs: Sequence[Pair],
    scores: npt.ArrayLike,
    *,
    embedding: Embedding | None = None,
    rounds: int = ROUNDS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    errors: Errors = "raise",
    progress: Progress | None = None,
) -> StsReport:
    """Correlate the similarity of pairs with their scores (Cer et al. 2017).

    The similarity is what the folder names, else cosine (`Model.similarity`).

    Args:
        pairs: two texts each.
        scores: (N,), higher for more alike, on any scale.
        embedding: pool, layers, normalize, prompt as in `Model.embed`.
        rounds, confidence, seed: of the bootstrap (`intervals`).
        errors: "raise", or "collect": a pair with a text that cannot be read is left out.
        progress: called now and then with how far it is.

    Raises:
        CallError: an argument is wrong, or no pair is left.
        TextError: a text cannot be read (with errors="raise").
        ModelError: the folder's sentence-transformers files cannot be used.
    """
    scores_N = np.asarray(scores, np.float64)
    check_rows(pairs, scores_N)
    texts, places = distinct(pairs)
    vectors, error = _embedded(model, texts, embedding, errors, progress)
    name = model.sentence.similarity
    alike_N = paired_similarity(vectors, places, name)
    good = ~np.isnan(alike_N)
    _check_left(good, error)
    measures = spearman(alike_N[good], scores_N[good]), pearson(alike_N[good], scores_N[good])
    first, second = intervals(measures, rounds=rounds, confidence=confidence, seed=seed)
    return StsReport(
        rows=int(good.sum()),
        skipped=int((~good).sum()),
        error=error,
        similarity=name,
        spearman=first,
        pearson=second,
    )


def evaluate_bitext(
    model: Model,
    pairs: Sequence[Pair],
    *,
    embedding: Embedding | None = None,
    rounds: int = ROUNDS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    errors: Errors = "raise",
    progress: Progress | None = None,
) -> BitextReport:
    """Look for each text's other half among all of them (Artetxe and Schwenk 2019, Tatoeba).

    A text that stands in several pairs is one target, and any of its halves is right; each row
    counts once.

    Args:
        pairs: a text and its translation (or paraphrase) each.
        embedding, rounds, confidence, seed, errors, progress: as in `evaluate_sts`.

    Raises:
        CallError, TextError, ModelError: as `evaluate_sts`.
    """
    check_rows(pairs)
    texts, places = distinct(pairs)
    vectors, error = _embedded(model, texts, embedding, errors, progress)
    name = model.sentence.similarity
    good = ~np.isnan(vectors[places, 0]).any(axis=1)
    _check_left(good, error)
    forward = search_pairs(vectors, places[good], name)
    backward = search_pairs(vectors, places[good][:, ::-1], name)
    measures = [side.accuracy() for side in (forward, backward)]
    measures += [side.mean_reciprocal_rank() for side in (forward, backward)]
    values = intervals(measures, rounds=rounds, confidence=confidence, seed=seed)
    return BitextReport(
        rows=int(good.sum()),
        skipped=int((~good).sum()),
        error=error,
        similarity=name,
        accuracy_forward=values[0],
        accuracy_backward=values[1],
        reciprocal_rank_forward=values[2],
        reciprocal_rank_backward=values[3],
    )


def paired_similarity(vectors: Array, pairs: npt.NDArray[np.int64], name: SimilarityName) -> Floats:
    """How alike the two vectors of each pair are; a distance counts as its negative.

    Shapes: vectors (A, D), pairs (N, 2) of their indices; the result (N,).
    """
    if name == "cosine":
        vectors = normalize(vectors)
    out = np.empty(len(pairs))
    for start in range(0, len(pairs), _CHUNK):
        part = pairs[start : start + _CHUNK]
        left, right = vectors[part[:, 0]], vectors[part[:, 1]]
        if name == "cosine" or name == "dot":
            out[start : start + _CHUNK] = np.einsum("nd,nd->n", left, right)
        else:
            order = 2 if name == "euclidean" else 1
            out[start : start + _CHUNK] = -np.linalg.norm(left - right, ord=order, axis=1)
    return out


def distinct(pairs: Sequence[Pair]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Every text once, and the places of each pair's two among them."""
    number: dict[str, int] = {}
    places = [[number.setdefault(text, len(number)) for text in pair] for pair in pairs]
    if any(len(pair) != 2 for pair in places):
        raise CallError("a pair has two texts")
    return list(number), np.array(places, np.int64)


def _embedded(
    model: Model,
    texts: Sequence[str],
    embedding: Embedding | None,
    errors: Errors,
    progress: Progress | None,
) -> tuple[Array, str | None]:
    """Vectors, and the first error; the rows of texts with an error are NaN."""
    check_errors(errors)
    options = EmbedOptions(**(embedding or {}))
    blocks: list[Array] = []
    error: str | None = None
    if progress is not None:
        progress(0, 0, 0.0)
    for start in range(0, len(texts), _CHUNK):
        part = texts[start : start + _CHUNK]
        block, failed = model.try_embed(part, options)
        for index in np.flatnonzero(np.isnan(block).any(axis=1)).tolist():
            block[index] = np.nan
            if error is None or errors == "raise":
                found_error = failed.get(index) or TextError("the model gives NaN for it")
                if errors == "raise":
                    raise_error(start + index, found_error, len(texts))
                error = str(found_error)
        blocks.append(block)
        if progress is not None:
            progress(start + len(part), 0, (start + len(part)) / len(texts))
    return np.concatenate(blocks), error


def _check_left(good: npt.NDArray[np.bool_], error: str | None) -> None:
    if not good.any():
        raise CallError(f"no pair can be read; the first: {error}")


def search_pairs(
    vectors: Array,
    pairs: npt.NDArray[np.int64],
    name: SimilarityName,
    *,
    neighbours: int = 0,
) -> Found:
    """How each row's first text finds its second, a block of texts at a time.

    Args:
        vectors: (A, D), of every text.
        pairs: (N, 2), places among them.
        name: the similarity.
        neighbours: above 0 each target's score is set against its mean over so many of its nearest
            queries (CSLS, Conneau et al. 2018): a text that is near to all is the answer to none.
    """
    queries, query_N = np.unique(pairs[:, 0], return_inverse=True)
    targets, target_N = np.unique(pairs[:, 1], return_inverse=True)
    right: list[set[int]] = [set() for _ in queries]
    for query, target in zip(query_N, target_N, strict=True):
        right[query].add(int(target))
    if name == "cosine":
        vectors, name = normalize(vectors), "dot"
    vectors_BD = vectors[targets]
    near_B = _nearness(vectors_BD, vectors[queries], name, neighbours) if neighbours else None
    blocks = []
    size = max(1, _SCORES // len(targets))
    for start in range(0, len(queries), size):
        scores = similarity(vectors[queries[start : start + size]], vectors_BD, name)
        if near_B is not None:
            # The query's own mean is the same for all its targets.
            scores = 2 * scores - near_B
        blocks.append(found(scores, [sorted(some) for some in right[start : start + size]]))
    first_A = np.concatenate([block.first for block in blocks])
    reciprocal_A = np.concatenate([block.reciprocal for block in blocks])
    return Found(first_A[query_N], reciprocal_A[query_N])


def _nearness(vectors_BD: Array, others_AD: Array, name: SimilarityName, count: int) -> Array:
    """How like each vector is, in the mean, to those of the others that are most like it (B,)."""
    count = min(count, len(others_AD))
    size = max(1, _SCORES // len(others_AD))
    out = np.empty(len(vectors_BD), np.float32)
    for start in range(0, len(vectors_BD), size):
        scores = similarity(vectors_BD[start : start + size], others_AD, name)
        out[start : start + size] = np.partition(scores, -count, axis=1)[:, -count:].mean(axis=1)
    return out
