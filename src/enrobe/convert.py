"""`enrobe convert`: other people's checkpoints into a folder that everything here loads.

Three kinds come in: pickled transformers weights (`pytorch_model.bin`, whole or in shards),
fairseq's RoBERTa (`model.pt`), and safetensors under older names or as int8 rows. A pickle is read
by PyTorch's loader for weights, which builds tensors and plain containers and runs nothing that the
file names; of fairseq's files it also builds an `argparse.Namespace`, a plain record. What is no
weight of the encoder or of the one head is left out and named.
"""

import argparse
import json
import os
import pickle
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from enrobe import checkpoint, fairseq, hub
from enrobe.atomic import check_new, new_folder
from enrobe.checkpoint import Checkpoint
from enrobe.config import EncoderConfig, HeadConfig
from enrobe.errors import CallError, MissingExtraError, ModelError, show
from enrobe.text.tokenizer import Tokenizer
from enrobe.weights import INT8_WEIGHTS, WEIGHTS, Array

if TYPE_CHECKING:
    import torch

_SAFE = (WEIGHTS, "model.safetensors.index.json", INT8_WEIGHTS)
_PICKLED = "pytorch_model.bin"
_SHARDED = "pytorch_model.bin.index.json"
_FAIRSEQ = "model.pt"
# Where training scripts put the weights when they save more than the weights.
_WRAPPERS = ("model", "state_dict", "model_state_dict")
_SHOWN = 12
# What a sentence-transformers folder says about pooling: without it, `embed` would pool otherwise.
_POOLING = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "*_Pooling/config.json",
)


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was written, and what was not."""

    folder: Path
    config: EncoderConfig
    heads: Mapping[str, HeadConfig]
    # at most one
    left_out: tuple[str, ...]
    # names in the source that have no place in the folder: other heads, a trainer's records
    ignored_keys: tuple[str, ...]
    # keys of config.json that are neither read nor known to be harmless

    def report(self) -> tuple[str, ...]:
        """What a person should know, a line each."""
        config = self.config
        heads = ", ".join(f"{name} head" for name in self.heads) or "no head"
        lines = [
            f"wrote {self.folder}: {config.family}, {config.num_layers} layers of "
            f"{config.hidden_size}, {config.vocab_size} tokens, {heads}"
        ]
        for what, found in (
            ("left out", self.left_out),
            ("config.json, not read", self.ignored_keys),
        ):
            if found:
                more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
                lines.append(f"{what}: {', '.join(show(name) for name in found[:_SHOWN])}{more}")
        return tuple(lines)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A checkpoint that was read, and where its tokenizer is."""

    read: Checkpoint
    tokenizer: Path
    left_out: tuple[str, ...] = ()


def convert(
    source: str | os.PathLike[str], output: Path, *, tokenizer: Path | None = None
) -> Converted:
    """Write a model folder (config.json, model.safetensors, tokenizer files) from another's files.

    Weights become float32. transformers' AutoModel and AutoTokenizer load the folder, too.

    Args:
        source: a folder, a built-in name, a hub id, or fairseq's `.pt` file with its dict.txt
            beside it.
        output: a folder that does not exist yet, or is empty.
        tokenizer: a folder with tokenizer files, in place of the source's own.

    Raises:
        CallError: the output is not empty, or the source is nothing of the kind.
        HubError: a hub id that cannot be fetched.
        ModelError: a file that is damaged, that holds more than weights, or whose model is not
            implemented; no folder is left behind.
        MissingExtraError: a pickled checkpoint without PyTorch 2.6 or later.
    """
    output = Path(output)
    check_new(output)  # said before gigabytes are fetched, not after
    file = Path(source) if os.path.isfile(source) else None
    if file is not None and file.suffix != ".pt":
        raise CallError(f"{file} is a file; allowed: a folder, a hub id, or fairseq's .pt file")
    folder = hub.resolve(source, pickled=True) if file is None else file.parent
    if (folder / "enrobe.json").is_file():
        raise CallError(f"{folder} has an enrobe.json: it is Enrobe's own, nothing to convert")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            found = _read(folder, file, tokenizer, Path(scratch))
            read, left_out = _one_head(found.read)
            words = Tokenizer.from_folder(
                found.tokenizer, read.config.family, read.config.vocab_size
            )
            if tokenizer is not None:
                _check_fit(words, read.config)
        except ModelError as error:
            # What the reading of a folder raises may name it already.
            message = str(error).removeprefix(f"{scratch}: ").removeprefix(f"{folder}: ")
            raise ModelError(f"{folder}: {message}") from None
        with new_folder(output) as work:
            checkpoint.write(
                work,
                config=read.config,
                heads=read.heads,
                tensors=read.tensors,
                tokenizer_folder=found.tokenizer,
                tokenizer_files={
                    "tokenizer.json": words.to_json(),
                    "tokenizer_config.json": _tokenizer_config(words, read.config),
                },
            )
            for path in (path for pattern in _POOLING for path in folder.glob(pattern)):
                copy = work / path.relative_to(folder)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)
    return Converted(
        folder=output,
        config=read.config,
        heads=read.heads,
        left_out=(*found.left_out, *read.unexpected, *left_out),
        ignored_keys=read.ignored_keys,
    )


