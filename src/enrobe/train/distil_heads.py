"""Distilling trained heads: all of a teacher's in one pass over each text.

Legend: T tokens, H hidden.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from enrobe.config import HeadConfig
from enrobe.data.splits import TaskData
from enrobe.errors import CallError, nearest, show
from enrobe.train.distil_losses import soft_loss
from enrobe.train.distil_recipe import DistilHeads, HeadLosses
from enrobe.train.finetune_recipe import head_of
from enrobe.train.finetune_work import HeadTraining
from enrobe.train.hidden_teaching import HiddenTeaching
from enrobe.train.work import Micro


class HeadDistilling(HeadTraining):
    """Training of heads with a teacher, whose logits are on the rows."""

    def __init__(self, hidden: HiddenTeaching, losses: HeadLosses, *training: Any) -> None:
        """See `HeadTraining`, which the other arguments are for."""
        super().__init__(*training)
        self._hidden, self._losses = hidden, losses
        self._states: Mapping[int, Tensor] = {}
        self.objectives = (*self.objectives, "tokens.hidden")

    def batch(self, step: int) -> list[Micro]:
        """See `Work.batch`."""
        return [
            replace(micro, counts={**micro.counts, "tokens.hidden": len(micro.batch.ids)})
            for micro in super().batch(step)
        ]

    def loss(
        self, micro: Micro, totals: Mapping[str, float]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """See `Work.loss`; a task's part is soft and hard together, weighted."""
        total, parts = super().loss(micro, totals)
        if self._hidden.weight:
            ids, types = self._tensors(micro)
            summed = self._hidden(self._states, ids, micro.batch.offsets, types)
            told = summed / totals["tokens.hidden"]
            total = total + self._hidden.weight * told
            parts = {**parts, "loss": total, "hidden_loss": told}
        return total, parts

    def _tensors(self, micro: Micro) -> tuple[Tensor, Tensor]:
        ids, types = (torch.from_numpy(x) for x in (micro.batch.ids, micro.batch.types))
        return ids.to(self._device), types.to(self._device)

    def _logits(self, micro: Micro, names: Sequence[str]) -> Mapping[str, Tensor]:
        ids, types = self._tensors(micro)
        outputs = self.model(
            ids,
            micro.batch.offsets,
            types,
            layers=self._hidden.layers,
            heads=list(dict.fromkeys(self._head_of[name] for name in names)),
        )
        # From the same pass: `loss` compares them.
        self._states = outputs.hidden
        logits: Mapping[str, Tensor] = outputs.heads
        return logits

    def _summed(self, name: str, logits: Mapping[str, Tensor], micro: Micro) -> Tensor:
        total = torch.zeros((), device=self._device)
        if self._losses.hard:
            total = self._losses.hard * super()._summed(name, logits, micro)
        if self._losses.soft:
            arrays = {
                part: torch.from_numpy(micro.arrays[f"{name}.{part}"]).to(self._device)
                for part in ("rows", "places", "soft")
                if f"{name}.{part}" in micro.arrays
            }
            soft = soft_loss(
                self._kinds[name],
                logits[self._head_of[name]],
                arrays["soft"],
                arrays,
                temperature=self._losses.temperature,
            )
            total = total + self._losses.soft * soft
        return total

    def read(self, folder: Path) -> None:
        """See `Work.read`."""
        with self._hidden.reading(folder):
            super().read(folder)

    def write(self, folder: Path) -> None:
        """See `Work.write`."""
        super().write(folder)
        self._hidden.write(folder)


def check_heads(
    recipe: DistilHeads, tasks: Mapping[str, TaskData], heads: Mapping[str, HeadConfig]
) -> dict[str, HeadConfig]:
    """The teacher's heads that the tasks are for, by name; the student's are the same.

    Raises:
        CallError: a task without a head of its kind, or labels that the head does not know.
    """
    found = {}
    for name, task in recipe.tasks.items():
        wanted = head_of(name, task)
        if wanted not in heads:
            has = ", ".join(heads) or "none"
            hint = nearest(wanted, heads)
            raise CallError(
                f"tasks.{name}: the teacher has no head {show(wanted)}; its: {has}{hint}"
            )
        head, data = heads[wanted], tasks[name]
        if head.kind != data.task.kind:
            raise CallError(
                f"tasks.{name}: kind is {data.task.kind}; the teacher's head is of kind {head.kind}"
            )
        known = {*head.labels}
        unknown = [label for label in data.train.labels if label not in known]
        if unknown and head.kind not in ("regress", "answer"):
            raise CallError(
                f"tasks.{name}: the teacher's head does not know the label {show(unknown[0])}; "
                f"allowed: {', '.join(head.labels[:20])}"
            )
        found[wanted] = head
    return found
