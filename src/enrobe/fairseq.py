"""fairseq's RoBERTa checkpoints: names, arguments and dictionary, brought to the files we read.

One reversible table, pairs (ours, fairseq's) as in `dialects`; `{i}` is the layer's number and
`{name}` a classification head's. Spellings from before fairseq 0.10 are first brought to the later
one. Source of the format: fairseq/models/roberta/model.py, fairseq/modules/multihead_attention.py
and fairseq/data/dictionary.py of facebookresearch/fairseq, 0.8 to 0.12.

Legend: H hidden.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from enrobe.checkpoint import read_json
from enrobe.config import EncoderConfig
from enrobe.dialects import DIALECTS, Pairs, both, checkpoint_names
from enrobe.errors import ModelError, show
from enrobe.settings import read_config
from enrobe.weights import Array

_ROOT = "encoder.sentence_encoder."
_ENCODER: Pairs = (
    ("embeddings.word.weight", _ROOT + "embed_tokens.weight"),
    ("embeddings.position.weight", _ROOT + "embed_positions.weight"),
    *both("embeddings.norm", _ROOT + "layernorm_embedding"),
)
_LAYER: Pairs = (
    *both("layers.{i}.query", _ROOT + "layers.{i}.self_attn.q_proj"),
    *both("layers.{i}.key", _ROOT + "layers.{i}.self_attn.k_proj"),
    *both("layers.{i}.value", _ROOT + "layers.{i}.self_attn.v_proj"),
    *both("layers.{i}.output", _ROOT + "layers.{i}.self_attn.out_proj"),
    *both("layers.{i}.attention_norm", _ROOT + "layers.{i}.self_attn_layer_norm"),
    *both("layers.{i}.up", _ROOT + "layers.{i}.fc1"),
    *both("layers.{i}.down", _ROOT + "layers.{i}.fc2"),
    *both("layers.{i}.norm", _ROOT + "layers.{i}.final_layer_norm"),
)
_MLM: Pairs = (
    *both("head.mlm.dense", "encoder.lm_head.dense"),
    *both("head.mlm.norm", "encoder.lm_head.layer_norm"),
    ("head.mlm.bias", "encoder.lm_head.bias"),
    ("head.mlm.decoder.weight", "encoder.lm_head.weight"),
)
_SEQUENCE: Pairs = (
    *both("head.sequence.dense", "classification_heads.{name}.dense"),
    *both("head.sequence.out", "classification_heads.{name}.out_proj"),
)

# What fairseq renamed, in order: (a part of the older name, what it became).
_RENAMED = ((r"^decoder\.", "encoder."), (r"\.emb_layer_norm\.", ".layernorm_embedding."))
# Older attention kept query, key and value as one tensor, in this order along the first axis.
_FUSED = ("q_proj", "k_proj", "v_proj")
# Buffers that hold no weights.
_BUFFERS = re.compile(r"(^|\.)(version|_float_tensor)$")
_HEAD = re.compile(r"classification_heads\.([^.]+)\.")
_LAYER_NUMBER = re.compile(re.escape(_ROOT) + r"layers\.(\d{1,4})\.")

# Arguments that change the mathematics: any other value is refused. Where one is missing, fairseq
# takes the first.
_REQUIRED_VALUES: dict[str, tuple[object, ...]] = {
    "activation_fn": ("gelu", None),
    "encoder_normalize_before": (False, None),
    "layernorm_embedding": (True, None),
    "no_scale_embedding": (True, None),
    "encoder_learned_pos": (True, None),
    "no_token_positional_embeddings": (False, None),
    "adaptive_input": (False, None),
    "pooler_activation_fn": ("tanh", None),
}

_FIRST_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")
_PAD_ID = 1
_MASK = "<mask>"
_FILLER = re.compile(r"madeupword\d+")


@dataclass(frozen=True, kw_only=True)
class Translated:
    """A checkpoint under the names and settings of a transformers folder."""

    settings: Mapping[str, object]
    tensors: Mapping[str, Array]
    left_out: tuple[str, ...]
    # fairseq's names of tensors that the folder has no place for


def names(config: EncoderConfig, head: str | None) -> Pairs:
    """Every parameter as (ours, fairseq's); head is "lm_head", a classification head, or None."""
    pairs = [*_ENCODER]
    for i in range(config.num_layers):
        pairs += [(ours.format(i=i), theirs.format(i=i)) for ours, theirs in _LAYER]
    if head == "lm_head":
        pairs += _MLM
    elif head is not None:
        pairs += [(ours, theirs.format(name=head)) for ours, theirs in _SEQUENCE]
    return tuple(pairs)


def translate(
    tensors: Mapping[str, Array], arguments: Mapping[str, object], *, family: str = "roberta"
) -> Translated:
    """Turn a fairseq RoBERTa's tensors and arguments into a transformers folder's.

    A classification head is what such a file was trained for last: the first one is kept, and the
    masked-LM head where there is none. The rest of the heads is left out and named.

    Args:
        tensors: by fairseq's names, of any of its versions.
        arguments: what fairseq was called with (`args`, or `cfg["model"]`).
        family: "roberta", or "xlm-roberta", which only names another tokenizer.

    Raises:
        ModelError: arguments and tensors contradict each other, or either has what changes the
            mathematics in a way that is not implemented.
    """
    for key, allowed in _REQUIRED_VALUES.items():
        value = arguments.get(key)
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise ModelError(
                f"fairseq's {key} is {show(value)}, which is not implemented; "
                f"allowed: {show(allowed[0])}"
            )
    modern = _modern(tensors)
    classifiers = [match[1] for name in modern if (match := _HEAD.match(name))]
    head = classifiers[0] if classifiers else None
    if head is None and any(name.startswith("encoder.lm_head.") for name in modern):
        head = "lm_head"
    settings = _settings(modern, arguments, head, family)
    reading = read_config(settings)
    # The decoder goes along: whether it is tied to the embeddings shows when they are compared.
    spelled = dict(
        checkpoint_names(reading.encoder, reading.head and replace(reading.head, tied=False))
    )
    out: dict[str, Array] = {}
    for ours, theirs in names(reading.encoder, head):
        if theirs in modern:
            out[spelled[ours]] = modern.pop(theirs)
    strange = [name for name in modern if name.startswith(_ROOT)]
    if strange:
        raise ModelError(
            f"{len(strange)} tensors of fairseq's encoder are not implemented: "
            + ", ".join(show(name) for name in strange[:3])
        )
    # fairseq's RoBERTa has no token types; a row of zeros adds nothing, and is what transformers
    # asks for.
    hidden_size = reading.encoder.hidden_size
    out[spelled["embeddings.token_type.weight"]] = np.zeros((1, hidden_size), np.float32)
    return Translated(settings=settings, tensors=out, left_out=tuple(modern))


def _modern(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors under the names of today's fairseq, query, key and value apart."""
    out: dict[str, Array] = {}
    for name, tensor in tensors.items():
        if _BUFFERS.search(name):
            continue
        for older, newer in _RENAMED:
            name = re.sub(older, newer, name)
        stem, dot, fused = name.rpartition(".in_proj_")
        if not dot:
            out[name] = tensor
        elif tensor.ndim == 0 or len(tensor) % len(_FUSED):
            raise ModelError(f"{show(name)} has shape {tensor.shape}; not three parts of a kind")
        else:
            parts = np.split(tensor, len(_FUSED))
            out.update({f"{stem}.{p}.{fused}": t for p, t in zip(_FUSED, parts, strict=True)})
    return out


def _settings(
    tensors: Mapping[str, Array], arguments: Mapping[str, object], head: str | None, family: str
) -> dict[str, object]:
    """config.json's settings: sizes from the tensors, the arguments as a check, the rest theirs."""
    words, hidden = _table(tensors, _ROOT + "embed_tokens.weight")
    positions, _ = _table(tensors, _ROOT + "embed_positions.weight")
    wide, _ = _table(tensors, _ROOT + "layers.0.fc1.weight")
    layers = 1 + max(int(match[1]) for name in tensors if (match := _LAYER_NUMBER.match(name)))
    for key, found in (
        ("encoder_layers", layers),
        ("encoder_embed_dim", hidden),
        ("encoder_ffn_embed_dim", wide),
        ("max_positions", positions - _PAD_ID - 1),
    ):
        said = arguments.get(key)
        if said is not None and (type(said) is not int or said != found):
            raise ModelError(f"fairseq's {key} is {show(said)}, but the tensors have {found}")
    if arguments.get("encoder_attention_heads") is None:
        raise ModelError("fairseq's arguments lack encoder_attention_heads")
    dialect = DIALECTS[family]
    settings: dict[str, object] = {
        "model_type": family,
        "vocab_size": words,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": arguments["encoder_attention_heads"],
        "intermediate_size": wide,
        "max_position_embeddings": positions,
        "type_vocab_size": 1,
        "pad_token_id": _PAD_ID,
        "layer_norm_eps": 1e-5,
        "hidden_dropout_prob": arguments.get("dropout", 0.1),
        "attention_probs_dropout_prob": arguments.get("attention_dropout", 0.1),
    }
    if head == "lm_head":
        settings["architectures"] = [dialect.architecture("mlm")]
    elif head is not None:
        labels, _ = _table(tensors, f"classification_heads.{head}.out_proj.weight")
        settings["architectures"] = [dialect.architecture("classify")]
        settings["num_labels"] = labels
        settings["classifier_dropout"] = arguments.get("pooler_dropout", 0.0)
    return settings


def _table(tensors: Mapping[str, Array], name: str) -> tuple[int, int]:
    """The two sizes of a matrix that must be there."""
    tensor = tensors.get(name)
    if tensor is None or tensor.ndim != 2:
        what = "is missing" if tensor is None else f"has shape {tensor.shape}, not a matrix's"
        raise ModelError(f"{show(name)} {what}; not a RoBERTa of fairseq")
    return tensor.shape[0], tensor.shape[1]


# --- the dictionary and GPT-2's files -----------------------------------------------------------


def read_dictionary(path: Path) -> list[str]:
    """The symbols of a dict.txt in the order of their ids, the ones it does not list included.

    Ids 0 to 3 are `<s>`, `<pad>`, `</s>`, `<unk>`; each line is a symbol, a space and its count;
    the masked-LM task adds `<mask>` at the end.

    Raises:
        ModelError: it is not such a file.
    """
    symbols = dict.fromkeys(_FIRST_SYMBOLS)
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name} cannot be read ({error})") from None
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, 1):
        symbol, space, count = line.rstrip("\r").rpartition(" ")
        if not space or not count.lstrip("-").isdecimal() or symbol in symbols:
            raise ModelError(
                f"{path.name}, line {number}: {show(line)}; allowed: a new symbol and its count"
            )
        symbols[symbol] = None
    return [*dict.fromkeys([*symbols, _MASK])]