def _read(folder: Path, file: Path | None, tokenizer: Path | None, scratch: Path) -> _Source:
    """Read what is named, else what the folder has, the safe before the pickled."""
    words = folder if tokenizer is None else tokenizer
    if file is None and any((folder / name).is_file() for name in _SAFE):
        return _Source(read=checkpoint.read(folder), tokenizer=words)
    if file is None and any((folder / name).is_file() for name in (_PICKLED, _SHARDED)):
        settings = checkpoint.read_settings(folder)
        tensors, left_out = _read_pickled(folder)
        read = checkpoint.assemble(folder, settings, tensors)
        return _Source(read=read, tokenizer=words, left_out=left_out)
    file = folder / _FAIRSEQ if file is None else file
    if file.is_file():
        return _read_fairseq(file, tokenizer, scratch)
    raise ModelError(f"no weights; allowed: {_SAFE[0]}, {_PICKLED}, or fairseq's {_FAIRSEQ}")


# --- transformers' pickled weights ----------------------------------------------------------------


def _read_pickled(folder: Path) -> tuple[dict[str, Array], tuple[str, ...]]:
    if (folder / _PICKLED).is_file():
        return _tensors(_load(folder / _PICKLED), _PICKLED)
    table = checkpoint.read_json(folder / _SHARDED).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ModelError(f"{_SHARDED}: no weight_map")
    tensors: dict[str, Array] = {}
    left_out: tuple[str, ...] = ()
    for name in sorted({str(value) for value in table.values()}):
        # A shard is a plain name beside the index: no path leads out of the folder.
        if Path(name).name != name or not name.endswith(".bin"):
            raise ModelError(f"{_SHARDED}: shard {show(name)}; allowed: a .bin name")
        if not (folder / name).is_file():
            raise ModelError(f"{_SHARDED}: shard {show(name)} is missing")
        shard, others = _tensors(_load(folder / name), name)
        tensors.update(shard)
        left_out += others
    return tensors, left_out


def _torch() -> ModuleType:
    purpose = "reading a pickled checkpoint"
    try:
        import torch
    except ModuleNotFoundError:
        raise MissingExtraError("PyTorch", "train", purpose) from None
    # Before 2.6 a file could get past weights_only (CVE-2025-32434).
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < (2, 6):
        raise MissingExtraError("PyTorch 2.6 or later", "train", purpose)
    return torch


def _load(path: Path, *allowed: type) -> dict[object, Any]:
    """The table in a pickled file: tensors, plain values, and records of the allowed classes."""
    torch = _torch()
    try:
        with torch.serialization.safe_globals(list(allowed)):
            # Only the newer files, which are zip archives, can be memory-mapped.
            loaded = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    # A damaged pickle fails in as many ways as there are places to damage.
    except Exception as error:
        raise ModelError(f"{path.name}: {_reason(error)}") from None
    if not isinstance(loaded, dict):
        raise ModelError(f"{path.name} holds {type(loaded).__name__}; allowed: a table of tensors")
    return loaded


def _reason(error: Exception) -> str:
    text = str(error)
    named = re.search(r"\bGLOBAL (\S+)", text)
    if named and named[1].startswith("omegaconf."):
        return (
            f"its configuration is an omegaconf object ({named[1]}), which is not loaded; "
            "fix: save it again with OmegaConf.to_container(cfg) in its place"
        )
    if named:
        return (
            f"it names {show(named[1])} to be run; only tensors are loaded; "
            "fix: save it again with the tensors alone"
        )
    if isinstance(error, pickle.UnpicklingError):
        return "not a pickle of tensors and plain values alone"
    reason = next(iter(text.splitlines()), "")
    return f"damaged, or not PyTorch's format ({type(error).__name__}: {show(reason, 200)})"


