"""Fine-tuning: labelled files and a recipe to a model with a head a task.

One task is a mix of one. The loss of a batch is the sum over its tasks of

    weight * (summed loss / count of targets) * (the task's rows / all rows)

with both counts over the whole batch, whatever goes through the model at once; so tasks on the
same rows add up, and tasks that share a batch count by their rows in it.

Legend: T tokens, B rows.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from enrobe import checkpoint, hub
from enrobe.atomic import check_new, new_folder, replace_file, replace_folder
from enrobe.checkpoint import read_json
from enrobe.config import HeadConfig
from enrobe.data.splits import TaskData
from enrobe.engines.torch import TorchEngine
from enrobe.errors import CallError, EnrobeError
from enrobe.evaluate.heads import check_metric, score_head
from enrobe.nn.heads import Model
from enrobe.text.tokenizer import Tokenizer
from enrobe.train.finetune_data import Plan, fingerprint, load_tasks
from enrobe.train.finetune_model import lr_scales, new_heads, new_model
from enrobe.train.finetune_recipe import FinetuneRecipe, head_of
from enrobe.train.group import Group
from enrobe.train.log import LOG
from enrobe.train.loop import Run, fit
from enrobe.train.recipe import as_values
from enrobe.train.state import BEST, LATEST, Checkpoints, load_state
from enrobe.train.supervised import collate, head_loss
from enrobe.train.word_rows import train_used_words
from enrobe.train.work import Evaluation, Micro, encoder_flops, micro_batches, model_arrays, say

# The learned log-variances of tasks, beside a checkpoint's model.
_WEIGHTING = "weighting.json"


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """What a run made.

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
    # gone through in this call
    seconds: float
    # of training in this call
    evaluation_seconds: float
    # of measuring

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        return {**asdict(self), "model": str(self.model)}


def run(recipe: FinetuneRecipe, *, resume: bool) -> FinetuneResult:
    """Fine-tune, or go on; see `enrobe.finetune`."""
    folder = recipe.output
    if not resume:
        check_new(folder)
    group = Group.join(recipe.train.device)
    try:
        if group.size > 1:
            raise CallError(f"{group.size} processes; fine-tuning runs in one")
        tasks = load_tasks(recipe)
        read = checkpoint.read(hub.resolve(recipe.model))
        tokenizer = Tokenizer.from_folder(read.folder, read.config.family, read.config.vocab_size)
        heads = new_heads(recipe, tasks, read)
        model = new_model(recipe, read, heads)
        limit = min(recipe.train.limit or read.config.max_tokens, read.config.max_tokens)
        of_tasks = {name: heads[head_of(name, task)] for name, task in recipe.tasks.items()}
        plan = Plan(tokenizer, tasks, of_tasks, recipe.train, limit=limit, seed=recipe.seed)
        config = recipe.train.config(steps=plan.steps, epoch=plan.steps_an_epoch)
        say(f"{sum(map(len, plan.sources.values())):,} rows to learn from, {plan.steps:,} steps")
        model.to(group.device)
        train_used_words(model, plan.used_words())
        work = HeadTraining(model, tokenizer, read.folder, recipe, tasks, plan)
        folder.mkdir(parents=True, exist_ok=True)
        ended = fit(
            work,
            config,
            folder=folder,
            recipe=_values(recipe, tasks),
            seed=recipe.seed,
            group=group,
            resume=resume,
            lr_scales=lr_scales(model, recipe.train),
            measure_first=False,
        )
        return _result(folder, work, ended)
    except OSError as error:
        if isinstance(error, EnrobeError):
            raise
        raise CallError(f"{error.filename or folder}: {error.strerror or error}") from None
    finally:
        group.leave()


def _values(recipe: FinetuneRecipe, tasks: Mapping[str, TaskData]) -> dict[str, Any]:
    """What the run is, as JSON; its files by their content, wherever they lie."""
    values = as_values(recipe)
    del values["output"]
    for name, data in tasks.items():
        for part in ("train", "dev"):
            values["tasks"][name][part] = fingerprint(getattr(data.task, part))
        del values["tasks"][name]["test"]
    return values


def _result(folder: Path, work: "HeadTraining", ended: Run) -> FinetuneResult:
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    best = checkpoints.named(BEST) or checkpoints.named(LATEST)
    assert best is not None
    step = load_state(best)[0].step
    scores: Mapping[str, Mapping[str, float]] = {}
    if ended.finished:
        target, source = folder / "model", best / "model"
        # A run that went on has an older one there.
        replace_folder(target, lambda place: _copy_model(source, place))
        lines = map(json.loads, (folder / LOG).read_text("utf-8").splitlines())
        measured = [
            line["evaluation"] for line in lines if "evaluation" in line and line["step"] == step
        ]
        scores = measured[-1] if measured else {}
    else:
        target = folder / "checkpoints" / f"step-{ended.step:09d}" / "model"
    mains = [next(iter(measures.values())) for measures in scores.values()]
    return FinetuneResult(
        model=target,
        step=ended.step,
        best_step=step,
        finished=ended.finished,
        early=ended.early,
        scores=scores,
        score=sum(mains) / len(mains) if mains else None,
        tokens=ended.tokens,
        seconds=ended.seconds,
        evaluation_seconds=work.evaluation_seconds,
    )


