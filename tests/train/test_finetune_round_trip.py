"""A model fine-tuned here goes on in transformers, and one fine-tuned there comes back."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import enrobe
from enrobe.engines.base import Request
from enrobe.text.ragged import Ragged
from enrobe.train import finetune
from tests.support import padded, random_rows, scaled_error
from tests.tasks.heads import bert_folder
from tests.train.finetune_toys import KINDS, labelled, model_folder, recipe, task

AUTO: dict[str, Any] = {
    "classify": transformers.AutoModelForSequenceClassification,
    "multilabel": transformers.AutoModelForSequenceClassification,
    "regress": transformers.AutoModelForSequenceClassification,
    "tag": transformers.AutoModelForTokenClassification,
    "answer": transformers.AutoModelForQuestionAnswering,
}
# A pooler of its own, a head of its own, and positions from 0 or from 2.
FAMILIES = ("bert", "roberta")


def base(family: str, folder: Path) -> Path:
    """An encoder without a head, with its tokenizer."""
    if family == "roberta":
        return model_folder(folder / "base")
    bert_folder(folder / "bert", "classify")
    path = folder / "base"
    transformers.AutoModel.from_pretrained(folder / "bert").save_pretrained(path)
    (path / "vocab.txt").write_text((folder / "bert/vocab.txt").read_text())
    return path


def same_logits(folder: Path, theirs: Any, kind: str, engine: str) -> None:
    """What transformers says of rows, and what we say after reading the folder."""
    ours = enrobe.load(folder, engine=engine).engine  # type: ignore[arg-type]
    (name,) = ours.heads
    rows = random_rows(4, (5, 30), 97)
    with torch.inference_mode():
        said = theirs.eval()(**padded(theirs, rows))
    logits = ours.run(Ragged.from_rows(rows), Request(heads=(name,))).heads[name]
    if kind in ("tag", "answer"):
        block = (
            torch.stack([said.start_logits, said.end_logits], -1)
            if kind == "answer"
            else said.logits
        )
        expected = np.concatenate([block[n, : len(row)] for n, row in enumerate(rows)])
    else:
        expected = said.logits.numpy()
    assert scaled_error(logits, expected) < 1e-5


def train_there(model: Any, kind: str, rows: list[Any]) -> None:
    """A few steps with the loss that transformers' own model takes."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    width = model.config.num_labels
    given = padded(model, rows)
    shape = given["input_ids"].shape
    targets: dict[str, Any] = {
        "classify": {"labels": torch.arange(len(rows)) % width},
        "multilabel": {"labels": (torch.arange(len(rows) * width) % 2).view(-1, width).float()},
        "regress": {"labels": torch.arange(len(rows)).float()},
        "tag": {"labels": torch.arange(shape.numel()).view(shape) % width},
        "answer": {
            "start_positions": torch.ones(len(rows), dtype=torch.long),
            "end_positions": torch.full((len(rows),), 2),
        },
    }
    for _ in range(4):
        loss = model(**given, **targets[kind]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind: str, family: str, tmp_path: Path) -> None:
    tasks = {"mine": task(kind, labelled(tmp_path, kind))}
    job = recipe(base(family, tmp_path), tmp_path / "run", tasks, epochs=2)
    made = finetune.run(job, resume=False).model
    theirs = AUTO[kind].from_pretrained(made)
    for engine in ("onnx", "torch"):
        same_logits(made, theirs, kind, engine)

    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    train_there(theirs, kind, random_rows(5, (5, 30, 9, 12), 97))
    moved = [n for n, v in theirs.state_dict().items() if not torch.equal(v, before[n])]
    assert len(moved) > len(before) / 2
    back = tmp_path / "back"
    theirs.save_pretrained(back)
    for name in ("tokenizer.json", "vocab.txt"):
        if (made / name).exists():
            shutil.copy(made / name, back)
    for engine in ("onnx", "torch"):
        same_logits(back, theirs, kind, engine)

    # Labels are known on both sides by the same names.
    (head,) = enrobe.load(back).engine.heads.values()
    assert head.kind == kind
    config = json.loads((made / "config.json").read_text())
    if kind not in ("regress", "answer"):
        assert head.labels == tuple(config["id2label"].values())
        assert tuple(theirs.config.id2label.values()) == head.labels
