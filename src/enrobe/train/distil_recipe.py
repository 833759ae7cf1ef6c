"""Recipes for distilling: a teacher, a `[student]`, `[losses]`, `[train]`, and one kind of data.

[tasks.NAME]            labelled files: the teacher's trained heads (DistilHeads)
[corpus], [masking]     text files: its masked-LM head (DistilCorpus)
[texts]                 texts: its vectors of sentences (DistilTexts)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from enrobe.data.examples import TaskConfig
from enrobe.data.masking import MaskingConfig
from enrobe.errors import CallError, nearest, show
from enrobe.train.augment import AugmentTable
from enrobe.train.distil_losses import Distance
from enrobe.train.finetune_recipe import FinetuneRecipe, FinetuneTable
from enrobe.train.loop import TrainConfig
from enrobe.train.recipe import CorpusTable, PretrainRecipe

_SIZES = ("hidden_size", "num_heads", "intermediate_size")


@dataclass(frozen=True, kw_only=True)
class StudentTable:
    """What the student is made of.

    Raises:
        CallError: a value is not allowed, or two contradict each other.
    """

    layers: int | tuple[int, ...] | None = None
    # how many, spread evenly over the teacher's; or which ones, from 1; None: half of them
    hidden_size: int | None = None
    # with any of these sizes the student is a new model, whose weights are drawn; what is not given
    # stands in proportion to the teacher's
    num_heads: int | None = None
    intermediate_size: int | None = None
    model: str | None = None
    # or a model that is there already, with the teacher's tokenizer: a folder, a hub id

    def __post_init__(self) -> None:
        many = isinstance(self.layers, tuple)
        numbers = self.layers if isinstance(self.layers, tuple) else (self.layers,)
        if any(number is not None and number < 1 for number in numbers) or not numbers:
            raise CallError(f"layers is {show(self.layers)}; allowed: 1 or more, or a list of them")
        if many and list(numbers) != sorted(set(numbers)):  # type: ignore[type-var]
            raise CallError(f"layers is {show(list(numbers))}; allowed: each once, ascending")
        for name in _SIZES:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CallError(f"{name} is {show(value)}; allowed: 1 or more")
            if value is not None and many:
                raise CallError(
                    f"layers is {show(list(numbers))} and {name} is {value}; a new shape takes no "
                    f"layers of the teacher: fix: layers = {len(numbers)}"
                )
        others = [name for name in ("layers", *_SIZES) if getattr(self, name) is not None]
        if self.model is not None and others:
            raise CallError(
                f"model is {show(self.model)} and {others[0]} is given; a model has its own sizes: "
                "leave out one of the two"
            )

    @property
    def is_new(self) -> bool:
        """Whether it has a shape of its own."""
        return any(getattr(self, name) is not None for name in _SIZES)


@dataclass(frozen=True, kw_only=True)
class HiddenTable:
    """The loss on hidden states, which any kind of data can have.

    Raises:
        CallError: a value is not allowed.
    """

    hidden: float = 0.0
    # its weight; the teacher is then run in every step
    hidden_distance: Distance = "mse"
    # cosine, mse
    hidden_layers: tuple[tuple[int, int], ...] | None = None
    # [[student's, teacher's], ...], 0 the embeddings; None: spread evenly

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name.endswith("distance") and value not in get_args(Distance):
                allowed = ", ".join(get_args(Distance))
                hint = nearest(str(value), get_args(Distance))
                raise CallError(f"{f.name} is {show(value)}; allowed: {allowed}{hint}")
            if isinstance(value, int | float) and not 0 <= value < math.inf:
                raise CallError(f"{f.name} is {show(value)}; allowed: 0 or more")
        if self.hidden_layers == ():
            raise CallError("hidden_layers is empty; fix: leave it out, or hidden = 0")


@dataclass(frozen=True, kw_only=True)
class HeadLosses(HiddenTable):
    """What is learned of heads: each number is the weight of a loss.

    Raises:
        CallError: a value is not allowed, or nothing is learned.
    """

    soft: float = 1.0
    # the teacher's answers
    temperature: float = 2.0
    # that both answers are divided by before they become probabilities
    hard: float = 1.0
    # the labels, or the masked tokens

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature == 0:
            raise CallError("temperature is 0; allowed: above 0")
        if not (self.soft or self.hard or self.hidden):
            raise CallError("soft, hard and hidden are 0; allowed: one above 0")


@dataclass(frozen=True, kw_only=True)
class VectorLosses(HiddenTable):
    """What is learned of the vectors of sentences.

    Raises:
        CallError: a value is not allowed, or nothing is learned.
    """

    vector: float = 1.0
    # the weight
    vector_distance: Distance = "cosine"
    # cosine, mse

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.vector or self.hidden):
            raise CallError("vector and hidden are 0; allowed: one above 0")


@dataclass(frozen=True, kw_only=True)
class TextsTable:
    """Texts whose vectors are learned.

    Raises:
        CallError: no file.
    """

    files: tuple[Path, ...]
    # txt, jsonl, csv, tsv, parquet, gz and xz of these; patterns such as train-*.txt.xz
    heldout: tuple[Path, ...] = ()
    # to measure on
    column: str | None = None
    # that holds the text; None: "text", or the only one
    limit: int | None = None
    # the longest row in tokens; None: the teacher's

    def __post_init__(self) -> None:
        if not self.files:
            raise CallError("[texts] files is empty; fix: name a file")
        if self.limit is not None and self.limit < 3:
            raise CallError(f"limit is {self.limit}; allowed: 3 or more")


@dataclass(frozen=True, kw_only=True)
class DistilRecipe:
    """What recipes for all kinds of data have.

    Raises:
        CallError: a value is not allowed.
    """

    output: Path
    teacher: str
    # a folder, a built-in name, a hub id
    student: StudentTable = field(default_factory=StudentTable)
    cache: Path | None = None
    # where the teacher's answers are kept, which runs can share; None: in the output
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise CallError(f"seed is {show(self.seed)}; allowed: 0 to 2**63 - 1")


@dataclass(frozen=True, kw_only=True)
class DistilHeads(DistilRecipe):
    """Trained heads, all in one run."""

    tasks: dict[str, TaskConfig]
    # by the names of the teacher's heads
    losses: HeadLosses = field(default_factory=HeadLosses)
    augment: AugmentTable = field(default_factory=AugmentTable)
    # rows without labels, whose answers are the teacher's alone
    train: FinetuneTable = field(default_factory=FinetuneTable)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.finetuning()
        if self.augment:
            if not self.losses.soft:
                raise CallError("[augment] is there and losses.soft is 0; no teacher is asked")
            if kinds := [name for name, task in self.tasks.items() if task.kind == "answer"]:
                raise CallError(
                    f"[augment] is there and tasks.{kinds[0]} is of kind answer, whose places are "
                    "in texts as they are; fix: leave out [augment]"
                )
        if self.student.is_new and self.train.freeze is not None:
            raise CallError(
                f"train.freeze is {show(self.train.freeze)} and the student has a new shape; "
                "its weights are drawn, and must learn: leave out one of the two"
            )

    def finetuning(self) -> FinetuneRecipe:
        """The recipe for learning the same without a teacher."""
        return FinetuneRecipe(
            output=self.output,
            tasks=self.tasks,
            model=self.teacher,
            train=self.train,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class DistilCorpus(DistilRecipe):
    """A masked language model."""

    corpus: CorpusTable
    train: TrainConfig
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    losses: HeadLosses = field(default_factory=HeadLosses)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pretraining()

    def pretraining(self) -> PretrainRecipe:
        """The recipe for learning the same without a teacher."""
        return PretrainRecipe(
            output=self.output,
            corpus=self.corpus,
            train=self.train,
            model=self.teacher,
            masking=self.masking,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class DistilTexts(DistilRecipe):
    """Vectors of sentences."""

    texts: TextsTable
    train: TrainConfig
    losses: VectorLosses = field(default_factory=VectorLosses)


_KINDS: Mapping[str, type[DistilRecipe]] = {
    "tasks": DistilHeads,
    "corpus": DistilCorpus,
    "texts": DistilTexts,
}


def kind_of(values: Mapping[str, Any]) -> type[DistilRecipe]:
    """The recipe that a file's values are, by the table of its data.

    Raises:
        CallError: it has none, or two.
    """
    found = [name for name in _KINDS if name in values]
    if len(found) != 1:
        have = " and ".join(f"[{name}]" for name in found) or "none of them"
        raise CallError(
            f"a recipe for distilling has one of [tasks.NAME] (labelled files), [corpus] (a masked "
            f"language model) and [texts] (vectors of sentences); this one has {have}"
        )
    return _KINDS[found[0]]
