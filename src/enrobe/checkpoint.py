"""Model folders in and out: config.json, safetensors and tokenizer files, in and out atomically.

Only safetensors is read here; a pickled checkpoint goes through `enrobe.convert` once. float32 is
memory-mapped, so reading a folder costs no memory before an engine touches the weights, and nothing
in a folder can name code to run or a file outside it.

Parameter names are ours: `embeddings.*`, `layers.N.*`, `pooler.*`, `heads.NAME.*`. In a folder with
one head they take the family's names, so that transformers reads it; of several heads, only the
encoder's do, and enrobe.json describes the heads.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from enrobe.atomic import new_folder
from enrobe.config import EncoderConfig, HeadConfig
from enrobe.dialects import DIALECTS, canonical_names, checkpoint_names, role
from enrobe.errors import ModelError, show
from enrobe.manifest import MANIFEST, is_int8, joined, read_manifest, write_manifest
from enrobe.settings import Reading, head_of_role, read_config, write_config
from enrobe.weights import (
    INT8_WEIGHTS,
    WEIGHTS,
    Array,
    Int8Rows,
    Restored,
    map_int8_rows,
    map_safetensors,
    write_float16,
    write_float32,
    write_int8_rows,
    write_stored,
)

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


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One model folder, read.

    `tensors` maps our parameter names to float32 arrays, memory-mapped where the file is float32
    and restored when first read where it is int8; `int8` are those matrices as they are stored.
    """

    folder: Path
    config: EncoderConfig
    heads: Mapping[str, HeadConfig]
    tensors: Mapping[str, Array]
    unexpected: tuple[str, ...]
    # names in the file that belong to no part of the model
    ignored_keys: tuple[str, ...]
    # keys of config.json that are neither read nor known to be harmless
    int8: Mapping[str, Int8Rows] = field(default_factory=dict)
    computes_int8: bool = False
    # the folder was made to multiply those in int8, and not only to be small


def read(folder: Path) -> Checkpoint:
    """Read a Hugging Face model folder.

    Raises:
        ModelError: no folder, no weights, a damaged or hostile file, a family or a value that is
            not implemented, or tensors that are missing or of another shape (named).
    """
    settings = read_settings(folder)
    try:
        manifest: dict[str, object] = {}
        if (folder / MANIFEST).is_file():
            manifest = read_json(folder / MANIFEST, _LARGEST_CONFIG)
        described = read_manifest(manifest) if manifest else {}
        done = assemble(folder, settings, _read_weights(folder), described)
        return replace(done, computes_int8=bool(done.int8) and is_int8(manifest))
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
    folder: Path,
    settings: Mapping[str, object],
    stored: Mapping[str, Array | Int8Rows],
    described: Mapping[str, HeadConfig] | None = None,
) -> Checkpoint:
    """Bring tensors under a family's names into ours, and check that all are there and fit.

    described: the heads of enrobe.json, by name.
    """
    described = described or {}
    reading = read_config(settings)
    own = [name for name in stored if name.startswith("heads.")] if described else []
    names: dict[str, str]
    if own or len(described) > 1:
        # The heads have our names in the file, too; no other is looked for.
        rest = stored.keys() - set(own)
        found, unexpected = canonical_names(rest, reading.encoder, None)
        names = {ours: theirs for ours, theirs in found.items() if not ours.startswith("head.")}
        heads = dict(described)
        wanted = shapes(reading.encoder, heads)
        names.update((name, name) for name in own if name in wanted)
        unexpected += [name for name in own if name not in wanted]
        unexpected += [theirs for ours, theirs in found.items() if ours.startswith("head.")]
    else:
        names, heads, unexpected = _family_heads(settings, reading, stored)
        if described:
            names, heads = _renamed(names, heads, described)
    found_tensors = {ours: stored[theirs] for ours, theirs in names.items()}
    _check_shapes(found_tensors, names, reading.encoder, heads)
    tensors = Restored(found_tensors)
    return Checkpoint(
        folder=folder,
        config=reading.encoder,
        heads=heads,
        tensors=tensors,
        unexpected=tuple(sorted(unexpected)),
        ignored_keys=reading.ignored_keys,
        int8=tensors.int8,
    )


def _family_heads(
    settings: Mapping[str, object], reading: Reading, stored: Mapping[str, Array | Int8Rows]
) -> tuple[dict[str, str], dict[str, HeadConfig], list[str]]:
    """Names ours -> theirs, the heads (called by their kinds), and the names of no use.

    For a file whose heads, too, have the family's names.
    """
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
            if words is not None and np.array_equal(_numbers(decoder), _numbers(words)):
                del parts["decoder.weight"]
            else:
                head = replace(head, tied=False)
        elif head.kind == "mlm" and settings.get("tie_word_embeddings") is False:
            head = replace(head, tied=False)
        heads[head.kind] = head
        names.update((f"heads.{head.kind}.{rest}", theirs) for rest, theirs in parts.items())
    if reading.head is not None and not heads:
        heads[reading.head.kind] = reading.head
    return names, heads, unexpected


def _renamed(
    names: Mapping[str, str],
    heads: Mapping[str, HeadConfig],
    described: Mapping[str, HeadConfig],
) -> tuple[dict[str, str], dict[str, HeadConfig]]:
    """The one head that enrobe.json describes, under the name that it has there."""
    ((name, more),) = described.items()
    if more.kind not in heads:
        has = ", ".join(heads) or "no head"
        raise ModelError(f"{MANIFEST}: head {show(name)} of kind {more.kind}; the weights: {has}")
    old, new = f"heads.{more.kind}.", f"heads.{name}."
    kept = {
        new + ours.removeprefix(old) if ours.startswith(old) else ours: theirs
        for ours, theirs in names.items()
        if ours.startswith(old) or not ours.startswith("heads.")
    }
    return kept, {name: joined(name, more, heads[more.kind])}


