"""What the loop trains in fine-tuning: heads and their encoder, and the loss of their tasks.

The loss of a batch is the sum over its tasks of

    weight * (summed loss / count of targets) * (the task's rows / all rows)

with both counts over the whole batch, whatever goes through the model at once; so tasks on the
same rows add up, and tasks that share a batch count by their rows in it.

Legend: T tokens, B rows.
"""

import json
import time
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from enrobe import checkpoint
from enrobe.atomic import replace_file
from enrobe.checkpoint import read_json
from enrobe.config import HeadConfig
from enrobe.data.splits import TaskData
from enrobe.engines.torch import TorchEngine
from enrobe.evaluate.heads import check_metric, score_outputs
from enrobe.evaluate.outputs import Outputs, read_heads
from enrobe.nn.heads import Model
from enrobe.text.ragged import Ragged
from enrobe.text.tokenizer import Tokenizer
from enrobe.train.cosines import Cosines
from enrobe.train.finetune_data import Plan
from enrobe.train.finetune_model import frozen, unfreeze
from enrobe.train.finetune_recipe import MASKED, FinetuneRecipe, head_of, in_steps
from enrobe.train.group import Group
from enrobe.train.lora import merged_arrays, read_adapter, write_adapter
from enrobe.train.losses import masked_lm_loss
from enrobe.train.state import save_arrays
from enrobe.train.supervised import collate, head_loss
from enrobe.train.work import (
    Evaluation,
    Micro,
    encoder_flops,
    masked_lm_flops,
    micro_batches,
    say,
)

# The learned log-variances of tasks; the head of masked LM; LoRA's matrices.
_WEIGHTING, _MASKED, ADAPTER = "weighting.json", "masked_lm.safetensors", "adapter"
BESIDE = (_WEIGHTING, _MASKED, ADAPTER)
"""Files in a checkpoint's model folder that are no part of the model."""
_MASKED_HEAD = f"heads.{MASKED}."


