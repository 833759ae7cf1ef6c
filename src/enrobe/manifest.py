"""enrobe.json in and out: what config.json cannot say of a model's heads.

A folder with several heads needs it; beside a single head it carries the name, the temperature,
thresholds and so on, while transformers reads config.json alone. `"compute": "int8"` says that the
matrices that are stored as int8 are to be multiplied so.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from enrobe.config import HeadConfig, check_head_name
from enrobe.errors import ModelError, nearest, show

MANIFEST = "enrobe.json"
_FORMAT = 1
_MOST_HEADS = 1000
_MOST_LABELS = 1_000_000

_STRINGS = ("labels", "text")
# What config.json does not say of a single head.
_OWN = ("temperature", "thresholds", "no_answer", "text", "metric", "limit")


def write_manifest(
    heads: Mapping[str, HeadConfig], *, int8: bool = False
) -> dict[str, object] | None:
    """The content of enrobe.json; None where config.json says it all.

    int8: what is stored as int8 is to be multiplied so.

    Raises:
        ModelError: a name that no head can have.
    """
    for name in heads:
        check_head_name(name)
    content: dict[str, object] = {"format": _FORMAT}
    if int8:
        content["compute"] = "int8"
    if len(heads) > 1 or not all(_plain(*item) for item in heads.items()):
        content["heads"] = {name: _described(head) for name, head in heads.items()}
    return content if len(content) > 1 else None


def _plain(name: str, head: HeadConfig) -> bool:
    return name == head.kind and not carried(head)


def carried(head: HeadConfig) -> dict[str, object]:
    """What a head has beyond config.json's, as JSON has it; what is as ever is left out."""
    return {key: value for key, value in _described(head).items() if key in _OWN}


def _described(head: HeadConfig) -> dict[str, object]:
    described: dict[str, object] = {}
    for field in fields(HeadConfig):
        value = getattr(head, field.name)
        if value != field.default:
            described[field.name] = list(value) if isinstance(value, tuple) else value
    return described


def read_manifest(content: Mapping[str, object]) -> dict[str, HeadConfig]:
    """The heads that a parsed enrobe.json describes, by name.

    Raises:
        ModelError: another format, an unknown key, or a value that a head cannot have.
    """
    try:
        if content.get("format") != _FORMAT:
            raise ModelError(f"format {show(content.get('format'))}; allowed: {_FORMAT}")
        compute = content.get("compute")
        if compute not in (None, "int8"):
            raise ModelError(f"compute {show(compute)}; allowed: int8")
        if compute is not None and "heads" not in content:
            return {}
        heads = content.get("heads")
        if not isinstance(heads, dict) or not heads or len(heads) > _MOST_HEADS:
            raise ModelError(f"heads is {show(heads)}; allowed: a table of 1 to {_MOST_HEADS}")
        out = {}
        for name, described in heads.items():
            check_head_name(name)
            try:
                out[name] = _head(described)
            except ModelError as error:
                raise ModelError(f"head {show(name)}: {error}") from None
    except ModelError as error:
        raise ModelError(f"{MANIFEST}: {error}") from None
    return out


def is_int8(content: Mapping[str, object]) -> bool:
    """Whether a parsed enrobe.json asks that what is stored as int8 be multiplied so."""
    return content.get("compute") == "int8"


def _head(described: object) -> HeadConfig:
    if not isinstance(described, dict):
        raise ModelError(f"is {show(described)}; allowed: a table")
    known = {field.name for field in fields(HeadConfig)}
    values: dict[str, Any] = {}
    for key, value in described.items():
        if key not in known:
            raise ModelError(f"{show(key)} is not known{nearest(str(key), known)}")
        values[key] = _checked(key, value)
    if "kind" not in values:
        raise ModelError("kind is missing")
    return HeadConfig(**values)


def _checked(key: str, value: object) -> object:
    """A value of JSON as the field has it; what may stand there beyond its type, the class says."""
    if key in _STRINGS:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ModelError(f"{key} is {show(value)}; allowed: a list of strings")
        if len(value) > _MOST_LABELS:
            raise ModelError(f"{key} has {len(value)} entries; allowed: {_MOST_LABELS}")
        return tuple(value)
    if key == "thresholds":
        if not isinstance(value, list):
            raise ModelError(f"{key} is {show(value)}; allowed: a list of numbers")
        return tuple(value)
    if key in ("dropout", "input_dropout"):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < 1:  # type: ignore[operator]  # a number
            raise ModelError(f"{key} is {show(value)}; allowed: from 0 up to 1")
    if key == "activation" and value not in ("tanh", "relu"):
        raise ModelError(f"{key} is {show(value)}; allowed: tanh, relu")
    if key == "tied" and not isinstance(value, bool):
        raise ModelError(f"{key} is {show(value)}; allowed: true, false")
    if key in ("metric", "kind") and not isinstance(value, str):
        raise ModelError(f"{key} is {show(value)}; allowed: a string")
    return value


def joined(name: str, described: HeadConfig, head: HeadConfig) -> HeadConfig:
    """A single head as config.json and its tensors have it, with what enrobe.json adds.

    Raises:
        ModelError: they speak of different heads.
    """
    assert described.kind == head.kind
    if described.labels != head.labels:
        raise ModelError(
            f"{MANIFEST}: head {show(name)} has labels {show(described.labels)}, and config.json "
            f"{show(head.labels)}; fix: delete {MANIFEST} if the folder was trained anew elsewhere"
        )
    return replace(head, **{key: getattr(described, key) for key in _OWN})
