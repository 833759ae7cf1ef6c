"""Distilling a masked language model over a corpus: DistilBERT's way (Sanh et al. 2019).

The teacher is run in every step: masks are new each time, so nothing that it says comes twice.

Legend: T tokens, M masked positions, H hidden, G of the teacher, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from enrobe.nn.attention import Ids
from enrobe.nn.encoder import Encoder
from enrobe.nn.heads import MaskedLMHead, Model
from enrobe.text.tokenizer import Tokenizer
from enrobe.train.distil_losses import soft_masked_loss
from enrobe.train.distil_recipe import DistilCorpus
from enrobe.train.group import Group
from enrobe.train.hidden_teaching import HiddenTeaching
from enrobe.train.pretrain import MaskedLM, Rows
from enrobe.train.work import Micro


class MaskedDistilling(MaskedLM):
    """Masked-LM training with a teacher."""

    objectives = ("masked", "tokens.hidden")  # type: ignore[assignment]

    def __init__(
        self,
        model: Model,
        teacher: Model,
        hidden: HiddenTeaching,
        tokenizer: Tokenizer,
        tokenizer_folder: Path,
        sources: Mapping[str, Rows],
        heldout: Mapping[str, Rows],
        recipe: DistilCorpus,
        group: Group,
    ) -> None:
        """Put a student, its teacher and their data together; see `MaskedLM`."""
        plain = recipe.pretraining()
        super().__init__(model, tokenizer, tokenizer_folder, sources, heldout, plain, group)
        self._teacher, self._hidden, self._losses = teacher, hidden, recipe.losses
        (self._teacher_head,) = (n for n, h in teacher.head_configs.items() if h.kind == "mlm")

    def _micros(self, *arguments: Any) -> list[Micro]:
        return [
            replace(micro, counts={**micro.counts, "tokens.hidden": len(micro.batch.ids)})
            for micro in super()._micros(*arguments)
        ]

    def loss(
        self, micro: Micro, totals: Mapping[str, float]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """See `Work.loss`; what is logged of each part is without its weight."""
        device = self._group.device
        ids, types = (torch.from_numpy(x).to(device) for x in (micro.batch.ids, micro.batch.types))
        offsets, at = micro.batch.offsets, micro.arrays["positions"]
        count, table = max(1.0, totals["masked"]), self._losses
        last = self.model.config.num_layers
        # Only where it is compared is the last layer run at every place.
        picks = None if last in self._hidden.layers else at
        hidden = Encoder.forward(
            self.model, ids, offsets, types, layers=sorted({*self._hidden.layers, last}), at=picks
        )
        total = torch.zeros((), device=device, requires_grad=torch.is_grad_enabled())
        nothing = torch.zeros((), device=device)
        parts = {"soft_loss": nothing, "hard_loss": nothing, "accuracy": nothing}
        if len(at) and (table.soft or table.hard):
            head = self.model.heads[self._head]
            assert isinstance(head, MaskedLMHead)
            hidden_MH = hidden[last]
            if picks is None:
                hidden_MH = hidden_MH.index_select(0, torch.from_numpy(at).to(device))
            loss, soft, hard, right = soft_masked_loss(
                head.features(hidden_MH),
                head.weight(self.model.get_parameter("embeddings.word.weight")),
                head.bias,
                torch.from_numpy(micro.arrays["targets"]).to(device),
                self._told(ids, offsets, types, at) if table.soft else _unasked,
                temperature=table.temperature,
                soft=table.soft,
                hard=table.hard,
            )
            total = loss / count
            parts = {"soft_loss": soft, "hard_loss": hard, "accuracy": right}
            parts = {name: part / count for name, part in parts.items()}
        if self._hidden.weight:
            told = self._hidden(hidden, ids, offsets, types) / totals["tokens.hidden"]
            parts["hidden_loss"] = told
            total = total + self._hidden.weight * told
        return total, {"loss": total, **parts}

    @torch.no_grad()
    def _told(
        self, ids_T: Tensor, offsets: Ids, types_T: Tensor, at: Ids
    ) -> Callable[[slice], Tensor]:
        """The teacher's logits, a slice of the positions at a time."""
        teacher, last = self._teacher, self._teacher.config.num_layers
        hidden_MG = Encoder.forward(teacher, ids_T, offsets, types_T, layers=(last,), at=at)[last]
        head = teacher.heads[self._teacher_head]
        assert isinstance(head, MaskedLMHead)
        weight_VG = head.weight(teacher.get_parameter("embeddings.word.weight"))
        features_MG, bias_V = head.features(hidden_MG), head.bias
        if torch.is_autocast_enabled(ids_T.device.type):
            # The loss ends autocast before it asks.
            dtype = torch.get_autocast_dtype(ids_T.device.type)
            features_MG, weight_VG = features_MG.to(dtype), weight_VG.to(dtype)

        def logits(part: slice) -> Tensor:
            return F.linear(features_MG[part], weight_VG).float() + bias_V

        return logits

    def read(self, folder: Path) -> None:
        """See `Work.read`."""
        with self._hidden.reading(folder):
            super().read(folder)

    def write(self, folder: Path) -> None:
        """See `Work.write`."""
        super().write(folder)
        self._hidden.write(folder)


def _unasked(part: slice) -> Tensor:
    """In place of a teacher whose answers have no weight."""
    raise AssertionError(part)