def _numbers(tensor: Array | Int8Rows) -> Array:
    return tensor.restore() if isinstance(tensor, Int8Rows) else tensor


def _with_labels(
    settings: Mapping[str, object], bias: Array | Int8Rows | None
) -> Mapping[str, object]:
    """The settings, with as many labels as the head has outputs where they do not say."""
    if bias is None or "id2label" in settings:
        return settings
    return {**settings, "num_labels": bias.shape[0]}


def _check_shapes(
    tensors: Mapping[str, Array | Int8Rows],
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


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights: one, or several shards.

    Float32 goes before int8 rows: where a folder has both, transformers reads the former.

    Raises:
        ModelError: there are none, or the index of the shards is damaged.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / _INDEX).is_file():
        table = read_json(folder / _INDEX).get("weight_map")
        if not isinstance(table, dict) or not table:
            raise ModelError(f"{_INDEX}: no weight_map")
        names = sorted({str(value) for value in table.values()})
        for name in names:
            # A shard is a plain name beside the index: no path leads out of the folder.
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ModelError(f"{_INDEX}: shard {show(name)}; allowed: a .safetensors name")
            if not (folder / name).is_file():
                raise ModelError(f"{_INDEX}: shard {show(name)} is missing")
        return [folder / name for name in names]
    if (folder / INT8_WEIGHTS).is_file():
        return [folder / INT8_WEIGHTS]
    for name in _PICKLED:
        if (folder / name).is_file():
            raise ModelError(
                f"only safetensors is loaded, and here is {name}; "
                f"fix: enrobe convert {folder} --output DIR"
            )
    raise ModelError(f"no weights; a model folder has a {WEIGHTS}")


def _read_weights(folder: Path) -> dict[str, Array | Int8Rows]:
    tensors: dict[str, Array | Int8Rows] = {}
    for path in weight_files(folder):
        int8 = path.name == INT8_WEIGHTS
        tensors.update(map_int8_rows(path) if int8 else map_safetensors(path))
    return tensors


def write(
    folder: Path,
    *,
    config: EncoderConfig,
    heads: Mapping[str, HeadConfig],
    tensors: Mapping[str, Array],
    tokenizer_folder: Path | None = None,
    tokenizer_files: Mapping[str, str] | None = None,
    int8_rows: bool = False,
    half: bool = False,
    int8: Mapping[str, Int8Rows] | None = None,
) -> None:
    """Write a folder that transformers loads as it is, all of it or nothing.

    Of several heads transformers sees the encoder alone.

    With `int8_rows` the weights are stored in a quarter of the space (see `enrobe.weights`): Enrobe
    alone loads such a folder, and transformers says that it has no weights. With `half` they are
    float16. `int8` are the matrices that are to be multiplied as they stand there: the folder says
    so, and all else is float32.

    Tokenizer files are copied from `tokenizer_folder`; `tokenizer_files` (name -> text) are
    written besides, where the folder has no file of that name.

    Raises:
        CallError: the folder exists and is not empty, or cannot be written.
        ModelError: with `int8_rows`, a matrix whose numbers are not finite; a name that no head can
            have.
    """
    assert sum((int8_rows, half, int8 is not None)) <= 1
    values: dict[str, Array | Int8Rows] = {**tensors, **(int8 or {})}
    name, head = next(iter(heads.items())) if len(heads) == 1 else ("", None)
    stored: dict[str, Any] = {}
    for ours, theirs in checkpoint_names(config, head):
        if head is not None and ours.startswith("head."):
            ours = ours.replace(f"head.{role(head.kind)}.", f"heads.{name}.", 1)
        if ours in values:
            stored[theirs] = values[ours]
    if len(heads) > 1:
        stored.update((ours, value) for ours, value in values.items() if ours.startswith("heads."))
    with new_folder(folder) as work:
        for file in TOKENIZER_FILES:
            if tokenizer_folder is not None and (tokenizer_folder / file).is_file():
                shutil.copyfile(tokenizer_folder / file, work / file)
        for file, text in (tokenizer_files or {}).items():
            if not (work / file).exists():
                (work / file).write_text(text, "utf-8")
        described = write_config(config, head) | ({"dtype": "float16"} if half else {})
        settings = json.dumps(described, indent=2, sort_keys=True)
        (work / "config.json").write_text(settings + "\n", "utf-8")
        write_heads(work, heads, int8=int8 is not None)
        weights = work / (INT8_WEIGHTS if int8_rows or int8 is not None else WEIGHTS)
        if int8 is not None:
            write_stored(weights, stored)
        elif int8_rows:
            write_int8_rows(weights, stored)
        else:
            (write_float16 if half else write_float32)(weights, stored)
        # safetensors writes for the owner's eyes alone, whatever the umask.
        shutil.copymode(work / "config.json", weights)


def write_heads(folder: Path, heads: Mapping[str, HeadConfig], *, int8: bool = False) -> None:
    """Write enrobe.json, where the heads need one: what config.json does not say of them.

    Raises:
        ModelError: a name that no head can have.
    """
    manifest = write_manifest(heads, int8=int8)
    (folder / MANIFEST).unlink(missing_ok=True)
    if manifest is not None:
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