def _tensors(loaded: Mapping[object, Any], file: str) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Floating-point tensors by name, and the names of what else there is.

    Counters and index buffers, which are whole numbers, are neither.
    """
    torch = _torch()
    state: Mapping[object, Any] = loaded
    left_out: list[str] = []
    if not any(isinstance(value, torch.Tensor) for value in loaded.values()):
        inner = next((key for key in _WRAPPERS if isinstance(loaded.get(key), dict)), None)
        if inner is not None:
            state = cast(dict[object, Any], loaded[inner])
            left_out = [str(key) for key in loaded if key != inner]
    tensors: dict[str, Array] = {}
    for key, value in state.items():
        if not isinstance(value, torch.Tensor) or not isinstance(key, str):
            left_out.append(str(key))
        elif value.is_floating_point():
            tensors[key] = _array(value, f"{file}: tensor {show(key)}")
    if not tensors:
        raise ModelError(f"{file} holds no tensors by name")
    # What wraps a model for several processes puts its own name before all others.
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors, tuple(left_out)


def _array(tensor: "torch.Tensor", what: str) -> Array:
    torch = _torch()
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.is_quantized:
        raise ModelError(f"{what} is sparse, quantized or without data; allowed: a plain one")
    # A few bytes can claim to be a tensor of any size, by a stride of 0.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ModelError(f"{what} claims {tensor.numel()} elements; the file holds fewer")
    return cast(Array, tensor.detach().to(torch.float32).numpy())


# --- fairseq --------------------------------------------------------------------------------------


def _read_fairseq(weights: Path, tokenizer: Path | None, scratch: Path) -> _Source:
    folder = weights.parent
    loaded = _load(weights, argparse.Namespace)
    tensors, _ = _tensors(loaded, weights.name)
    arguments = loaded.get("args")
    if arguments is None and isinstance(loaded.get("cfg"), dict):
        arguments = loaded["cfg"].get("model")
    if isinstance(arguments, argparse.Namespace):
        arguments = vars(arguments)
    if not isinstance(arguments, dict):
        raise ModelError(f"{weights.name} has no args and no cfg with a model; not fairseq's")
    dictionary = folder / "dict.txt"
    symbols = fairseq.read_dictionary(dictionary) if dictionary.is_file() else None
    if tokenizer is None:
        if symbols is None:
            raise ModelError(
                "no dict.txt beside the checkpoint; fix: put it there with GPT-2's encoder.json "
                "and vocab.bpe, or name a folder that has a tokenizer"
            )
        for name, text in fairseq.tokenizer_files(symbols, folder).items():
            (scratch / name).write_text(text, "utf-8")
        family = "roberta"
    else:
        words = Tokenizer.from_folder(tokenizer, "roberta")
        family = "xlm-roberta" if words.kind == "Unigram" else "roberta"
        if symbols is not None and symbols[words.mask_id : words.mask_id + 1] != ["<mask>"]:
            raise ModelError(f"{words.mask_token} has id {words.mask_id}, not dict.txt's")
    translated = fairseq.translate(tensors, arguments, family=family)
    rows = translated.settings["vocab_size"]
    if symbols is not None and len(symbols) != rows:
        raise ModelError(f"dict.txt gives {len(symbols)} symbols; the checkpoint has {rows}")
    return _Source(
        read=checkpoint.assemble(folder, translated.settings, translated.tensors),
        tokenizer=tokenizer or scratch,
        left_out=translated.left_out,
    )


# --- the rest of the folder -----------------------------------------------------------------------


def _one_head(read: Checkpoint) -> tuple[Checkpoint, tuple[str, ...]]:
    """The checkpoint with one head at most, and the names of the others' tensors.

    A task's head is what such a file was trained for last: it goes before the masked-LM head.
    """
    if len(read.heads) <= 1:
        return read, ()
    kept = next(name for name in read.heads if name != "mlm")
    others = tuple(
        name
        for name in read.tensors
        if name.startswith("heads.") and not name.startswith(f"heads.{kept}.")
    )
    tensors = {name: value for name, value in read.tensors.items() if name not in others}
    return replace(read, heads={kept: read.heads[kept]}, tensors=tensors), others


def _check_fit(words: Tokenizer, config: EncoderConfig) -> None:
    """A tokenizer from elsewhere must at least agree on the special tokens."""
    last = int(words.special_ids.max())
    if last >= config.vocab_size:
        raise ModelError(f"the tokenizer's id {last} is not among the {config.vocab_size} rows")
    if words.pad_id != config.pad_id:
        raise ModelError(f"the tokenizer pads with id {words.pad_id}; the model {config.pad_id}")


def _tokenizer_config(words: Tokenizer, config: EncoderConfig) -> str:
    """tokenizer_config.json: what transformers asks besides tokenizer.json for the same ids."""
    dialect = words.dialect
    first, last, pad, unknown, mask = dialect.special_tokens
    settings: dict[str, object] = {
        "tokenizer_class": dialect.tokenizer_class,
        "model_max_length": config.max_tokens,
        "cls_token": first,
        "sep_token": last,
        "pad_token": pad,
        "unk_token": unknown,
        "mask_token": mask,
    }
    # transformers builds these parts anew, whatever tokenizer.json has; by default BERT's would
    # write capitals small.
    state = json.loads(words.to_json())
    normalizer, splitter = (state.get(part) or {} for part in ("normalizer", "pre_tokenizer"))
    if normalizer.get("type") == "BertNormalizer":
        settings["do_lower_case"] = normalizer["lowercase"]
        settings["strip_accents"] = normalizer["strip_accents"]
        settings["tokenize_chinese_chars"] = normalizer["handle_chinese_chars"]
    if splitter.get("type") == "ByteLevel":
        settings["add_prefix_space"] = splitter["add_prefix_space"]
    return json.dumps(settings, indent=2, sort_keys=True) + "\n"
