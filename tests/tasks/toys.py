"""Small models with words for tokens, and an engine whose vectors say where they come from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers, processors

from enrobe.config import EncoderConfig, HeadConfig
from enrobe.dialects import DIALECTS
from enrobe.engines.base import Outputs, Request, check
from enrobe.text.ragged import Ids, Ragged
from enrobe.text.tokenizer import Tokenizer
from tests.support import reference

VOCAB = 97
WORDS = [f"w{n}" for n in range(5, VOCAB)]


def word_tokenizer(family: str) -> tokenizers.Tokenizer:
    """A whole-word tokenizer whose special tokens have the ids that transformers gives them."""
    first, last, pad, unknown, mask = DIALECTS[family].special_tokens
    pad_id = 1 if DIALECTS[family].offset_from_pad else 0
    names = [name for name in (first, last, unknown, mask) if name != pad]
    names.insert(pad_id, pad)
    vocab = {name: i for i, name in enumerate([*names, *WORDS])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B {last}",
        special_tokens=[(first, vocab[first]), (last, vocab[last])],
    )
    return backend


def word_folder(folder: Path, family: str, **options: Any) -> Any:
    """A random model of one family with such a tokenizer; the model of transformers."""
    model = reference(folder, family, **options)
    word_tokenizer(family).save(str(folder / "tokenizer.json"))
    return model


def sentence_files(
    folder: Path,
    pooling: Mapping[str, object],
    after: tuple[str, ...] = (),
    *,
    lengths: Mapping[str, object] | None = None,
    settings: Mapping[str, object] | None = None,
) -> None:
    """Make a model's folder one of sentence-transformers, in its older spelling."""
    kinds = ["Transformer", "Pooling", *after]
    modules = [
        {
            "idx": n,
            "name": str(n),
            "path": f"{n}_{kind}" if n else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for n, kind in enumerate(kinds)
    ]
    write(folder / "modules.json", modules)
    write(folder / "1_Pooling/config.json", {"word_embedding_dimension": 56, **pooling})
    write(folder / "sentence_bert_config.json", lengths or {})
    write(folder / "config_sentence_transformers.json", settings or {})


def write(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


class Echo:
    """An engine whose vectors are (id, place in the row, length of the row, layer)."""

    name = "echo"
    precision = "float32"
    budget = 1024
    heads: Mapping[str, HeadConfig] = {}

    def __init__(self, tokenizer: Tokenizer, *, longest: int = 512, vocab: int | None = None):
        self.config = EncoderConfig(
            family="bert",
            vocab_size=vocab or tokenizer.vocab_size,
            hidden_size=4,
            num_layers=3,
            num_heads=1,
            intermediate_size=5,
            max_positions=longest,
            pad_id=0,
        )
        self.rows: list[Ids] = []

    def run(self, batch: Ragged, request: Request, at: Ids | None = None) -> Outputs:
        check(batch, request, at, self)
        self.rows += [batch.row(i) for i in range(len(batch))]
        lengths = np.repeat(batch.lengths, batch.lengths)
        hidden = {
            layer: np.stack(
                [batch.ids, batch.positions(0), lengths, np.full(len(batch.ids), layer)], axis=1
            ).astype(np.float32)
            for layer in request.layers
        }
        if request.picked:
            hidden[3] = hidden[3][at]
        return Outputs(hidden=hidden)
