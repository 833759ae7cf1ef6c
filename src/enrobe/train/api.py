"""What `enrobe` offers of training; PyTorch is imported when a call needs it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from enrobe.data.labels import Kind
from enrobe.errors import CallError, MissingExtraError

if TYPE_CHECKING:
    from enrobe.evaluate.similarity import Progress
    from enrobe.train.align import AlignResult
    from enrobe.train.align_recipe import AlignRecipe
    from enrobe.train.distil_recipe import DistilRecipe
    from enrobe.train.distil_report import DistilResult
    from enrobe.train.finetune_recipe import FinetuneRecipe
    from enrobe.train.finetune_result import FinetuneResult
    from enrobe.train.pretrain import PretrainResult
    from enrobe.train.recipe import PretrainRecipe


@contextmanager
def _training() -> Iterator[None]:
    """Around the imports of what needs PyTorch: MissingExtraError without it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError("PyTorch", "train", "training") from None


def pretrain(
    recipe: "str | os.PathLike[str] | PretrainRecipe",
    *,
    resume: bool = False,
    changes: Sequence[str] = (),
) -> "PretrainResult":
    """Pretrain a masked language model, or adapt one to a domain.

    Args:
        recipe: a TOML file (docs/pretraining.md), or its values.
        resume: go on from the last complete checkpoint in the recipe's output, exactly; from the
            beginning where there is none yet.
        changes: `key.key=value` pairs that replace what the file says.

    Raises:
        CallError: the recipe is wrong, the output is there already (without `resume`), or a file
            cannot be read or written. Checkpoints stay as they are.
        ModelError: the model to start from cannot be read.
        TrainError: the loss or the gradient is not finite.
        MissingExtraError: without PyTorch.
    """
    with _training():
        from enrobe.train import pretrain as module
        from enrobe.train.recipe import PretrainRecipe, given
    return module.run(given(recipe, PretrainRecipe, changes), resume=resume)


def finetune(
    recipe: "str | os.PathLike[str] | FinetuneRecipe",
    *,
    resume: bool = False,
    changes: Sequence[str] = (),
) -> "FinetuneResult":
    """Fine-tune a model for one task or for several: a head a task on one encoder.

    Args:
        recipe: a TOML file (docs/finetuning.md), or its values.
        resume: go on from the last complete checkpoint in the recipe's output, exactly; from the
            beginning where there is none yet.
        changes: `key.key=value` pairs that replace what the file says; `epochs=1` is one of
            `train.epochs`.

    Raises:
        CallError: the recipe or a labelled file is wrong, the output is there already (without
            `resume`), or a file cannot be read or written. Checkpoints stay as they are.
        ModelError: the model to start from cannot be read.
        TrainError: the loss or the gradient is not finite.
        MissingExtraError: without PyTorch.
    """
    with _training():
        from enrobe.train import finetune_runs as module
        from enrobe.train.finetune_recipe import FinetuneRecipe, in_train
        from enrobe.train.recipe import given
    return module.run(given(recipe, FinetuneRecipe, in_train(changes)), resume=resume)


def align(
    recipe: "str | os.PathLike[str] | AlignRecipe",
    *,
    resume: bool = False,
    changes: Sequence[str] = (),
    progress: "Progress | None" = None,
) -> "AlignResult":
    """Put a model's vectors of sentences into another model's space.

    By a rotation in closed form (Procrustes), which the new folder carries and `embed` applies;
    with a `[train]` table by training (Reimers and Gurevych 2020).

    Args:
        recipe: a TOML file (docs/languages.md), or its values.
        resume: go on with training from the last complete checkpoint.
        changes: `key.key=value` pairs that replace what the file says.
        progress: called now and then with how far it is.

    Raises:
        CallError: the recipe or a file of pairs is wrong, or the output is there already.
        ModelError: one of the models cannot be read.
        MissingExtraError: without PyTorch.
    """
    with _training():
        from enrobe.train import align as module
        from enrobe.train.align_recipe import AlignRecipe
        from enrobe.train.recipe import given
    return module.run(given(recipe, AlignRecipe, changes), resume=resume, progress=progress)


def finetune_files(
    train: Sequence[Path],
    dev: Sequence[Path],
    *,
    kind: Kind | None,
    text: Sequence[str],
    label: Sequence[str],
    model: str | None,
    output: Path | None,
    resume: bool,
    changes: Sequence[str],
) -> "FinetuneResult":
    """`finetune` for one task without a recipe, as the command line has it.

    Raises:
        CallError, ModelError, TrainError, MissingExtraError: as `finetune`.
    """
    if not train:
        raise CallError("nothing to learn from; fix: a recipe, or --train FILE --output DIR")
    if output is None:
        raise CallError("no output is named; fix: --output DIR")
    with _training():
        from enrobe.train.finetune_recipe import recipe_of_files
        from enrobe.train.work import say
    recipe, said = recipe_of_files(
        kind=kind,
        train=train,
        dev=dev,
        text=text,
        label=label,
        model=model,
        output=output,
        changes=changes,
    )
    for line in said:
        say(line)
    return finetune(recipe, resume=resume)


def distill(
    recipe: "str | os.PathLike[str] | DistilRecipe",
    *,
    resume: bool = False,
    changes: Sequence[str] = (),
) -> "DistilResult":
    """Teach a smaller model what a larger one says: trained heads, masked LM, or vectors.

    Args:
        recipe: a TOML file (docs/distilling.md), or its values.
        resume: go on from the last complete checkpoint in the recipe's output, exactly; from the
            beginning where there is none yet.
        changes: `key.key=value` pairs that replace what the file says; `epochs=1` is one of
            `train.epochs`.

    Raises:
        CallError: the recipe or a file of its data is wrong, the output is there already (without
            `resume`), or a file cannot be read or written. Checkpoints stay as they are.
        ModelError: the teacher, or a student that is named, cannot be read.
        TrainError: the loss or the gradient is not finite.
        MissingExtraError: without PyTorch.
    """
    with _training():
        from enrobe.train import distil as module
        from enrobe.train.distil_recipe import DistilRecipe, kind_of
        from enrobe.train.finetune_recipe import in_train
        from enrobe.train.recipe import given
    return module.run(given(recipe, DistilRecipe, in_train(changes), kind_of), resume=resume)
