"""What a model folder holds, before anything is computed with it."""

import os
from typing import Any

import numpy as np

from enrobe import checkpoint, hub
from enrobe.manifest import carried
from enrobe.tasks.model import chosen_engine
from enrobe.text.tokenizer import Tokenizer
from enrobe.weights import INT8_WEIGHTS


def info(model: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Facts of a model as a plain dictionary.

    Memory is that of the parameters alone, in bytes. int8 counts a byte for each number in a matrix
    and a float32 scale for each of its rows; vectors stay float32. `weights` says how they are
    stored, and the bytes of those files; `engine` what `enrobe.load` would take, and why.

    Raises:
        CallError, HubError, ModelError: as `enrobe.load`.
    """
    read = checkpoint.read(hub.resolve(model))
    config = read.config
    tokenizer = Tokenizer.from_folder(read.folder, config.family, config.vocab_size)
    files = checkpoint.weight_files(read.folder)
    stored = "int8 rows" if files[0].name == INT8_WEIGHTS else "floating point"
    sizes = [np.shape(tensor) for tensor in read.tensors.values()]
    parameters = sum(int(np.prod(shape)) for shape in sizes)
    int8 = sum(_int8_bytes(shape) for shape in sizes)
    engine, precision = chosen_engine(read)
    return {
        "folder": str(read.folder),
        "family": config.family,
        "layers": config.num_layers,
        "hidden": config.hidden_size,
        "attention_heads": config.num_heads,
        "feed_forward": config.intermediate_size,
        "vocabulary": config.vocab_size,
        "longest_row": config.max_tokens,
        "parameters": parameters,
        "memory": {"float32": 4 * parameters, "float16": 2 * parameters, "int8": int8},
        "weights": {
            "stored": stored,
            "computed": "int8" if read.computes_int8 else "float32",
            "bytes": sum(file.stat().st_size for file in files),
        },
        "engine": {"name": engine, "precision": precision, "why": _why(engine, precision)},
        "heads": {
            name: {"kind": head.kind, "labels": list(head.labels), **carried(head)}
            for name, head in read.heads.items()
        },
        "tokenizer": {
            "kind": tokenizer.kind,
            "entries": tokenizer.vocab_size,
            "special_tokens": dict(
                zip(
                    ("first", "last", "padding", "unknown", "mask"),
                    tokenizer.dialect.special_tokens,
                    strict=True,
                )
            ),
        },
        "unexpected_tensors": list(read.unexpected),
        "ignored_keys": list(read.ignored_keys),
    }


def _why(engine: str, precision: str) -> str:
    if engine == "native":
        import enrobe_native

        return f"the quickest at {precision} here ({enrobe_native.kernels()[0]})"
    if precision == "int8":
        return "enrobe-native is not installed, or this processor has no products of bytes"
    return "the default on a CPU"


def _int8_bytes(shape: tuple[int, ...]) -> int:
    count = int(np.prod(shape))
    return count + 4 * shape[0] if len(shape) == 2 else 4 * count
