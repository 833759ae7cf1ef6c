"""Model folders in and out: config.json, safetensors and tokenizer files, in and out atomically.

Only safetensors is read here; a pickled checkpoint goes through `enrobe.convert` once. Tensors are
memory-mapped, so reading a folder costs no memory before an engine touches the weights, and nothing
in a folder can name code to run or a file outside it.

Parameter names are ours: `embeddings.*`, `layers.N.*`, `pooler.*`, `heads.NAME.*`.
"""

import json
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from enrobe.config import EncoderConfig, HeadConfig
from enrobe.dialects import DIALECTS, canonical_names, checkpoint_names, role
from enrobe.errors import CallError, EnrobeError, ModelError, show
from enrobe.settings import head_of_role, read_config, write_config

Array = npt.NDArray[np.float32]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "sentencepiece.bpe.model",
)
_INDEX = "model.safetensors.index.json"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt")
_LARGEST_JSON = 64 * 2**20
_LARGEST_CONFIG = 4 * 2**20
_DTYPES = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "BF16": np.uint16}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One model folder, read.

    `tensors` maps our parameter names to float32 arrays, memory-mapped where the file is float32.
    """

    folder: Path
    config: EncoderConfig
    heads: Mapping[str, HeadConfig]
    tensors: Mapping[str, Array]
    unexpected: tuple[str, ...]
    # names in the file that belong to no part of the model
    ignored_keys: tuple[str, ...]
    # keys of config.json that are neither read nor known to be harmless


def read(folder: Path) -> Checkpoint:
    """Read a Hugging Face model folder.

    Raises:
        ModelError: no folder, no weights, a damaged or hostile file, a family or a value that is
            not implemented, or tensors that are missing or of another shape (named).
    """
    settings = read_settings(folder)
    try:
        return assemble(folder, settings, _read_safetensors(folder))
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None


def read_settings(folder: Path) -> dict[str, object]:
    """The parsed config.json of a folder."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json; a model folder has one beside its weights")
    return read_json(folder / "config.json", _LARGEST_CONFIG)


def read_json(path: Path, largest: int = _LARGEST_JSON) -> dict[str, object]:
    """A JSON file that must hold an object; ModelError on one line for anything else."""
    try:
        if path.stat().st_size > largest:
            raise ModelError(f"{path}: larger than {largest >> 20} MiB; refused")
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds {type(value).__name__}; allowed: an object")
    return value


def assemble(
    folder: Path, settings: Mapping[str, object], stored: Mapping[str, Array]
) -> Checkpoint:
    """Bring tensors under a family's names into ours, and check that all are there and fit."""
    reading = read_config(settings)
    found, unexpected = canonical_names(stored, reading.encoder, reading.head)
    by_role: dict[str, dict[str, str]] = {}
    names: dict[str, str] = {}
    for ours, theirs in found.items():
        if ours.startswith("head."):
            _, head_role, rest = ours.split(".", 2)
            by_role.setdefault(head_role, {})[rest] = theirs
        else:
            names[ours] = theirs
    heads: dict[str, HeadConfig] = {}
    for head_role, parts in by_role.items():
        head = reading.head or head_of_role(
            DIALECTS[reading.encoder.family],
            head_role,
            _with_labels(reading.head_settings, stored.get(parts.get("out.bias", ""))),
        )
        if reading.head is None and _head_shapes(reading.encoder, head).keys() - parts.keys():
            # Part of a head whose class the configuration does not name: not ours to guess.
            unexpected = sorted([*unexpected, *parts.values()])
            continue
        if head.kind == "mlm" and "decoder.weight" in parts:
            decoder = stored[parts["decoder.weight"]]
            words = stored.get(names.get("embeddings.word.weight", ""))
            if words is not None and np.array_equal(decoder, words):
                del parts["decoder.weight"]
            else:
                head = replace(head, tied=False)
        elif head.kind == "mlm" and settings.get("tie_word_embeddings") is False:
            head = replace(head, tied=False)
        heads[head.kind] = head
        names.update((f"heads.{head.kind}.{rest}", theirs) for rest, theirs in parts.items())
    if reading.head is not None and not heads:
        heads[reading.head.kind] = reading.head
    tensors = {ours: stored[theirs] for ours, theirs in names.items()}
    _check_shapes(tensors, names, reading.encoder, heads)
    return Checkpoint(
        folder=folder,
        config=reading.encoder,
        heads=heads,
        tensors=tensors,
        unexpected=tuple(unexpected),
        ignored_keys=reading.ignored_keys,
    )


