"""A small encoder, labelled files that it can learn by heart, and recipes of them."""

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from enrobe import checkpoint, hub
from enrobe.config import EncoderConfig, HeadConfig
from enrobe.nn.heads import Model
from enrobe.text.tokenizer import Tokenizer
from enrobe.train import finetune, state
from enrobe.train.finetune_data import Plan, load_tasks
from enrobe.train.finetune_model import new_heads, new_model
from enrobe.train.finetune_recipe import FinetuneRecipe, head_of
from enrobe.train.finetune_work import HeadTraining
from enrobe.train.recipe import make
from tests.support import toy_tokenizer
from tests.train.toys import ALONE, tokenizer_folder

KINDS = ("classify", "multilabel", "regress", "tag", "answer")
WORDS = ("cat", "hat", "mat", "sat", "on", "the", "and", "was")


def model_folder(
    folder: Path, *, family: str = "roberta", dropout: float = 0.1, mlm: bool = False
) -> Path:
    """A random encoder without a head, or with that of masked LM."""
    torch.manual_seed(5)
    config = EncoderConfig(
        family=family,
        vocab_size=toy_tokenizer().vocab_size,
        hidden_size=40,
        num_layers=2,
        num_heads=4,
        intermediate_size=72,
        max_positions=42,
        position_offset=2,
        type_vocab_size=1,
        hidden_dropout=dropout,
        attention_dropout=dropout,
        initializer_range=0.1,
    )
    heads = {"mlm": HeadConfig(kind="mlm")} if mlm else {}
    tensors: dict[str, Any] = {
        name: value.detach().numpy() for name, value in Model(config, heads).state_dict().items()
    }
    checkpoint.write(
        folder,
        config=config,
        heads=heads,
        tensors=tensors,
        tokenizer_folder=tokenizer_folder(folder.parent / "tokenizer"),
    )
    return folder


def row(kind: str, words: Sequence[str]) -> dict[str, Any]:
    """A text and what follows from its words."""
    text = " ".join(words)
    if kind == "classify":
        return {"text": text, "label": words[0]}
    if kind == "multilabel":
        return {"text": text, "label": sorted({"cat", "hat"} & {*words})}
    if kind == "regress":
        return {"text": text, "label": ("cat" in words) + 0.5 * ("hat" in words)}
    if kind == "tag":
        tags = {"cat": "B-animal", "hat": "B-thing", "mat": "I-thing"}
        return {"text": list(words), "label": [tags.get(word, "O") for word in words]}
    context = f"{text} sat in x"
    return {
        "question": "who",
        "context": context,
        "answers": {"text": ["x"], "answer_start": [context.index("x")]},
    }


def labelled(folder: Path, kind: str, *, rows: int = 32, seed: int = 1) -> Path:
    """A file of rows of a kind."""
    chance = random.Random(seed)
    path = folder / f"{kind}-{rows}-{seed}.jsonl"
    lines = [row(kind, chance.choices(WORDS, k=chance.randint(2, 6))) for _ in range(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def slots_file(folder: Path, *, rows: int = 32, seed: int = 1) -> Path:
    """Words with a label of the text and a tag a word; every third lacks one of the two."""
    chance = random.Random(seed)
    path = folder / f"slots-{rows}-{seed}.jsonl"
    lines = []
    for number in range(rows):
        words = chance.choices(WORDS, k=chance.randint(2, 6))
        tags = row("tag", words)["label"] if number % 6 else None
        label = words[0] if number % 6 != 3 else None
        lines.append({"tokens": words, "label": label, "slots": tags})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def task(kind: str, path: Path, **changes: Any) -> dict[str, Any]:
    columns: dict[str, Any] = {"text": "text", "label": "label"}
    if kind == "answer":
        columns = {"text": ["question", "context"], "label": "answers"}
    return {"kind": kind, "train": str(path), "dev": str(path), **columns, **changes}


def two_tasks(path: Path, **changes: Any) -> dict[str, Any]:
    """A label and tags of the same texts."""
    return {
        "intent": task("classify", path, text="tokens", **changes),
        "slots": task("tag", path, text="tokens", label="slots", **changes),
    }


def recipe(model: Path, output: Path, tasks: dict[str, Any], **train: Any) -> FinetuneRecipe:
    defaults: dict[str, Any] = {"lr": 5e-3, "epochs": 2, "batch_rows": 8, "save_every": 3}
    values = {
        "model": str(model),
        "output": str(output),
        "tasks": tasks,
        "train": {**defaults, "keep": 9, **train},
    }
    return make(FinetuneRecipe, values)


def training(job: FinetuneRecipe) -> HeadTraining:
    """A work as `run` makes it."""
    tasks = load_tasks(job)
    read = checkpoint.read(hub.resolve(job.model))
    tokenizer = Tokenizer.from_folder(read.folder, read.config.family, read.config.vocab_size)
    heads = new_heads(job, tasks, read)
    of_tasks = {name: heads[head_of(name, one)] for name, one in job.tasks.items()}
    plan = Plan(
        tokenizer, tasks, of_tasks, job.train, limit=40, seed=job.seed, masked_lm=job.masked_lm
    )
    model = new_model(job, read, heads)
    return HeadTraining(model, tokenizer, read.folder, job, tasks, plan, ALONE)


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in checkpoint.read(path).tensors.items()}


def equal(a: Path, b: Path) -> bool:
    one, other = tensors(a), tensors(b)
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


def killed_at(job: FinetuneRecipe, resume: bool, step: int) -> None:
    """Run until a step's checkpoint is there, then die in the middle of the next one's."""
    save = state.Checkpoints.save

    def die(*arguments: Any) -> Any:
        if arguments[1].step > step:
            os._exit(9)
        return save(*arguments)

    state.Checkpoints.save = die  # type: ignore[method-assign]
    finetune.run(job, resume=resume)
