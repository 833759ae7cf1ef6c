"""Recipes: a TOML file to frozen values, checked before any work begins.

Plain dataclasses: a machine without pydantic can still train, by building them in Python.
"""

import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from enrobe.config import EncoderConfig
from enrobe.data.masking import MaskingConfig
from enrobe.errors import CallError, EnrobeError, MissingExtraError, nearest, show
from enrobe.train.loop import TrainConfig

Positions = Literal["normal", "sinusoidal"]
Packing = Literal["full", "documents"]
# A set of files has a folder of its name; these are taken.
_NAME = re.compile(r"\w[\w.-]*")
_RESERVED = ("tokenizer", "heldout-")
# Fields that name a model by its folder, a built-in name or a hub id.
_MODELS = {"model", "target", "teacher"}
Recipe = TypeVar("Recipe")


@dataclass(frozen=True, kw_only=True)
class ShapeTable:
    """A new model, RoBERTa's layout; the vocabulary's size is the tokenizer's.

    Raises:
        ModelError: see `EncoderConfig`.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    max_positions: int = 514
    # two of which stand before the first token's
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    # above 0 it keeps a GPU from the fastest attention
    positions: Positions = "normal"
    # how the position table starts: normal, as in RoBERTa; sinusoidal, from which short rows teach
    # long ones

    def __post_init__(self) -> None:
        self.config(50_265)
        if self.positions not in get_args(Positions):
            hint = nearest(str(self.positions), get_args(Positions))
            allowed = ", ".join(get_args(Positions))
            raise CallError(f"positions is {show(self.positions)}; allowed: {allowed}{hint}")

    def config(self, vocab_size: int) -> EncoderConfig:
        """The encoder's configuration with a vocabulary of this size."""
        sizes = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "positions"}
        return EncoderConfig(
            family="roberta",
            vocab_size=vocab_size,
            position_offset=2,
            type_vocab_size=1,
            **sizes,
        )


@dataclass(frozen=True, kw_only=True)
class SourceTable:
    """Files that are mixed in as one source."""

    files: tuple[Path, ...]
    # txt, jsonl, csv, tsv, parquet, gz and xz of these; patterns such as train-*.txt.xz
    weight: float = 1.0
    # its share of the rows, in any unit

    def __post_init__(self) -> None:
        _at_least_one(files=len(self.files))
        if not 0 < self.weight < math.inf:
            raise CallError(f"weight is {show(self.weight)}; allowed: above 0")


@dataclass(frozen=True, kw_only=True)
class HeldoutTable:
    """Files to measure on, never trained on."""

    files: tuple[Path, ...]
    rows: int = 500
    # the most that are measured, drawn at random once

    def __post_init__(self) -> None:
        _at_least_one(files=len(self.files), rows=self.rows)