def _with_labels(settings: Mapping[str, object], bias: Array | None) -> Mapping[str, object]:
    """The settings, with as many labels as the head has outputs where they do not say."""
    if bias is None or "id2label" in settings:
        return settings
    return {**settings, "num_labels": len(bias)}


def _check_shapes(
    tensors: Mapping[str, Array],
    names: Mapping[str, str],
    config: EncoderConfig,
    heads: Mapping[str, HeadConfig],
) -> None:
    wanted = shapes(config, heads)
    missing = [name for name in wanted if name not in tensors and not name.startswith("pooler.")]
    if missing:
        shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise ModelError(f"{len(missing)} tensors are missing: {shown}")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name]:
            raise ModelError(
                f"{names[name]} has shape {tensor.shape}; config.json asks for {wanted[name]}"
            )


def shapes(config: EncoderConfig, heads: Mapping[str, HeadConfig]) -> dict[str, tuple[int, ...]]:
    """Every parameter's name and shape; a linear weight is (outputs, inputs)."""
    hidden, wide = config.hidden_size, config.intermediate_size
    out: dict[str, tuple[int, ...]] = {
        "embeddings.word.weight": (config.vocab_size, hidden),
        "embeddings.position.weight": (config.max_positions, hidden),
    }
    if config.type_vocab_size:
        out["embeddings.token_type.weight"] = (config.type_vocab_size, hidden)
    out |= _norm("embeddings.norm", hidden)
    for i in range(config.num_layers):
        for part in ("query", "key", "value", "output"):
            out |= _linear(f"layers.{i}.{part}", hidden, hidden)
        out |= _norm(f"layers.{i}.attention_norm", hidden)
        out |= _linear(f"layers.{i}.up", wide, hidden)
        out |= _linear(f"layers.{i}.down", hidden, wide)
        out |= _norm(f"layers.{i}.norm", hidden)
    out |= _linear("pooler", hidden, hidden)
    for name, head in heads.items():
        out |= {f"heads.{name}.{part}": s for part, s in _head_shapes(config, head).items()}
    return out


def _head_shapes(config: EncoderConfig, head: HeadConfig) -> dict[str, tuple[int, ...]]:
    hidden = config.hidden_size
    if head.kind == "mlm":
        out = _linear("dense", hidden, hidden) | _norm("norm", hidden)
        out["bias"] = (config.vocab_size,)
        if not head.tied:
            out["decoder.weight"] = (config.vocab_size, hidden)
        return out
    dense = _linear("dense", hidden, hidden) if head.is_sequence else {}
    return dense | _linear("out", head.width, hidden)


def _linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _read_safetensors(folder: Path) -> dict[str, Array]:
    single = folder / "model.safetensors"
    if single.is_file():
        return map_safetensors(single)
    if (folder / _INDEX).is_file():
        table = read_json(folder / _INDEX).get("weight_map")
        if not isinstance(table, dict) or not table:
            raise ModelError(f"{_INDEX}: no weight_map")
        tensors: dict[str, Array] = {}
        for name in sorted({str(value) for value in table.values()}):
            # A shard is a plain name beside the index: no path leads out of the folder.
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ModelError(f"{_INDEX}: shard {show(name)}; allowed: a .safetensors name")
            if not (folder / name).is_file():
                raise ModelError(f"{_INDEX}: shard {show(name)} is missing")
            tensors.update(map_safetensors(folder / name))
        return tensors
    for name in _PICKLED:
        if (folder / name).is_file():
            raise ModelError(
                f"only safetensors is loaded, and here is {name}; "
                f"fix: enrobe convert {folder} --output DIR"
            )
    raise ModelError("no weights; a model folder has a model.safetensors")


