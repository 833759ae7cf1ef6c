"""Vectors of every layer by one pass of the encoder, and a probe that tells classes from them.

Legend: L layers, P poolings, N texts, H hidden, F features of a row.
"""

import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, get_args

import numpy as np
import numpy.typing as npt

from enrobe.engines.base import Array, Request
from enrobe.errors import CallError, EnrobeError, MissingExtraError, TextError
from enrobe.evaluate.similarity import Progress
from enrobe.sentence_folder import PoolName
from enrobe.tasks.embed import longest_row
from enrobe.tasks.model import Model
from enrobe.tasks.parts import Cutter
from enrobe.tasks.pooling import Pooling
from enrobe.text.ragged import Ragged, plan

POOLS: tuple[PoolName, ...] = get_args(PoolName)
PROBE_C = 0.01
"""How freely the probe's weights may grow (scikit-learn's C)."""
_ITERATIONS = 1000
_BYTES = 1 << 27
"""Vectors of all layers held at a time."""


def pooled_layers(model: Model, texts: Sequence[str]) -> tuple[Array, dict[int, TextError]]:
    """Pooled vectors (L+1, P, N, H) of every layer, in the order of POOLS, by one pass.

    Long texts are read in windows, as in `Model.embed`; prompts, and what a folder does after
    pooling, are left out. Also the errors of the texts that cannot be read: their vectors are NaN.
    """
    config, settings = model.config, model.sentence
    tokenizer = model.tokenizer.lower_cased() if settings.lower_case else model.tokenizer
    limit = longest_row(config, tokenizer, settings)
    cutter = Cutter(tokenizer=tokenizer, limit=limit, long="window")
    failed: dict[int, TextError] = {}
    parts = []
    for number, ids in enumerate(tokenizer.ids(texts)):
        cut = ids if isinstance(ids, TextError) else cutter.cut(number, ids)
        if isinstance(cut, TextError):
            failed[number] = cut
        else:
            parts += cut
    layers = tuple(range(config.num_layers + 1))
    pooled = [Pooling(len(texts), config.hidden_size, POOLS) for _ in layers]
    for group in plan([len(part.ids) for part in parts], budget=model.engine.budget):
        batch = Ragged.from_rows([parts[i].ids for i in group])
        hidden = model.engine.run(batch, Request(layers=layers)).hidden
        for place, i in zip(batch.offsets, group, strict=False):
            part = parts[i]
            for layer in layers:
                row_TH = hidden[layer][place : place + len(part.ids)]
                counted_TH = row_TH[part.start : part.stop]
                pooled[layer].add(part.text, counted_TH, row_TH[part.first], part.share)
    shape = (len(texts), len(POOLS), config.hidden_size)
    vectors = np.stack([pooling.finish().reshape(shape) for pooling in pooled])
    vectors[:, list(failed)] = np.nan
    return vectors.transpose(0, 2, 1, 3), failed


def chunk_size(model: Model) -> int:
    """How many texts' vectors of all layers may be held at a time."""
    numbers = (model.config.num_layers + 1) * len(POOLS) * model.config.hidden_size
    return max(32, min(8192, _BYTES // (4 * numbers)))


@dataclass(frozen=True, eq=False)
class StoredLayers:
    """`pooled_layers` of any number of texts in a file: those of all layers may not fit memory."""

    file: IO[bytes]
    shape: tuple[int, int, int, int]
    # (L+1, P, N, H)
    failed: dict[int, TextError]

    def vectors(self, layer: int, pool: int) -> Array:
        """The vectors (N, H) of one layer and pooling (its place in POOLS)."""
        *_, count, width = self.shape
        self.file.seek(self._place(layer, pool, 0))
        return np.fromfile(self.file, np.float32, count * width).reshape(count, width)

    def put(self, start: int, vectors_LPNH: Array) -> None:
        """Store some texts' vectors, the first of which is text `start`."""
        for layer, of_pools in enumerate(vectors_LPNH):
            for pool, vectors_NH in enumerate(of_pools):
                self.file.seek(self._place(layer, pool, start))
                self.file.write(np.ascontiguousarray(vectors_NH).data)

    def _place(self, layer: int, pool: int, text: int) -> int:
        _, pools, count, width = self.shape
        return 4 * width * ((layer * pools + pool) * count + text)


@contextmanager
def stored_layers(
    model: Model, texts: Sequence[str], scratch: Path | None, progress: Progress | None
) -> Iterator[StoredLayers]:
    """Vectors of all texts, in a file without a name that goes with the block.

    Raises:
        CallError: the file cannot be written, or the disk is full.
    """
    shape = (model.config.num_layers + 1, len(POOLS), len(texts), model.config.hidden_size)
    size = chunk_size(model)
    with ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile(dir=scratch))
            stored = StoredLayers(file, shape, {})
            if progress is not None:
                progress(0, 0, 0.0)
            for start in range(0, len(texts), size):
                part = texts[start : start + size]
                vectors_LPNH, wrong = pooled_layers(model, part)
                stored.put(start, vectors_LPNH)
                stored.failed.update({start + n: error for n, error in wrong.items()})
                if progress is not None:
                    progress(start + len(part), 0, (start + len(part)) / len(texts))
            file.flush()
        except EnrobeError:
            raise
        except OSError as error:
            needed = f"{4 * math.prod(shape) / 1e9:,.1f} GB"
            raise CallError(
                f"vectors of all layers take {needed} in {scratch or tempfile.gettempdir()}: "
                f"{error.strerror}"
            ) from None
        yield stored


@dataclass(frozen=True, eq=False)
class Probed:
    """A probe's answers. Shapes: labels (N,) of str."""

    labels: npt.NDArray[np.str_]
    converged: bool


def probe(features: Array, labels: npt.NDArray[np.str_], tests: Array) -> Probed:
    """Tell classes by logistic regression on standardised features.

    Shapes: features (N, F) with labels (N,) to learn from, of two classes at least; tests (M, F).

    Raises:
        MissingExtraError: without scikit-learn.
    """
    check_probe()
    from sklearn.linear_model import LogisticRegression

    middle_F, spread_F = features.mean(axis=0), features.std(axis=0)
    # What is the same in all rows tells nothing, and its rounding must not.
    scale_F = np.where(spread_F > 1e-6 * np.abs(middle_F), spread_F, np.float32(np.inf))
    regression = LogisticRegression(C=PROBE_C, max_iter=_ITERATIONS)
    with warnings.catch_warnings():
        # That it has not converged is in the answer.
        warnings.simplefilter("ignore")
        regression.fit((features - middle_F) / scale_F, labels)
    answers = regression.predict((tests - middle_F) / scale_F)
    return Probed(answers, bool(regression.n_iter_.max() < _ITERATIONS))


def check_probe() -> None:
    """Raise MissingExtraError without scikit-learn."""
    try:
        import sklearn.linear_model  # noqa: F401  # found out before the work begins
    except ModuleNotFoundError:
        raise MissingExtraError("scikit-learn", "train", "a probe of classes") from None


def pair_features(u_NH: Array, v_NH: Array) -> Array:
    """(u, v, |u - v|, u * v), as SentEval tells the classes of pairs. Shapes: (N, 4H)."""
    return np.concatenate([u_NH, v_NH, np.abs(u_NH - v_NH), u_NH * v_NH], axis=1)