@dataclass(frozen=True, kw_only=True)
class CorpusTable:
    """What is trained on.

    Raises:
        CallError: nothing to train on, or a value that is not allowed.
    """

    sources: dict[str, SourceTable] = field(default_factory=dict)
    languages: Path | None = None
    # or a folder with a file or a folder a language, each a source of that name
    alpha: float = 0.0
    # a source's share is weight * rows ** alpha: 0 by weights alone, 1 by size, 0.3 as XLM-R has it
    # for languages
    heldout: dict[str, HeldoutTable] = field(default_factory=dict)
    # the first one chooses the best checkpoint
    vocabulary: int | None = None
    # entries of a byte-level BPE to train on the sources
    tokenizer: Path | None = None
    # or a folder that has one; with a model to start from, its own
    folder: Path | None = None
    # where token shards are kept; None: in the output
    length: int = 512
    # tokens a row
    packing: Packing = "full"
    # full: rows filled across documents; documents: rows that never cross one
    workers: int = 1
    # processes that tokenize

    def __post_init__(self) -> None:
        if not self.sources and self.languages is None:
            raise CallError("[corpus.sources] is empty; fix: add [corpus.sources.NAME] with files")
        if self.sources and self.languages is not None:
            raise CallError("[corpus] has sources and languages; fix: leave out one of the two")
        if not 0 <= self.alpha <= 1:
            raise CallError(f"alpha is {show(self.alpha)}; allowed: 0 to 1")
        _at_least_one(workers=self.workers)
        for name in (*self.sources, *self.heldout):
            taken = name in self.sources and name.startswith(_RESERVED)
            if taken or not _NAME.fullmatch(name):
                allowed = "letters, digits, - and _; not tokenizer, not heldout-…"
                raise CallError(f"the name {show(name)} of a set of files; allowed: {allowed}")
        if self.packing not in get_args(Packing):
            hint = nearest(str(self.packing), get_args(Packing))
            allowed = ", ".join(get_args(Packing))
            raise CallError(f"packing is {show(self.packing)}; allowed: {allowed}{hint}")


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe:
    """All that `enrobe pretrain` needs to know.

    Raises:
        CallError: two values contradict each other.
    """

    output: Path
    corpus: CorpusTable
    train: TrainConfig
    model: ShapeTable | str
    # a table of sizes, or the model to start from: a folder, a built-in name, a hub id
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise CallError(f"seed is {show(self.seed)}; allowed: 0 to 2**63 - 1")
        given = [name for name in ("vocabulary", "tokenizer") if getattr(self.corpus, name)]
        if isinstance(self.model, str) and given:
            raise CallError(
                f"model is {show(self.model)} and corpus.{given[0]} is given; a model brings its "
                "own tokenizer: leave out one of the two"
            )
        if not isinstance(self.model, str) and len(given) != 1:
            have = " and ".join(given) or "neither"
            raise CallError(
                f"[corpus] has {have}; a new model needs one of vocabulary = 8192 (entries to "
                'train) and tokenizer = "DIR"'
            )
        room = self.model.max_positions - 2 if isinstance(self.model, ShapeTable) else None
        if room is not None and self.corpus.length > room:
            raise CallError(
                f"corpus.length is {self.corpus.length}; model.max_positions "
                f"{self.model.max_positions} leaves {room}"  # type: ignore[union-attr]
            )


def given(
    recipe: "str | os.PathLike[str] | Recipe",
    kind: type[Recipe],
    changes: Sequence[str],
    kind_of: Callable[[Mapping[str, Any]], type[Recipe]] | None = None,
) -> Recipe:
    """A recipe's values, which may be there already.

    Raises:
        CallError: as `read_recipe`; changes of what is no file.
    """
    if not isinstance(recipe, kind):
        return read_recipe(Path(recipe), kind_of or kind, changes)  # type: ignore[arg-type]
    if changes:
        raise CallError("changes replace what a file says; fix: dataclasses.replace")
    return recipe