def map_safetensors(path: Path) -> dict[str, Array]:
    """Memory-map every floating-point tensor of a file as float32 (other widths are converted).

    Raises:
        ModelError: the file is damaged, truncated, or not safetensors.
    """
    try:
        # The library checks the header (bounds, overlaps, sizes) before we trust its offsets.
        with safetensors.safe_open(path, framework="numpy"):
            pass
        raw = np.memmap(path, dtype=np.uint8, mode="r")
        size = int.from_bytes(raw[:8].tobytes(), "little")
        header = json.loads(raw[8 : 8 + size].tobytes())
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path.name} is damaged or not safetensors ({error})") from None
    header.pop("__metadata__", None)
    tensors: dict[str, Array] = {}
    for name, entry in header.items():
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            continue
        start, stop = entry["data_offsets"]
        flat = raw[8 + size + start : 8 + size + stop]
        if flat.ctypes.data % np.dtype(dtype).itemsize:
            flat = flat.copy()
        array = flat.view(dtype).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            # bfloat16 is the upper half of a float32.
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = cast(Array, np.asarray(array, dtype=np.float32))
    return tensors


def release_pages(tensors: Iterable[Array]) -> None:
    """Let the operating system take back the memory of mapped tensors until they are read again.

    For an engine that has made its own, packed copy of the weights.
    """
    maps: dict[int, mmap.mmap] = {}
    for tensor in tensors:
        base: object = tensor
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, mmap.mmap):
            maps[id(base)] = base
    for mapped in maps.values():
        if hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def write(
    folder: Path,
    *,
    config: EncoderConfig,
    heads: Mapping[str, HeadConfig],
    tensors: Mapping[str, Array],
    tokenizer_folder: Path | None = None,
    tokenizer_files: Mapping[str, str] | None = None,
) -> None:
    """Write a folder that transformers loads as it is, all of it or nothing.

    Tokenizer files are copied from `tokenizer_folder`; `tokenizer_files` (name -> text) are
    written besides, where the folder has no file of that name.

    Raises:
        CallError: the folder exists and is not empty, or cannot be written.
    """
    assert len(heads) <= 1, "several heads need enrobe.json"
    name, head = next(iter(heads.items()), ("", None))
    stored: dict[str, Array] = {}
    for ours, theirs in checkpoint_names(config, head):
        if head is not None and ours.startswith("head."):
            ours = ours.replace(f"head.{role(head.kind)}.", f"heads.{name}.", 1)
        if ours in tensors:
            stored[theirs] = np.ascontiguousarray(tensors[ours], dtype=np.float32)
    with new_folder(folder) as work:
        for file in TOKENIZER_FILES:
            if tokenizer_folder is not None and (tokenizer_folder / file).is_file():
                shutil.copyfile(tokenizer_folder / file, work / file)
        for file, text in (tokenizer_files or {}).items():
            if not (work / file).exists():
                (work / file).write_text(text, "utf-8")
        settings = json.dumps(write_config(config, head), indent=2, sort_keys=True)
        (work / "config.json").write_text(settings + "\n", "utf-8")
        safetensors.numpy.save_file(
            cast(dict[str, npt.NDArray[Any]], stored),
            work / "model.safetensors",
            metadata={"format": "pt"},
        )


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` in one rename when the block ends well.

    A crash at any moment leaves either no folder or a complete one.
    """
    check_new(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise CallError(f"{folder}: cannot be written ({error.strerror})") from None
    try:
        yield work
        work.chmod(0o755)
        for path in work.iterdir():
            _sync(path)
        _sync(work)
        work.rename(folder)
        _sync(folder.parent)
    except EnrobeError:
        raise
    except OSError as error:
        raise CallError(f"{folder}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_new(folder: Path) -> None:
    """Raise CallError where a folder to be written exists and is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CallError(f"{folder} exists and is not empty; name a new folder")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
