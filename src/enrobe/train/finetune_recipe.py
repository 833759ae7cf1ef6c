"""Recipes for fine-tuning: one `[tasks.NAME]` table a task, and `[train]` for all of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from enrobe.config import check_head_name
from enrobe.data.examples import TaskConfig
from enrobe.data.guess import guess_task
from enrobe.data.labels import Kind
from enrobe.data.masking import MaskingConfig
from enrobe.errors import CallError, ModelError, nearest, show
from enrobe.train.loop import Device, Precision, TrainConfig
from enrobe.train.lora import LoraTable
from enrobe.train.optim import OptimizerConfig
from enrobe.train.recipe import as_values, make, set_value

Freeze = Literal["embeddings", "encoder"]
Sampling = Literal["proportional", "uniform"]
MASKED = "masked_lm"
"""The name of the masked-LM task, and of its head while it is trained."""
# Rows of an update.
_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class FinetuneTable(OptimizerConfig):
    """How long, how wide, and what is moved how far; the defaults are BERT's and RoBERTa's.

    Raises:
        CallError: a value is not allowed, or two contradict each other.
    """

    epochs: int | float = 3
    # times as many rows as all tasks have
    batch_rows: int | None = None
    # rows of an update; 16, where batch_tokens is not given either
    batch_tokens: int | None = None
    # or the most tokens of an update
    micro_tokens: int = 16_384
    # that go through the model at once; bounds memory
    limit: int | None = None
    # the longest row in tokens; None: the model's
    lr: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    freeze: Freeze | int | None = None
    # embeddings; encoder: all but the heads; 2: the embeddings and the two lowest layers
    unfreeze_every: int | float | None = None
    # 0.25: epochs, 100: steps, after each of which one more layer from the top is trained, the
    # embeddings last (Howard and Ruder 2018, section 3.3); None: all from the start
    layer_decay: float = 1.0
    # a layer's rate is so many times that of the one above it (Clark et al. 2020)
    label_smoothing: float = 0.0
    # classify and tag
    class_weights: Literal["balanced"] | None = None
    # balanced: rare classes count as much as frequent ones; classify and tag
    sampling: Sampling | float = "proportional"
    # of tasks that do not share their texts: by their rows; uniform; 2.0: by their square root, ...
    sampling_cap: int | None = None
    # rows that a task counts for at most when it is sampled in proportion
    weighting: Literal["fixed", "uncertainty"] = "fixed"
    # of the tasks' losses: by their `weight`; or learned (Kendall, Gal and Cipolla 2018)
    gradient_cosines: int = 100
    # steps between looks at how far the tasks' gradients agree; 0: none
    patience: int | None = None
    # evaluations in a row without a better score that end the run; None: all epochs are done
    evaluate_every: int | float = 1.0
    # 50: steps; 0.5: epochs
    gradient_checkpointing: bool = False
    # layers are computed again for their gradients: less memory, about a third more time
    save_every: int = 500
    # steps
    log_every: int = 20
    # steps
    keep: int = 1
    # checkpoints beside the best
    precision: Precision = "auto"
    device: Device = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        # What the loop checks anyway.
        self.config(steps=1, epoch=1)
        if not 0 < self.epochs < math.inf:
            raise CallError(f"epochs is {show(self.epochs)}; allowed: above 0")
        if self.batch_rows is not None and self.batch_tokens is not None:
            raise CallError(
                f"batch_rows is {self.batch_rows} and batch_tokens {self.batch_tokens}; allowed: "
                "one of the two"
            )
        counts = {"batch_tokens": 1, "limit": 3, "sampling_cap": 1, "gradient_cosines": 0}
        for name, least in counts.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise CallError(f"{name} is {show(value)}; allowed: {least} or more")
        if isinstance(self.freeze, int) and self.freeze < 0:
            raise CallError(f"freeze is {show(self.freeze)}; allowed: 0 or more layers")
        if self.unfreeze_every is not None:
            in_steps("unfreeze_every", self.unfreeze_every, 1)
        words: list[tuple[str, Sequence[str]]] = [
            ("freeze", get_args(Freeze)),
            ("sampling", get_args(Sampling)),
            ("class_weights", ("balanced",)),
            ("weighting", ("fixed", "uncertainty")),
        ]
        for name, allowed in words:
            value = getattr(self, name)
            if isinstance(value, str) and value not in allowed:
                hint = nearest(value, allowed)
                raise CallError(f"{name} is {show(value)}; allowed: {', '.join(allowed)}{hint}")
        if isinstance(self.sampling, int | float) and not 0 < self.sampling < math.inf:
            raise CallError(f"sampling is {show(self.sampling)}; allowed: above 0")
        if self.sampling_cap is not None and self.sampling != "proportional":
            raise CallError(f"sampling_cap is for proportional; sampling is {show(self.sampling)}")
        if not 0 < self.layer_decay <= 1:
            raise CallError(f"layer_decay is {show(self.layer_decay)}; allowed: above 0, up to 1")
        if not 0 <= self.label_smoothing < 1:
            raise CallError(
                f"label_smoothing is {show(self.label_smoothing)}; allowed: from 0 up to 1"
            )

    def config(self, *, steps: int, epoch: int) -> TrainConfig:
        """What the loop is told: a run of so many steps, and so many an epoch."""
        every = in_steps("evaluate_every", self.evaluate_every, epoch)
        same = {f.name for f in fields(TrainConfig)} & {f.name for f in fields(self)}
        values = {name: getattr(self, name) for name in same}
        changed = {"batch_rows": self.rows, "evaluate_every": every, "compile": False}
        return TrainConfig(**{**values, **changed}, steps=steps)

    @property
    def rows(self) -> int:
        """Rows of an update, where batch_tokens does not say."""
        return _ROWS if self.batch_rows is None else self.batch_rows


def in_steps(name: str, value: int | float, epoch: int) -> int:
    """A number of steps, or with a point of epochs of so many steps, as steps: one at least.

    Raises:
        CallError: not above 0.
    """
    if not 0 < value < math.inf:
        raise CallError(f"{name} is {show(value)}; allowed: above 0")
    return max(1, round(value * epoch)) if isinstance(value, float) else value


@dataclass(frozen=True, kw_only=True)
class MaskedLMTable(MaskingConfig):
    """Masked words of the tasks' own texts, learned beside the tasks.

    Raises:
        CallError: a value is not allowed.
    """

    weight: float = 1.0
    # of its loss

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.weight < math.inf:
            raise CallError(f"weight is {show(self.weight)}; allowed: above 0")


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe:
    """All that `enrobe finetune` needs to know.

    Raises:
        CallError: a value is not allowed.
    """

    output: Path
    tasks: dict[str, TaskConfig]
    # by name, which is the head's, too, unless it shares another's
    model: str | None = None
    # to start from: a folder, a built-in name, a hub id; None: as `enrobe.load` has it
    train: FinetuneTable = field(default_factory=FinetuneTable)
    masked_lm: MaskedLMTable | None = None
    # one more task, of the texts of all others; None: without
    lora: LoraTable | None = None
    # thin matrices beside those of the encoder are trained in its place; None: all of it is
    seed: int = 1
    seeds: tuple[int, ...] = ()
    # a run with each; `seed` then parts train and dev only
    baseline: bool = False
    # each task alone, too, to compare with

    def __post_init__(self) -> None:
        for seed in (self.seed, *self.seeds):
            if not 0 <= seed < 2**63:
                raise CallError(f"seed is {show(seed)}; allowed: 0 to 2**63 - 1")
        if len(set(self.seeds)) < len(self.seeds):
            raise CallError(f"seeds are {show(self.seeds)}; the same one stands there twice")
        if self.baseline and len(self.tasks) == 1 and self.masked_lm is None:
            raise CallError("baseline is for several tasks, and there is one; fix: leave it out")
        for name in ("freeze", "unfreeze_every") if self.lora is not None else ():
            if getattr(self.train, name) is not None:
                raise CallError(f"[lora] leaves the encoder as it is, and train.{name} is given")
        if not self.tasks:
            raise CallError("[tasks] is empty; fix: add [tasks.NAME] with kind and train")
        for name, task in self.tasks.items():
            for called in (name, task.head):
                try:
                    check_head_name(name if called is None else called)
                except ModelError as error:
                    raise CallError(f"tasks.{name}: {error}") from None
                if called == MASKED or name == MASKED:
                    raise CallError(f"tasks.{name}: {MASKED} is the name of masked LM's own task")
            if not task.train:
                raise CallError(f"tasks.{name}: no train file")
            kinds = {
                other.kind
                for key, other in self.tasks.items()
                if head_of(key, other) == head_of(name, task)
            }
            if len(kinds) > 1:
                given = " and ".join(sorted(kinds))
                raise CallError(f"tasks.{name}: its head is shared by tasks of kind {given}")


def head_of(name: str, task: TaskConfig) -> str:
    """The head that a task trains."""
    return task.head or name


def recipe_of_files(
    *,
    kind: Kind | None,
    train: Sequence[Path],
    dev: Sequence[Path],
    text: Sequence[str],
    label: Sequence[str],
    model: str | None,
    output: Path,
    changes: Sequence[str] = (),
) -> tuple[FinetuneRecipe, tuple[str, ...]]:
    """The recipe of one task, of what a command line says of it, and what was guessed.

    Raises:
        CallError: as `FinetuneRecipe` and `guess_task`.
    """
    guess = guess_task(train, kind=kind, text=text, label=label, dev=tuple(dev))
    task = as_values(guess.task)
    given = {key: value for key, value in task.items() if value not in (None, [], ())}
    values: dict[str, Any] = {"output": str(output), "tasks": {guess.task.kind: given}}
    if model is not None:
        values["model"] = model
    for change in in_train(changes):
        set_value(values, change)
    return make(FinetuneRecipe, values), guess.said


def in_train(changes: Sequence[str]) -> list[str]:
    """`--set` changes, of which `epochs=1` means `train.epochs=1`."""
    known = {f.name for f in fields(FinetuneTable)}
    out = []
    for change in changes:
        name = change.partition("=")[0].strip()
        out.append(f"train.{change.strip()}" if name in known else change)
    return out


def shares(sizes: Mapping[str, int], table: FinetuneTable) -> dict[str, int]:
    """In which ratio rows of several sources are drawn, as whole numbers.

    Ratios that do not come out even soon enough are rounded to one in 65,536.
    """
    if table.sampling == "proportional":
        wanted = {name: float(min(n, table.sampling_cap or n)) for name, n in sizes.items()}
    elif table.sampling == "uniform":
        wanted = dict.fromkeys(sizes, 1.0)
    else:
        # Smoothing by temperature (Devlin's multilingual BERT; Raffel et al. 2020, section 3.5.2).
        wanted = {name: float(n) ** (1 / float(table.sampling)) for name, n in sizes.items()}
    total = sum(wanted.values())
    if total <= 2**16 and all(value.is_integer() for value in wanted.values()):
        return {name: int(value) for name, value in wanted.items()}
    return {name: max(1, round(value / total * 2**16)) for name, value in wanted.items()}
