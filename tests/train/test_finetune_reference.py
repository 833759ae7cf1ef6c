"""Loss by loss as transformers and torch's own optimiser have it: same start, same batches."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from enrobe.train import finetune
from tests.support import padded
from tests.train.finetune_toys import labelled, model_folder, recipe, task, training
from tests.train.toys import log_lines

AUTO = {
    "classify": transformers.AutoModelForSequenceClassification,
    "multilabel": transformers.AutoModelForSequenceClassification,
    "regress": transformers.AutoModelForSequenceClassification,
    "tag": transformers.AutoModelForTokenClassification,
}


@pytest.mark.parametrize("kind", list(AUTO))
def test_updates_are_those_of_transformers_and_adamw(kind: str, tmp_path: Path) -> None:
    base = model_folder(tmp_path / "model", dropout=0.0)
    tasks = {"mine": task(kind, labelled(tmp_path, kind, rows=30))}
    settings: dict[str, Any] = {"epochs": 3, "lr": 1e-3, "log_every": 1, "weight_decay": 0.1}
    job = recipe(base, tmp_path / "run", tasks, **settings)
    work = training(job)
    work.write(tmp_path / "start")
    theirs = AUTO[kind].from_pretrained(tmp_path / "start")
    named = dict(theirs.named_parameters())
    free = [n for n in named if n.endswith("bias") or "LayerNorm" in n]
    optimizer = torch.optim.AdamW(
        [
            {"params": [named[n] for n in named if n not in free], "weight_decay": 0.1},
            {"params": [named[n] for n in free], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.999),
        eps=1e-8,
    )
    plan, losses, batches = work._plan, [], []
    config = job.train.config(steps=plan.steps, epoch=plan.steps_an_epoch)
    theirs.train()
    for step in range(plan.steps):
        rows = plan.batch(step)
        block = padded(theirs, [row.ids for row in rows])
        labels: Any
        if kind == "tag":
            labels = torch.full(block["input_ids"].shape, -100)
            for number, row in enumerate(rows):
                labels[number, row.places] = torch.from_numpy(row.targets["mine"])
        else:
            labels = torch.stack([torch.tensor(row.targets["mine"]) for row in rows])
        loss = theirs(**block, labels=labels).loss
        losses.append(float(loss.detach()))
        batches.append((block, labels))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = config.lr_at(step, plan.steps)
        optimizer.step()
    finetune.run(job, resume=False)
    ours = [line["loss"] for line in log_lines(tmp_path / "run") if "loss" in line]
    assert ours == pytest.approx(losses, rel=2e-4) and len(ours) == 12
    # Equal losses of a model that stands still would say nothing.
    still = AUTO[kind].from_pretrained(tmp_path / "start")
    with torch.no_grad():
        first = [float(still(**block, labels=labels).loss) for block, labels in batches]
    assert max(abs(a - b) / a for a, b in zip(first, ours, strict=True)) > 0.05
