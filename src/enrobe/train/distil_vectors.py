"""Distilling vectors of sentences: a student places texts where its teacher does.

Legend: N texts, D numbers of a vector.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from enrobe import checkpoint
from enrobe.data.packing import Mixture
from enrobe.data.readers import Source, expand
from enrobe.engines.base import Array
from enrobe.errors import CallError, TextError
from enrobe.evaluate.metrics import spearman
from enrobe.nn.heads import Model
from enrobe.sentence_folder import write_sentence_settings
from enrobe.tasks.pooling import normalize
from enrobe.text.ragged import Ragged
from enrobe.train.distil_losses import vector_loss
from enrobe.train.distil_recipe import DistilTexts
from enrobe.train.hidden_teaching import HiddenTeaching
from enrobe.train.teacher_answers import Answers
from enrobe.train.vectors import SentenceVectors, TextRow
from enrobe.train.work import Evaluation, Micro, encoder_flops, micro_batches, model_arrays, say

# Held-out texts whose similarities to one another are compared.
_COMPARED = 500


def read_texts(files: Sequence[Path], column: str | None) -> list[str]:
    """The texts of files that are not empty; rows that cannot be read are left out, and it is said.

    Raises:
        CallError: no such file or column, or no text.
    """
    texts: list[str] = []
    errors: list[str] = []
    for path in expand(files):
        for row in Source(path, column):
            if row.error is not None:
                errors.append(f"{path}: {row.error}")
            elif row.text.strip():
                texts.append(row.text)
    if errors:
        say(f"{len(errors)} rows cannot be read and are left out; the first: {errors[0]}")
    if not texts:
        raise CallError(f"{', '.join(map(str, files))}: no text")
    return texts


def readable(
    texts: Sequence[str], rows: Sequence[TextRow | TextError]
) -> tuple[list[str], list[TextRow]]:
    """Texts with their rows, less those that cannot be tokenized, which is said.

    Raises:
        CallError: none is left.
    """
    pairs = [(t, r) for t, r in zip(texts, rows, strict=True) if not isinstance(r, TextError)]
    if len(pairs) < len(texts):
        first = next(r for r in rows if isinstance(r, TextError))
        say(f"{len(texts) - len(pairs)} texts cannot be read and are left out; the first: {first}")
    if not pairs:
        raise CallError("no text that can be read")
    return [text for text, _ in pairs], [row for _, row in pairs]


class VectorDistilling:
    """Training of vectors as the loop takes it."""

    objectives = ("texts", "tokens.hidden")

    def __init__(
        self,
        model: Model,
        vectors: SentenceVectors,
        hidden: HiddenTeaching,
        tokenizer_folder: Path,
        train: tuple[Sequence[TextRow], Answers | Array],
        heldout: tuple[Sequence[TextRow], Answers | Array] | None,
        recipe: DistilTexts,
    ) -> None:
        """Put a student and its data together: rows of texts, and the teacher's vectors of them."""
        model.add_module("sentence", vectors)
        self.model, self._vectors, self._hidden = model, vectors, hidden
        self._tokenizer_folder = tokenizer_folder
        self._rows, self._answers = train
        self._heldout = heldout
        self._losses, self._table = recipe.losses, recipe.train
        self._mixture = Mixture([len(self._rows)], [1.0], seed=recipe.seed)
        self._device = next(model.parameters()).device

    def batch(self, step: int) -> list[Micro]:
        """See `Work.batch`."""
        start = step * self._table.batch_rows
        numbers = [self._mixture.at(start + i).row for i in range(self._table.batch_rows)]
        return self._micros(self._rows, self._answers, numbers)

    def _micros(
        self, rows: Sequence[TextRow], answers: Answers | Array, numbers: Sequence[int]
    ) -> list[Micro]:
        out = []
        lengths = [len(rows[i].ids) for i in numbers]
        for group in micro_batches(lengths, self._table.micro_tokens):
            some = [numbers[i] for i in group]
            batch = Ragged.from_rows([rows[i].ids for i in some])
            spans = [(rows[i].start, rows[i].stop, rows[i].first) for i in some]
            out.append(
                Micro(
                    batch=batch,
                    counts={"texts": len(some), "tokens.hidden": len(batch.ids)},
                    flops=3 * encoder_flops(self.model.config, batch.lengths),
                    arrays={
                        "spans": np.array(spans, np.int64),
                        "teacher": np.stack([answers[i] for i in some]),
                    },
                )
            )
        return out

    def loss(
        self, micro: Micro, totals: Mapping[str, float]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """See `Work.loss`."""
        student, teacher, hidden = self._both(micro, self._hidden.layers)
        part = vector_loss(student, teacher, self._losses.vector_distance) / totals["texts"]
        total = self._losses.vector * part
        parts = {"vector_loss": part}
        if self._hidden.weight:
            ids, types = self._tensors(micro)
            summed = self._hidden(hidden, ids, micro.batch.offsets, types)
            parts["hidden_loss"] = summed / totals["tokens.hidden"]
            total = total + self._hidden.weight * parts["hidden_loss"]
        return total, {"loss": total, **parts}

    def _tensors(self, micro: Micro) -> tuple[Tensor, Tensor]:
        ids, types = (torch.from_numpy(x) for x in (micro.batch.ids, micro.batch.types))
        return ids.to(self._device), types.to(self._device)

    def _both(
        self, micro: Micro, layers: Sequence[int]
    ) -> tuple[Tensor, Tensor, Mapping[int, Tensor]]:
        """The vectors of student and teacher, and hidden states of the student."""
        last = self.model.config.num_layers
        ids, types = self._tensors(micro)
        wanted = sorted({*layers, last})
        hidden = self.model(ids, micro.batch.offsets, types, layers=wanted).hidden
        rows = [TextRow(micro.batch.ids, *span) for span in micro.arrays["spans"].tolist()]
        vectors = self._vectors(hidden[last], rows, micro.batch.offsets)
        return vectors, torch.from_numpy(micro.arrays["teacher"]).to(self._device), hidden

    def evaluate(self) -> Evaluation:
        """See `Work.evaluate`; the score is the mean cosine with the teacher's vectors.

        "similarity" is Spearman's correlation of the texts' similarities to one another, by the
        student's vectors and by the teacher's: whether searching finds the same.
        """
        if self._heldout is None:
            return Evaluation(results={}, score=None)
        rows, answers = self._heldout
        student, teacher = [], []
        for micro in self._micros(rows, answers, range(len(rows))):
            own, theirs, _ = self._both(micro, ())
            student.append(own.float().cpu().numpy())
            teacher.append(theirs.cpu().numpy())
        a_ND, b_ND = normalize(np.concatenate(student)), normalize(np.concatenate(teacher))
        found = {"cosine": float((a_ND * b_ND).sum(1).mean())}
        pairs = np.triu_indices(min(len(rows), _COMPARED), 1)
        if len(pairs[0]) > 1:
            some = (a_ND[:_COMPARED], b_ND[:_COMPARED])
            a_M, b_M = ((x @ x.T)[pairs].astype(np.float64) for x in some)
            found["similarity"] = float(spearman(a_M, b_M))
        return Evaluation(results={"heldout": found}, score=found["cosine"])

    def write(self, folder: Path) -> None:
        """See `Work.write`."""
        config = self.model.config
        checkpoint.write(
            folder,
            config=config,
            heads={},
            tensors=model_arrays(self.model),
            tokenizer_folder=self._tokenizer_folder,
        )
        write_sentence_settings(folder, self._vectors.written(), width=config.hidden_size)
        self._hidden.write(folder)

    def read(self, folder: Path) -> None:
        """See `Work.read`."""
        values = {n: torch.tensor(x) for n, x in checkpoint.read(folder).tensors.items()}
        values |= {f"sentence.{n}": x for n, x in self._vectors.read(folder).items()}
        with self._hidden.reading(folder):
            self.model.load_state_dict(values)