def read_recipe(
    path: Path,
    kind: type[Recipe] | Callable[[Mapping[str, Any]], type[Recipe]],
    changes: Sequence[str] = (),
) -> Recipe:
    """Read a recipe; relative paths in it are relative to its folder.

    Args:
        path: a TOML file.
        kind: the dataclass that it describes, or what chooses one by the file's values.
        changes: `key.key=value` pairs that replace what it says, values in TOML.

    Raises:
        CallError: no such file, not TOML, an unknown key (the nearest is named), a wrong value.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CallError(f"{path}: {error.strerror}") from None
    # A number of thousands of digits is a ValueError of Python's.
    except (ValueError, RecursionError) as error:
        raise CallError(f"{path}: not TOML ({error})") from None
    for change in changes:
        set_value(values, change)
    try:
        model = values.get("model")
        # A model is a folder beside the recipe, or else a name.
        if isinstance(model, str) and model and (path.parent / model).is_dir():
            values["model"] = str(path.parent / model)
        chosen: type[Recipe] = kind if isinstance(kind, type) else kind(values)
        anchored: Recipe = _anchor(make(chosen, values), path.parent)
    except MissingExtraError:
        raise
    except EnrobeError as error:
        raise CallError(f"{path}: {error}") from None
    return anchored


def set_value(values: dict[str, Any], change: str) -> None:
    """Put a `key.key=value` change into parsed values; CallError where it is none."""
    name, given, text = (part.strip() for part in change.partition("="))
    if not given or not name:
        raise CallError(f"--set {show(change)}; allowed: key=value, for instance train.steps=100")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    *tables, key = name.split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise CallError(f"--set {show(change)}: {table} is no table")
    values[key] = value


def make(kind: type[Recipe], values: Mapping[str, Any]) -> Recipe:
    """Build a dataclass from parsed values, strictly.

    Raises:
        CallError: the first thing wrong, by its place: what was got, what is allowed.
    """
    try:
        from pydantic import TypeAdapter, ValidationError
    except ImportError:
        raise MissingExtraError("pydantic", "train", "reading a recipe") from None
    _forbid_unknown(kind)
    try:
        # In JSON a list stands for a tuple, a string for a path, and 1 for 1.0, but "1" for no 1.
        text = json.dumps(values, default=str)
        return TypeAdapter(kind).validate_json(text, strict=True)
    except RecursionError:
        raise CallError("tables nested too deep") from None
    except ValidationError as error:
        raise CallError(_explain(kind, values, error.errors())) from None


def _forbid_unknown(kind: Any) -> None:
    """Tell pydantic, for a dataclass and those in its fields, that an unknown key is an error."""
    if isinstance(kind, type) and is_dataclass(kind):
        kind.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
        for hint in get_type_hints(kind).values():
            _forbid_unknown(hint)
    for argument in get_args(kind):
        _forbid_unknown(argument)


def _explain(kind: type, values: Mapping[str, Any], errors: Sequence[Any]) -> str:
    # An unknown key explains a missing one; an allowed type's error says nothing of another's.
    order = {"unexpected_keyword_argument": 0, "value_error": 1}
    error = min(errors, key=lambda e: (order.get(e["type"], 2), -len(e["loc"])))
    keys: list[str] = []
    at: Any = values
    for number, key in enumerate(error["loc"], start=1):
        # A union's branches stand in the place too, under names that the file has not.
        if isinstance(key, int):
            keys[-1] += f"[{key}]"
        elif isinstance(at, Mapping) and key in at:
            keys.append(key)
            at = at[key]
        elif number == len(error["loc"]) and error["type"].startswith("missing"):
            keys.append(key)
    place = ".".join(keys)
    if error["type"] == "unexpected_keyword_argument":
        known = _fields_at(kind, keys[:-1])
        hint = nearest(keys[-1], known) or f"; allowed: {', '.join(sorted(known))}"
        return f"unknown key {place}{hint}"
    if error["type"].startswith("missing"):
        return f"{place} is missing"
    message = str(error.get("ctx", {}).get("error") or error["msg"])
    if error["type"] == "value_error":
        return f"{'.'.join(keys)}: {message}" if keys else message
    message = message.removeprefix("Input should be ").removeprefix("a valid ")
    return f"{place} is {show(error['input'])}; allowed: {message}"


def _fields_at(kind: Any, keys: Sequence[str]) -> list[str]:
    """The keys that the table at a place may have."""
    for key in keys:
        kind = _table(kind)
        # dict[str, Table]: any key leads to Table.
        kind = get_type_hints(kind)[key] if is_dataclass(kind) else get_args(kind)[1]
    return [f.name for f in fields(_table(kind))]


def _table(kind: Any) -> Any:
    """The one of the allowed types that a TOML table stands for."""
    if is_dataclass(kind) or get_origin(kind) is dict:
        return kind
    return next(k for k in get_args(kind) if is_dataclass(k) or get_origin(k) is dict)


def _anchor(value: Any, base: Path) -> Any:
    """The value with every relative path in it put below `base`."""
    if isinstance(value, Path):
        if "\0" in str(value):
            raise CallError(f"no file can be named {show(str(value))}")
        return base / os.path.expanduser(value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: _anchor(getattr(value, f.name), base) for f in fields(value)}
        for name in _MODELS & changed.keys():
            # A folder, where there is one; else a built-in name or a hub id.
            if isinstance(changed[name], str) and _is_folder(base / changed[name]):
                changed[name] = str(base / changed[name])
        return replace(value, **changed)
    if isinstance(value, tuple):
        return tuple(_anchor(item, base) for item in value)
    if isinstance(value, dict):
        return {key: _anchor(item, base) for key, item in value.items()}
    return value


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise CallError(f"{name}: {show(count)}; allowed: 1 or more")


def as_values(recipe: Any) -> dict[str, Any]:
    """A recipe as JSON has it; its paths do not depend on where one stands."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(recipe), default=os.path.abspath))
    return values