class HeadTraining:
    """Training of heads and their encoder as the loop takes it."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        tokenizer_folder: Path,
        recipe: FinetuneRecipe,
        tasks: Mapping[str, TaskData],
        plan: Plan,
        group: Group,
    ) -> None:
        """Put a model and its data together."""
        self.model, self._tokenizer, self._plan = model, tokenizer, plan
        self._tokenizer_folder, self._table = tokenizer_folder, recipe.train
        self._group, self._lora = group, recipe.lora
        self._base = recipe.model or tokenizer_folder
        self._tasks = tasks
        self._head_of = {name: head_of(name, task) for name, task in recipe.tasks.items()}
        self._kinds: dict[str, str] = {name: data.task.kind for name, data in tasks.items()}
        self._weights = {name: data.task.weight for name, data in tasks.items()}
        if recipe.masked_lm is not None:
            self._head_of[MASKED], self._kinds[MASKED] = MASKED, "mlm"
            self._weights[MASKED] = recipe.masked_lm.weight
        self._names = list(self._kinds)
        self.metrics = {
            name: check_metric(data.task.kind, data.train.labels, data.task.metric)
            for name, data in tasks.items()
        }
        self._device = next(model.parameters()).device
        self._frozen = frozen(model, recipe.train.freeze)
        self._say_unreached()
        self._class_weights = self._balanced() if recipe.train.class_weights else {}
        self.objectives = (".rows", *(n for name in self._names for n in (name, f"{name}.rows")))
        self.evaluation_seconds = 0.0

    def _balanced(self) -> dict[str, Tensor]:
        """Weights of classes whose mean over the targets is 1."""
        weights = {}
        for name, kind in self._kinds.items():
            if kind in ("classify", "tag"):
                counts = self._plan.class_counts(name, self._head(name).width)
                there = int((counts > 0).sum())
                scale = counts.sum() / (there * np.maximum(counts, 1))
                weights[name] = torch.tensor(scale, dtype=torch.float32, device=self._device)
        return weights

    def _head(self, name: str) -> HeadConfig:
        return self.model.head_configs[self._head_of[name]]

    @property
    def cosines(self) -> Cosines | None:
        """What is measured of the tasks' gradients on the encoder that they share."""
        every = self._table.gradient_cosines
        if len(self._names) < 2 or not every:
            return None
        shared = [
            parameter
            for name, parameter in self.model.named_parameters()
            if name.startswith(("embeddings.", "layers.")) and parameter.requires_grad
        ]
        return Cosines(every=every, names=self._names, parameters=shared) if shared else None

    def _say_unreached(self) -> None:
        every = self._table.unfreeze_every
        if every is None:
            return
        layers = self.model.config.num_layers
        steps = in_steps("unfreeze_every", every, self._plan.steps_an_epoch)
        left = layers - (self._plan.steps - 1) // steps
        if left >= 0:
            lowest = f"the {left} lowest layers and " if left else ""
            say(f"note: the run ends before {lowest}the embeddings are unfrozen")

    def before(self, step: int) -> None:
        """What is trained in a step, where layers are unfrozen one by one."""
        every = self._table.unfreeze_every
        if every is not None:
            steps = in_steps("unfreeze_every", every, self._plan.steps_an_epoch)
            unfreeze(self.model, self._frozen, stage=step // steps)

    def batch(self, step: int) -> list[Micro]:
        """See `Work.batch`."""
        out = []
        # This process's share; a single loss over all processes' rows needs no equal ones.
        rows = self._plan.batch(step)[self._group.rank :: self._group.size]
        if not rows:
            counts = dict.fromkeys(self.objectives, 0.0)
            return [Micro(batch=Ragged.from_rows([]), counts=counts, flops=0.0)]
        # Masked LM reads few positions of the last layer: rows of their own.
        for part in (
            [row for row in rows if MASKED not in row.targets],
            [row for row in rows if MASKED in row.targets],
        ):
            for group in micro_batches([len(row.ids) for row in part], self._table.micro_tokens):
                batch, counts, arrays = collate([part[i] for i in group], self._kinds)
                config, masked = self.model.config, int(counts.get(MASKED, 0))
                forward = (
                    masked_lm_flops(config, batch.lengths, masked)
                    if masked
                    else encoder_flops(config, batch.lengths)
                )
                out.append(Micro(batch=batch, counts=counts, flops=3 * forward, arrays=arrays))
        return out

    def loss(
        self, micro: Micro, totals: Mapping[str, float]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """See `Work.loss`; what is logged of each task is its part before any weight."""
        here = [name for name in self._names if micro.counts[name]]
        # Where a process has no row of a batch there is a loss to descend all the same.
        total = torch.zeros((), device=self._device, requires_grad=torch.is_grad_enabled())
        parts = {f"{name}_loss": total for name in self._names}
        logits = self._logits(micro, here)
        for name in here:
            summed = self._masked(micro) if name == MASKED else self._summed(name, logits, micro)
            part = summed / totals[name] * (totals[f"{name}.rows"] / totals[".rows"])
            parts[f"{name}_loss"] = part
            if self._table.weighting == "uncertainty":
                log_variance = self._log_variances()[self._names.index(name)]
                # Its own term once a batch, a row here counting as one there.
                own = micro.counts[f"{name}.rows"] / totals[".rows"]
                part = torch.exp(-log_variance) * part + own * log_variance / 2
            total = total + self._weights[name] * part
        return total, {"loss": total, **(parts if len(self._names) > 1 else {})}

    def _logits(self, micro: Micro, names: Sequence[str]) -> Mapping[str, Tensor]:
        """Of the heads of these tasks."""
        wanted = list(dict.fromkeys(self._head_of[name] for name in names if name != MASKED))
        if not wanted:
            return {}
        ids, types = (
            torch.from_numpy(a).to(self._device) for a in (micro.batch.ids, micro.batch.types)
        )
        logits: Mapping[str, Tensor] = self.model(
            ids, micro.batch.offsets, types, heads=wanted
        ).heads
        return logits

    def _masked(self, micro: Micro) -> Tensor:
        return masked_lm_loss(
            self.model,
            MASKED,
            torch.from_numpy(micro.batch.ids).to(self._device),
            micro.batch.offsets,
            torch.from_numpy(micro.batch.types).to(self._device),
            micro.arrays[f"{MASKED}.places"],
            torch.from_numpy(micro.arrays[f"{MASKED}.targets"]).to(self._device),
        )[0]

    def _summed(self, name: str, logits: Mapping[str, Tensor], micro: Micro) -> Tensor:
        arrays = {
            key.removeprefix(f"{name}."): torch.from_numpy(array).to(self._device)
            for key, array in micro.arrays.items()
            if key.rpartition(".")[0] == name
        }
        return head_loss(
            self._kinds[name],
            logits[self._head_of[name]],
            arrays,
            smoothing=self._table.label_smoothing,
            class_weights=self._class_weights.get(name),
        )

    def _log_variances(self) -> Tensor:
        return self.model.get_parameter("uncertainty.bias")

    def evaluate(self) -> Evaluation:
        """See `Work.evaluate`; the score is the mean of each task's first metric.

        A correlation with what is constant is not defined, and counts as 0.
        """
        results = {}
        outputs = self.dev_outputs()
        began = time.perf_counter()
        for name in self._tasks:
            scores = score_outputs(self._head(name), outputs[name])
            values = {key: float(measure) for key, measure in scores.measures.items()}
            values = {key: 0.0 if isnan(value) else value for key, value in values.items()}
            main = self.metrics[name]
            results[name] = {main: values[main], **values}
        mains = [results[name][self.metrics[name]] for name in self._tasks]
        self.evaluation_seconds += time.perf_counter() - began
        return Evaluation(results=results, score=sum(mains) / len(mains))

    def dev_outputs(self) -> dict[str, Outputs]:
        """What heads put out for each task's dev rows; tasks that share texts take one pass."""
        began = time.perf_counter()
        engine = TorchEngine.around(self.model)
        asked = [(self._head_of[name], data.dev) for name, data in self._tasks.items()]
        outputs = read_heads(engine, self._tokenizer, asked)
        self.evaluation_seconds += time.perf_counter() - began
        return dict(zip(self._tasks, outputs, strict=True))

    @property
    def heads(self) -> dict[str, HeadConfig]:
        """Those of the result."""
        return {name: head for name, head in self.model.head_configs.items() if name != MASKED}

    def write(self, folder: Path) -> None:
        """See `Work.write`."""
        tensors = merged_arrays(self.model)
        masked = {name: tensors.pop(name) for name in [*tensors] if name.startswith(_MASKED_HEAD)}
        # The log-variances have a name that no folder knows, and are left out.
        checkpoint.write(
            folder,
            config=self.model.config,
            heads=self.heads,
            tensors=tensors,
            tokenizer_folder=self._tokenizer_folder,
        )
        if masked:
            save_arrays(folder / _MASKED, masked)
        if self._lora is not None:
            write_adapter(
                folder / ADAPTER, self.model, self._lora, heads=self.heads, base=str(self._base)
            )
        if self._table.weighting == "uncertainty":
            values = dict(zip(self._names, self._log_variances().tolist(), strict=True))
            replace_file(folder / _WEIGHTING, json.dumps(values))

    def read(self, folder: Path) -> None:
        """See `Work.read`."""
        read = checkpoint.read(folder)
        values = {name: torch.tensor(value) for name, value in read.tensors.items()}
        if self._lora is not None:
            # What it holds of the encoder is merged; the encoder itself is the one we began with.
            values = {n: value for n, value in values.items() if n.startswith("heads.")}
            values |= read_adapter(folder / ADAPTER, self.model, read.heads)
        if MASKED in self.model.head_configs:
            values |= safetensors.torch.load_file(folder / _MASKED)
        if self._table.weighting == "uncertainty":
            learned = read_json(folder / _WEIGHTING)
            values["uncertainty.bias"] = torch.tensor([learned[name] for name in self._names])
        self.model.load_state_dict(values, strict=self._lora is None)
