"""A model's name to its folder: one named as such, a built-in one, or a hub id's, fetched once."""

import os
import re
import sys
from pathlib import Path

from enrobe.checkpoint import TOKENIZER_FILES
from enrobe.errors import CallError, HubError, ModelError, nearest, show
from enrobe.weights import INT8_WEIGHTS

ENVIRONMENT = "ENROBE_MODEL"
# The models that come with the package, the default first, and where those that it has are.
BUILT_IN = ("enrobe-small", "enrobe-tiny")
MODELS = Path(__file__).parent / "models"

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
# Nobody else's: the hub asks for an owner before the name.
_OURS = re.compile(r"enrobe[\w.-]*", re.ASCII)
_FILES = (
    "config.json",
    *TOKENIZER_FILES,
    "modules.json",
    "*_Pooling/config.json",
    "*_Normalize/config.json",
    "*_Dense/config.json",
    "*_Dense/model.safetensors",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    "enrobe.json",
)
_SAFE = (
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    INT8_WEIGHTS,
)
_PICKLED = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")


def name_of(model: str | os.PathLike[str] | None) -> str:
    """What a model is called where its folder means nothing: the last part of a path."""
    if model is None:
        model = os.environ.get(ENVIRONMENT) or next(iter(built_in()), "")
    return Path(model).resolve().name if Path(model).exists() else str(model)


def resolve(model: str | os.PathLike[str] | None, *, pickled: bool = False) -> Path:
    """The local folder of a model.

    A folder goes before a hub id of the same name. A folder here and a built-in model of the same
    name are an error, so that the place of a call never decides which one answers; "./NAME" and
    `Path("NAME")` are the folder.

    Args:
        model: a folder, a built-in name, or a hub id such as "FacebookAI/roberta-base"; None:
            $ENROBE_MODEL, else the built-in model.
        pickled: fetch pickled weights where a hub repository has no others (for `convert`).

    Raises:
        CallError: nothing is named and nothing is built in, or the name is none of the three.
        HubError: the hub does not have it, or cannot be reached and the cache does not have it.
    """
    if model is None:
        model = os.environ.get(ENVIRONMENT)
        if not model and built_in():
            return MODELS / built_in()[0]
        if not model:
            raise CallError(
                f"no model is named; give a folder or a hub id, or set {ENVIRONMENT} to one"
            )
    if not isinstance(model, str | os.PathLike):
        raise CallError(f"model is {show(model)}; allowed: a folder, a built-in name or a hub id")
    name = os.fspath(model)
    if isinstance(model, str) and model in built_in():
        return _built_in(model)
    folder = Path(name).expanduser()
    try:
        if name and folder.is_dir():
            return folder
        exists = bool(name) and folder.exists()
    except (OSError, ValueError):
        exists = False
    if exists:
        raise CallError(f"{name} is a file; a model is a folder or a hub id")
    if isinstance(model, str) and _OURS.fullmatch(name):
        names = built_in()
        hint = "" if name in BUILT_IN else nearest(name, names)
        raise CallError(
            f"model {show(name)}: no such folder, and not built in; "
            f"built in: {', '.join(names) or 'none'}{hint}"
        )
    if isinstance(model, Path) or not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise CallError(f"model {show(name)}: no such folder, and not a hub id (owner/name)")
    return _fetch(name, pickled=pickled)


def built_in() -> list[str]:
    """The names of the models that this package has, the default first."""
    return [name for name in BUILT_IN if (MODELS / name / "config.json").is_file()]


def _built_in(name: str) -> Path:
    folder, here = MODELS / name, Path(name)
    if here.is_dir() and not here.samefile(folder):
        raise CallError(
            f"model '{name}' is built in, and a folder here has that name, too; "
            f"fix: write ./{name} for the folder, or give it another name"
        )
    return folder


def _fetch(name: str, *, pickled: bool) -> Path:
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    patterns = [*_FILES, *_SAFE]
    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
        if not any(folder.glob("*.safetensors")) and pickled:
            patterns += _PICKLED
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    # The library raises its own errors, its HTTP client's, and OSErrors, by what went wrong.
    except Exception as error:
        raise HubError(f"model {show(name)}: no folder here, and {_reason(error)}") from None
    if not any(folder.glob("*.safetensors")) and not pickled:
        raise ModelError(
            f"{name} holds no safetensors on the hub; fix: enrobe convert {name} --output DIR"
        )
    return folder


def _reason(error: Exception) -> str:
    kind = type(error).__name__
    known = {
        "RepositoryNotFoundError": "the hub has no public model of this name",
        "GatedRepoError": "the hub asks for a login and the owner's consent (hf auth login)",
        "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set while the cache does not have it",
        "LocalEntryNotFoundError": "the cache does not have it and the hub cannot be reached",
        "HFValidationError": "the hub cannot have a model of this name",
    }
    return known.get(kind) or f"the hub did not answer as expected ({kind}: {str(error)[:200]})"