def _copy_model(source: Path, target: Path) -> None:
    with new_folder(target) as made:
        for path in source.iterdir():
            if path.name != _WEIGHTING:
                shutil.copy(path, made / path.name)


# --- the work ---------------------------------------------------------------------------------


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
    ) -> None:
        """Put a model and its data together."""
        self.model, self._tokenizer, self._plan = model, tokenizer, plan
        self._tokenizer_folder, self._table = tokenizer_folder, recipe.train
        self._tasks, self._names = tasks, list(tasks)
        self._head_of = {name: head_of(name, task) for name, task in recipe.tasks.items()}
        self._kinds = {name: data.task.kind for name, data in tasks.items()}
        self._metrics = {
            name: check_metric(data.task.kind, data.train.labels, data.task.metric)
            for name, data in tasks.items()
        }
        self._device = next(model.parameters()).device
        self._class_weights = self._balanced() if recipe.train.class_weights else {}
        self.objectives = (".rows", *(n for name in tasks for n in (name, f"{name}.rows")))
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

    def batch(self, step: int) -> list[Micro]:
        """See `Work.batch`."""
        out = []
        rows = self._plan.batch(step)
        for group in micro_batches([len(row.ids) for row in rows], self._table.micro_tokens):
            batch, counts, arrays = collate([rows[i] for i in group], self._kinds)
            flops = 3 * encoder_flops(self.model.config, batch.lengths)
            out.append(Micro(batch=batch, counts=counts, flops=flops, arrays=arrays))
        return out

    def loss(
        self, micro: Micro, totals: Mapping[str, float]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """See `Work.loss`; what is logged of each task is its part before any weight."""
        here = [name for name in self._names if micro.counts[name]]
        logits = self._logits(micro, here)
        total = torch.zeros((), device=self._device)
        parts = {f"{name}_loss": total for name in self._names}
        for name in here:
            summed = self._summed(name, logits, micro)
            part = summed / totals[name] * (totals[f"{name}.rows"] / totals[".rows"])
            parts[f"{name}_loss"] = part.detach()
            if self._table.weighting == "uncertainty":
                log_variance = self._log_variances()[self._names.index(name)]
                # Its own term once a batch, a row here counting as one there.
                own = micro.counts[f"{name}.rows"] / totals[".rows"]
                part = torch.exp(-log_variance) * part + own * log_variance / 2
            total = total + self._tasks[name].task.weight * part
        return total, {"loss": total, **(parts if len(self._names) > 1 else {})}

    def _logits(self, micro: Micro, names: Sequence[str]) -> Mapping[str, Tensor]:
        """Of the heads of these tasks."""
        ids, types = (
            torch.from_numpy(a).to(self._device) for a in (micro.batch.ids, micro.batch.types)
        )
        wanted = list(dict.fromkeys(self._head_of[name] for name in names))
        logits: Mapping[str, Tensor] = self.model(
            ids, micro.batch.offsets, types, heads=wanted
        ).heads
        return logits

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
        began = time.perf_counter()
        engine = TorchEngine.around(self.model)
        results = {}
        for name, data in self._tasks.items():
            scores = score_head(engine, self._tokenizer, self._head_of[name], data.dev)
            values = {key: float(measure) for key, measure in scores.measures.items()}
            values = {key: 0.0 if isnan(value) else value for key, value in values.items()}
            main = self._metrics[name]
            results[name] = {main: values[main], **values}
        mains = [results[name][self._metrics[name]] for name in self._names]
        self.evaluation_seconds += time.perf_counter() - began
        return Evaluation(results=results, score=sum(mains) / len(mains))

    def write(self, folder: Path) -> None:
        """See `Work.write`."""
        # The log-variances have a name that no folder knows, and are left out.
        checkpoint.write(
            folder,
            config=self.model.config,
            heads=self.model.head_configs,
            tensors=model_arrays(self.model),
            tokenizer_folder=self._tokenizer_folder,
        )
        if self._table.weighting == "uncertainty":
            values = dict(zip(self._names, self._log_variances().tolist(), strict=True))
            replace_file(folder / _WEIGHTING, json.dumps(values))

    def read(self, folder: Path) -> None:
        """See `Work.read`."""
        read = checkpoint.read(folder)
        values = {name: torch.tensor(value) for name, value in read.tensors.items()}
        if self._table.weighting == "uncertainty":
            learned = read_json(folder / _WEIGHTING)
            values["uncertainty.bias"] = torch.tensor([learned[name] for name in self._names])
        self.model.load_state_dict(values)
