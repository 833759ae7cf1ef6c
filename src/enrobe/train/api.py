"""What `enrobe` offers of training; PyTorch is imported when a call needs it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from enrobe.errors import CallError, MissingExtraError

if TYPE_CHECKING:
    from enrobe.train.pretrain import PretrainResult
    from enrobe.train.recipe import PretrainRecipe


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
    try:
        from enrobe.train import pretrain as module
        from enrobe.train.recipe import PretrainRecipe, read_recipe
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError("PyTorch", "train", "training") from None
    if isinstance(recipe, PretrainRecipe):
        if changes:
            raise CallError("changes replace what a file says; fix: dataclasses.replace")
    else:
        recipe = read_recipe(Path(recipe), PretrainRecipe, changes)
    return module.run(recipe, resume=resume)
