"""What tests compare with: tiny random models of the transformers library, run with padding.

No two sizes of a model are equal, so that a transposed or swapped dimension fails, and every
parameter is perturbed, so that a forgotten bias or norm fails.

Legend: B rows, S longest row, T tokens of a row, H hidden, V vocabulary, L layers, C outputs.
"""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from enrobe.config import EncoderConfig
from enrobe.data.vocabulary import train_bpe
from enrobe.dialects import DIALECTS
from enrobe.text.tokenizer import Tokenizer

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

# Real data and tokenizers, side by side; tests that need them skip where they are not.
_DATA = Path(__file__).parents[2] / "shared/data"
SHARED = Path(os.environ.get("ENROBE_DATA", _DATA)).parent

FAMILIES = tuple(DIALECTS)
HEADS = ("mlm", "classify", "multilabel", "regress", "tag", "answer")
LABELS = 5
# The smallest id that is no family's padding: transformers takes positions from padding ids.
FIRST_ID = 2
_CLASSES = {
    None: transformers.AutoModel,
    "mlm": transformers.AutoModelForMaskedLM,
    "classify": transformers.AutoModelForSequenceClassification,
    "multilabel": transformers.AutoModelForSequenceClassification,
    "regress": transformers.AutoModelForSequenceClassification,
    "tag": transformers.AutoModelForTokenClassification,
    "answer": transformers.AutoModelForQuestionAnswering,
}
_PROBLEMS = {
    "classify": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regress": "regression",
}
_SIZES = {
    "vocab_size": 97,
    "hidden_size": 56,
    "num_layers": 3,
    "num_heads": 7,
    "intermediate_size": 72,
    "type_vocab_size": 2,
    # Far from every default, so that a default that was left in place fails.
    "layer_norm_eps": 0.01,
}

# Spaces in a row make merges, too: where a text is cut matters among them.
SENTENCES = "the cat sat on the mat. and then the hat was on the cat, \n\n  \n and that.  \n\n" * 3

Row = npt.NDArray[np.int64]
Array = npt.NDArray[np.float32]


def reference(
    folder: Path, family: str, head: str | None = None, *, seed: int = 0, **sizes: Any
) -> Any:
    """A random model of the transformers library in eval mode, saved to `folder`.

    `sizes` are fields of EncoderConfig (vocab_size=..., hidden_dropout=...; those that the family
    fixes are left out), or keys of config.json that no field has (tie_word_embeddings=...). A row
    has at most 512 tokens.
    """
    keys = DIALECTS[family].config_keys
    offset = 2 if DIALECTS[family].offset_from_pad else 0
    ours = {**_SIZES, "max_positions": 512 + offset, **sizes}
    fixed = EncoderConfig.__dataclass_fields__.keys() - keys.keys()
    settings = {keys.get(name, name): ours[name] for name in ours if name not in fixed}
    if head in _PROBLEMS:
        settings["problem_type"] = _PROBLEMS[head]
    settings["num_labels"] = {"regress": 1, "answer": 2}.get(str(head), LABELS)
    config = transformers.AutoConfig.for_model(family, **settings)
    generator = torch.Generator().manual_seed(seed)
    model = _CLASSES[head].from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # A norm's weight is the only one of one dimension; it starts from 1.
            start = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(start + 0.2 * noise)
    model.save_pretrained(folder)
    return model


@dataclass(frozen=True)
class ReferenceOutputs:
    """One entry a row. Shapes: hidden (L+1, T, H); logits (T, V), (C,) or (T, C)."""

    hidden: list[Array]
    logits: list[Array]


def padded(
    model: Any, rows: Sequence[Row], types: Sequence[Row] | None = None
) -> dict[str, torch.Tensor]:
    """The rows as transformers takes them. Shapes: every entry (B, S)."""
    shape = (len(rows), max(len(row) for row in rows))
    ids = torch.full(shape, model.config.pad_token_id)
    mask, kinds = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
        if types is not None:
            kinds[i, : len(row)] = torch.tensor(types[i])
    block = {"input_ids": ids, "attention_mask": mask}
    if types is not None and model.config.model_type != "distilbert":
        block["token_type_ids"] = kinds
    return block


def reference_outputs(
    model: Any, rows: Sequence[Row], types: Sequence[Row] | None = None
) -> ReferenceOutputs:
    """Run transformers on blocks of padded rows and cut the padding off its answers."""
    hidden: dict[int, Array] = {}
    logits: dict[int, Array] = {}
    # Like lengths in one block: the padding is there, but one long row does not make it a hundred.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), 4):
        block = order[start : start + 4]
        kinds = None if types is None else [types[i] for i in block]
        with torch.inference_mode():
            answers = model(
                **padded(model, [rows[i] for i in block], kinds), output_hidden_states=True
            )
        states = torch.stack(answers.hidden_states, dim=1).numpy()
        values: Any = None
        if "logits" in answers:
            values = answers.logits.numpy()
        elif "start_logits" in answers:
            values = torch.stack([answers.start_logits, answers.end_logits], dim=-1).numpy()
        for place, i in enumerate(block):
            hidden[i] = states[place, :, : len(rows[i])]
            if values is not None:
                logits[i] = values[place, : len(rows[i])] if values.ndim == 3 else values[place]
    return ReferenceOutputs(
        hidden=[hidden[i] for i in range(len(rows))], logits=[logits[i] for i in sorted(logits)]
    )


def random_rows(seed: int, lengths: Sequence[int], vocab: int) -> list[Row]:
    """Rows of random ids without padding ids."""
    generator = np.random.default_rng(seed)
    return [generator.integers(FIRST_ID, vocab, size=length) for length in lengths]


def random_types(seed: int, lengths: Sequence[int]) -> list[Row]:
    """Token types of pairs: zeros, then ones from a random place on."""
    generator = np.random.default_rng(seed)
    cuts = [generator.integers(0, length + 1) for length in lengths]
    return [
        (np.arange(length) >= cut).astype(np.int64)
        for length, cut in zip(lengths, cuts, strict=True)
    ]


def scaled_error(ours: npt.ArrayLike, theirs: npt.ArrayLike) -> float:
    """max|ours - theirs| / max(1, max|theirs|)."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.abs(a - b).max() / max(1.0, np.abs(b).max()))


def log_softmax(logits: Array) -> Array:
    """Natural logarithms of the softmax over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


# --- text to train on ---------------------------------------------------------------------------


def toy_tokenizer(size: int = 283) -> Tokenizer:
    """A byte-level BPE with a few merges."""
    return Tokenizer(train_bpe([SENTENCES], size), DIALECTS["roberta"])


def write_txt(path: Path, documents: Sequence[str]) -> Path:
    """Documents as they stand in a text file: a blank line between two."""
    path.write_bytes("\n\n".join(documents).encode())
    return path


def random_documents(seed: int, count: int, words: int = 60) -> list[str]:
    """Documents of one or more paragraphs, without blank ones."""
    print("seed", seed)
    chance = random.Random(seed)
    known = ["the", "cat", "sat", "on", "mat.", "naïve", "日本", "😀", "x", "</s>", "<mask>", "  "]
    known += [str(number) for number in range(20)]
    out = []
    for _ in range(count):
        sizes = [chance.randint(1, words) for _ in range(chance.randint(1, 4))]
        out.append("\n".join("p " + " ".join(chance.choices(known, k=size)) for size in sizes))
    return out