def tokenizer_files(symbols: Sequence[str], folder: Path) -> dict[str, str]:
    """vocab.json and merges.txt (name -> text) from GPT-2's encoder.json and vocab.bpe.

    fairseq's symbols are GPT-2's ids, spelled out; a symbol `madeupwordNNNN` fills the table up.

    Raises:
        ModelError: a file is missing or damaged, or the dictionary is of another tokenizer.
    """
    for name in ("encoder.json", "vocab.bpe"):
        if not (folder / name).is_file():
            raise ModelError(
                f"no {name}: a tokenizer is built from dict.txt, encoder.json and vocab.bpe; "
                "fix: put GPT-2's two files there, or name a folder that has a tokenizer"
            )
    pieces = {str(index): piece for piece, index in read_json(folder / "encoder.json").items()}
    vocab: dict[str, int] = {}
    for index, symbol in enumerate(symbols):
        if symbol not in (*_FIRST_SYMBOLS, _MASK) and not _FILLER.fullmatch(symbol):
            if symbol not in pieces:
                raise ModelError(f"dict.txt: {show(symbol)} is no id of encoder.json")
            symbol = pieces[symbol]
        vocab[symbol] = index
    lacking = len(pieces.keys() - set(symbols))
    if lacking:
        # fairseq reads such a piece as <unk>; a tokenizer without it would split it on.
        raise ModelError(
            f"dict.txt lacks {lacking} of encoder.json's pieces; "
            "fix: name a folder that has this model's own tokenizer"
        )
    try:
        merges = (folder / "vocab.bpe").read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(f"vocab.bpe cannot be read ({error})") from None
    return {"vocab.json": json.dumps(vocab, ensure_ascii=False), "merges.txt": merges}
