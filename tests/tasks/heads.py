"""Small models with heads: of one kind as transformers saves them, and of several kinds at once."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from enrobe import checkpoint
from enrobe.config import HeadConfig
from enrobe.engines.base import Engine, Outputs, Request
from enrobe.tasks.model import Model, load
from enrobe.text.ragged import Ids, Ragged
from tests.support import reference

SIGNS = [".", ",", "-", "(", ")", "?"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *SIGNS, "the", "cat", "sat", "on", "mat"]
WORDS += ["##s", "##ting", "##t", "new", "york", "who", "where", "is", "s", "ca", "日", "本", "é"]
WORDS += [f"w{i}" for i in range(97 - len(WORDS))]
TAGS = ["O", "B-per", "I-per", "B-loc", "I-loc"]


def bert_folder(folder: Path, kind: str, *, seed: int = 3, tags: Sequence[str] = TAGS) -> Any:
    """A random BERT with a WordPiece vocabulary; the model of transformers."""
    model = reference(folder, "bert", kind, seed=seed)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    if kind == "tag":
        # Drawn as it is, the head gives all words the same tag.
        with torch.no_grad():
            ids = torch.arange(5, len(WORDS))[None]
            mean = model(ids).logits.mean(dim=1)[0] - model.classifier.bias
            model.classifier.bias.copy_(-mean)
        model.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        config["id2label"] = {str(i): tag for i, tag in enumerate(tags)}
        config["label2id"] = {tag: i for i, tag in enumerate(tags)}
        (folder / "config.json").write_text(json.dumps(config))
        model.config.id2label = dict(enumerate(tags))
    return model


def bert_tokenizer(folder: Path) -> Any:
    return transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=512)


def several(folder: Path, heads: Mapping[str, str], **changes: Mapping[str, Any]) -> Model:
    """A model with several heads (name -> kind), which equal the single ones of `bert_folder`.

    changes: fields of a head's configuration, by its name.
    """
    config, configs, tensors = None, {}, {}
    for name, kind in heads.items():
        bert_folder(folder / f"one-{name}", kind)
        read = checkpoint.read(folder / f"one-{name}")
        config = read.config
        configs[name] = replace(read.heads[kind], **changes.get(name, {}))
        for key, value in read.tensors.items():
            ours = key.replace(f"heads.{kind}.", f"heads.{name}.")
            # The same seed draws the same encoder whatever stands after it.
            assert ours not in tensors or np.array_equal(tensors[ours], value)
            if not ours.startswith("pooler."):
                tensors[ours] = value
    assert config is not None
    checkpoint.write(
        folder / "several",
        config=config,
        heads=configs,
        tensors=tensors,
        tokenizer_folder=folder / f"one-{next(iter(heads))}",
    )
    return load(folder / "several")


def with_head(model: Model, **changes: Any) -> Model:
    """The same model, whose only head has other settings."""
    ((name, head),) = model.engine.heads.items()
    model.engine.heads = {name: replace(head, **changes)}
    return model


class Counting:
    """An engine that counts its rows and notes what it is asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name, self.precision, self.budget = engine.name, engine.precision, engine.budget
        self.config = engine.config
        self.heads: Mapping[str, HeadConfig] = engine.heads
        self.rows = 0
        self.asked: set[tuple[str, ...]] = set()

    def run(self, batch: Ragged, request: Request, at: Ids | None = None) -> Outputs:
        self.rows += len(batch)
        self.asked.add(request.heads)
        return self._engine.run(batch, request, at)
