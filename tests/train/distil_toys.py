"""Teachers and recipes for the tests of distilling."""

import os
from pathlib import Path
from typing import Any

import torch

from enrobe import checkpoint
from enrobe.config import EncoderConfig, HeadConfig
from enrobe.nn.heads import Model
from enrobe.train import distil, state
from enrobe.train.distil_recipe import DistilRecipe, kind_of
from enrobe.train.recipe import make
from tests.support import random_documents, toy_tokenizer, write_txt
from tests.train.toys import tokenizer_folder


def teacher_folder(folder: Path, *, heads: bool = True, dropout: float = 0.1) -> Path:
    """A random model of three layers, with a masked-LM head."""
    torch.manual_seed(6)
    config = EncoderConfig(
        family="roberta",
        vocab_size=toy_tokenizer().vocab_size,
        hidden_size=40,
        num_layers=3,
        num_heads=4,
        intermediate_size=72,
        max_positions=42,
        position_offset=2,
        type_vocab_size=1,
        hidden_dropout=dropout,
        attention_dropout=dropout,
        initializer_range=0.1,
    )
    made = {"mlm": HeadConfig(kind="mlm")} if heads else {}
    tensors: dict[str, Any] = {
        name: value.detach().numpy() for name, value in Model(config, made).state_dict().items()
    }
    checkpoint.write(
        folder,
        config=config,
        heads=made,
        tensors=tensors,
        tokenizer_folder=tokenizer_folder(folder.parent / "tokenizer"),
    )
    return folder


def values(teacher: Path, output: Path, /, **tables: Any) -> dict[str, Any]:
    """What a recipe file would hold."""
    train = {"steps": 6, "batch_rows": 4, "lr": 1e-2, "micro_tokens": 70, "log_every": 1}
    train |= {"save_every": 2, "keep": 9}
    return {"teacher": str(teacher), "output": str(output), "train": train, **tables}


def corpus_tables(folder: Path) -> dict[str, Any]:
    files = {}
    for seed, name in enumerate(("train", "dev")):
        files[name] = {"files": [str(write_txt(folder / f"{name}.txt", random_documents(seed, 9)))]}
    sources, heldout = {"a": files["train"]}, {"dev": files["dev"]}
    return {"corpus": {"length": 32, "sources": sources, "heldout": heldout}}


def texts_tables(folder: Path, **changes: Any) -> dict[str, Any]:
    files = {}
    for seed, name in enumerate(("files", "heldout")):
        lines = [" ".join(text.split()) for text in random_documents(seed, 40, words=8)]
        path = folder / f"{name}-texts.txt"
        path.write_text("\n".join(lines) + "\n")
        files[name] = [str(path)]
    return {"texts": {**files, **changes}}


def recipe(given: dict[str, Any]) -> DistilRecipe:
    return make(kind_of(given), given)


def killed_at(given: dict[str, Any], resume: bool, step: int) -> None:
    """Run until a step's checkpoint is there, then die in the middle of the next one's."""
    save = state.Checkpoints.save

    def die(*arguments: Any) -> Any:
        if arguments[1].step > step:
            os._exit(9)
        return save(*arguments)

    state.Checkpoints.save = die  # type: ignore[method-assign]
    distil.run(recipe(given), resume=resume)
