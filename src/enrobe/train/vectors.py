"""Texts to vectors of sentences in PyTorch, with gradients: what `tasks.embed` does without.

Legend: T tokens of a batch, N texts, P poolings, H hidden, K = P * H, D numbers of a finished
vector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enrobe.config import EncoderConfig
from enrobe.engines.base import Array, Engine
from enrobe.errors import TextError
from enrobe.sentence_folder import Dense, SentenceSettings, read_sentence_settings
from enrobe.tasks.embed import EmbedOptions, embed, plan_embedding
from enrobe.tasks.parts import Part
from enrobe.text.ragged import Ids
from enrobe.text.tokenizer import Tokenizer
from enrobe.train.teacher_answers import Answers, key_of

# As sentence-transformers reads in training: a text that is too long is cut.
_OPTIONS = EmbedOptions(long="truncate")
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Identity": lambda x: x,
    "ReLU": F.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
}
# The smallest length that a vector is divided by; that of `tasks.pooling`.
_LEAST = 1e-12


@dataclass(frozen=True, eq=False)
class TextRow:
    """A text to embed: its row, which of its tokens are pooled, and which is the first."""

    ids: Ids
    start: int
    stop: int
    first: int


def text_rows(
    tokenizer: Tokenizer, config: EncoderConfig, settings: SentenceSettings, texts: Sequence[str]
) -> list[TextRow | TextError]:
    """The rows of texts, as `Model.embed(..., long="truncate")` reads them.

    Raises:
        CallError: the folder's settings do not fit the model.
    """
    own = tokenizer.lower_cased() if settings.lower_case else tokenizer
    plan = plan_embedding(config, own, settings, _OPTIONS)
    found: list[TextRow | TextError] = []
    for number, ids in enumerate(own.ids([plan.prompt + text for text in texts])):
        cut = ids if isinstance(ids, TextError) else plan.cutter.cut(number, ids)
        found.append(cut if isinstance(cut, TextError) else _row(*cut))
    return found


def _row(part: Part) -> TextRow:
    return TextRow(part.ids, part.start, part.stop, part.first)


def teacher_vectors(
    engine: Engine,
    tokenizer: Tokenizer,
    settings: SentenceSettings,
    teacher: str,
    texts: Sequence[str],
    folder: Path,
    *,
    report: Callable[[int, int], object] = lambda done, rows: None,
) -> Answers:
    """A teacher's vector for each of texts that can all be read: those of `Model.embed`.

    Args:
        engine, tokenizer, settings: the teacher's.
        teacher: the hash of its files.
        texts: cut where they are too long.
        folder: where the vectors are kept.
        report: as in `Answers`.

    Shapes: (D,) a text.
    """
    own = tokenizer.lower_cased() if settings.lower_case else tokenizer
    width = plan_embedding(engine.config, own, settings, _OPTIONS).width

    def compute(block: range) -> list[Array]:
        some = [texts[i] for i in block]
        vectors_ND, failed = embed(engine, own, settings, some, _OPTIONS)
        assert not failed
        return list(vectors_ND)

    key = key_of(teacher, [f"vectors {settings.max_tokens}", *texts])
    return Answers(folder, key, [width] * len(texts), compute, report=report)


class SentenceVectors(nn.Module):
    """A folder's pooling and what follows it; a projection in between is learned.

    Its Dense layers stay as they are: they lead to the space in which the teacher's vectors lie.
    """

    def __init__(self, settings: SentenceSettings, *, hidden: int, projected: int | None) -> None:
        """Follow a folder's settings.

        Args:
            settings: the teacher's.
            hidden: the student's width.
            projected: K of the teacher, where it is another than the student's; None: it is not.
        """
        super().__init__()
        self.settings, self._hidden = settings, hidden
        self.projection = None
        if projected is not None:
            self.projection = nn.Linear(len(settings.pool) * hidden, projected)
        for number, step in enumerate(settings.steps):
            if isinstance(step, Dense):
                self.register_buffer(f"weight_{number}", torch.tensor(step.weight), False)
                bias = step.bias if step.bias is not None else np.zeros(len(step.weight))
                self.register_buffer(f"bias_{number}", torch.tensor(bias, dtype=torch.float), False)

    def forward(self, hidden_TH: Tensor, rows: Sequence[TextRow], offsets: Ids) -> Tensor:
        """The vectors of the rows of a batch. Shapes: (T, H), offsets (N+1,) -> (N, D)."""
        vectors_ND = pooled(hidden_TH.float(), rows, offsets, self.settings)
        if self.projection is not None:
            vectors_ND = self.projection(vectors_ND)
        steps, cut = self.settings.steps, self.settings.truncate_dim
        for number, step in enumerate(steps):
            if number == len(steps) - 1 and step == "normalize":
                # Cut, then normalise, as `embed` does.
                vectors_ND = vectors_ND[:, :cut]
            if isinstance(step, Dense):
                weight, bias = (
                    self.get_buffer(f"weight_{number}"),
                    self.get_buffer(f"bias_{number}"),
                )
                vectors_ND = _ACTIVATIONS[step.activation](F.linear(vectors_ND, weight, bias))
            else:
                vectors_ND = F.normalize(vectors_ND, dim=1, eps=_LEAST)
        return vectors_ND[:, :cut]

    def written(self) -> SentenceSettings:
        """The settings for a folder: the projection is its first Dense layer."""
        if self.projection is None:
            return self.settings
        weight, bias = (
            x.detach().cpu().numpy() for x in (self.projection.weight, self.projection.bias)
        )
        learned = Dense(weight=weight, bias=bias, activation="Identity")
        return replace(self.settings, steps=(learned, *self.settings.steps))

    def read(self, folder: Path) -> dict[str, Tensor]:
        """What a folder with the written settings has of the projection, by parameter."""
        if self.projection is None:
            return {}
        learned = read_sentence_settings(folder).steps[0]
        assert isinstance(learned, Dense) and learned.bias is not None
        parts = {"weight": learned.weight, "bias": learned.bias}
        return {f"projection.{name}": torch.tensor(x) for name, x in parts.items()}


def pooled(
    hidden_TH: Tensor, rows: Sequence[TextRow], offsets: Ids, settings: SentenceSettings
) -> Tensor:
    """Pool each row's tokens, several poolings side by side. Shapes: (T, H) -> (N, K)."""
    device = hidden_TH.device
    spans = [(row.start + at, row.stop + at) for row, at in zip(rows, offsets[:-1], strict=True)]
    taken = np.concatenate([np.arange(a, b) for a, b in spans])
    owner = np.repeat(np.arange(len(rows)), [b - a for a, b in spans])
    kept_TH = hidden_TH.index_select(0, torch.from_numpy(taken).to(device))
    owner_T = torch.from_numpy(owner).to(device)
    empty_NH = hidden_TH.new_zeros(len(rows), hidden_TH.shape[1])
    parts = []
    for pool in settings.pool:
        if pool == "cls":
            firsts = offsets[:-1] + np.array([row.first for row in rows])
            parts.append(hidden_TH.index_select(0, torch.from_numpy(firsts).to(device)))
        elif pool == "max":
            index = owner_T[:, None].expand_as(kept_TH)
            parts.append(empty_NH.scatter_reduce(0, index, kept_TH, "amax", include_self=False))
        else:
            counts = torch.tensor([b - a for a, b in spans], device=device, dtype=torch.float)
            power = 1.0 if pool == "mean" else 0.5
            sums_NH = empty_NH.index_add(0, owner_T, kept_TH)
            parts.append(sums_NH / counts[:, None] ** power)
    return torch.cat(parts, 1)
