"""What a sentence-transformers folder says of its vectors, read and written.

    modules.json                       the modules, in order: Transformer, Pooling, then any of
                                       Dense and Normalize
    1_Pooling/config.json              how the tokens' vectors become one
    2_Dense/                           config.json and model.safetensors of a linear layer
    sentence_bert_config.json          max_seq_length, do_lower_case
    config_sentence_transformers.json  prompts and default_prompt_name, similarity_fn_name,
                                       truncate_dim

Nothing in a folder can name code to run: a module or an activation is one of those known here, or
an error.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from enrobe.atomic import sync
from enrobe.checkpoint import read_json
from enrobe.errors import ModelError, show
from enrobe.weights import WEIGHTS, Array, map_safetensors, write_float32

PoolName = Literal["cls", "max", "mean", "mean_sqrt_len"]
SimilarityName = Literal["cosine", "dot", "euclidean", "manhattan"]
Activation = Literal["Identity", "ReLU", "Sigmoid", "Tanh"]

MODULES = "modules.json"
_SETTINGS = "config_sentence_transformers.json"
_LENGTHS = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "xlm-roberta")
)
_LARGEST_FILE = 2**20
_KINDS = ("Transformer", "Pooling", "Dense", "Normalize")
# Their spelling of each pooling, and before that the flag for it; in the order of concatenation.
_POOLS: dict[str, tuple[str, PoolName]] = {
    "pooling_mode_cls_token": ("cls", "cls"),
    "pooling_mode_max_tokens": ("max", "max"),
    "pooling_mode_mean_tokens": ("mean", "mean"),
    "pooling_mode_mean_sqrt_len_tokens": ("mean_sqrt_len_tokens", "mean_sqrt_len"),
}
_OTHER_POOLS = ("pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken")


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense:
    """A linear layer on a pooled vector. Shapes: weight (outputs, inputs), bias (outputs,)."""

    weight: Array
    bias: Array | None
    activation: Activation


@dataclass(frozen=True, kw_only=True, eq=False)
class SentenceSettings:
    """How texts become vectors; the defaults are those of a folder that does not say."""

    pool: tuple[PoolName, ...] = ("mean",)
    # several are laid side by side
    include_prompt: bool = True
    # whether the prompt's tokens are pooled with the others
    steps: tuple[Dense | Literal["normalize"], ...] = ()
    # what happens to a pooled vector, in this order
    max_tokens: int | None = None
    # the longest row, special tokens included; None: the model's own limit
    lower_case: bool = False
    # put texts in lower case, whatever the tokenizer does
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    # the text, not the name; empty: none
    similarity: SimilarityName = "cosine"
    truncate_dim: int | None = None
    # leading numbers of a vector that are kept; None: all


def read_sentence_settings(folder: Path) -> SentenceSettings:
    """Read a folder's sentence-transformers files; the defaults where it has no modules.json.

    Raises:
        ModelError: a damaged file, a module or a value that is not implemented, or weights that are
            not safetensors.
    """
    if not (folder / MODULES).is_file():
        return SentenceSettings()
    try:
        return _read(folder)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None


def copy_sentence_files(source: Path, target: Path) -> None:
    """Copy what a folder says of its vectors beside other weights; nothing where it says nothing.

    Raises:
        ModelError: as `read_sentence_settings`.
    """
    if not (source / MODULES).is_file():
        return
    names = [MODULES, _SETTINGS, *_LENGTHS]
    for kind, path in _modules(source):
        if kind != "Transformer":
            names += [f"{path.name}/config.json", f"{path.name}/{WEIGHTS}"]
    for name in names:
        if (source / name).is_file():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, target / name)


def _read(folder: Path) -> SentenceSettings:
    modules = _modules(folder)
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or not {*kinds[2:]} <= {"Dense", "Normalize"}:
        allowed = "Transformer, Pooling, then any of Dense and Normalize"
        raise ModelError(f"{MODULES}: modules {', '.join(kinds) or 'none'}; allowed: {allowed}")
    if modules[0][1] != folder:
        raise ModelError(
            f"{MODULES}: the Transformer stands in {modules[0][1].name}; allowed: the folder itself"
        )
    pooling = _object(modules[1][1] / "config.json")
    steps = tuple(
        _dense(path) if kind == "Dense" else _normalize(path) for kind, path in modules[2:]
    )
    lengths = next((_object(folder / n) for n in _LENGTHS if (folder / n).is_file()), {})
    task = lengths.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise ModelError(f"transformer_task {show(task)}; allowed: feature-extraction")
    settings = _object(folder / _SETTINGS) if (folder / _SETTINGS).is_file() else {}
    prompts = _prompts(settings)
    return SentenceSettings(
        pool=_pools(pooling),
        include_prompt=_flag(pooling, "include_prompt", True),
        steps=steps,
        max_tokens=_length(lengths, folder),
        lower_case=_flag(lengths, "do_lower_case", False),
        prompts=prompts,
        default_prompt=_default_prompt(settings, prompts),
        similarity=_similarity(settings),
        truncate_dim=_count(settings, "truncate_dim"),
    )


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """(kind, folder) of each module, in order."""
    path = folder / MODULES
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ModelError(f"{MODULES}: larger than {_LARGEST_FILE >> 20} MiB; refused")
        entries = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{MODULES}: not JSON ({error})") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ModelError(f"{MODULES}: allowed: a list of objects")
    out = []
    for entry in entries:
        where, kind = entry.get("path", ""), str(entry.get("type"))
        name = kind.rsplit(".", 1)[-1]
        if not kind.startswith("sentence_transformers.") or name not in _KINDS:
            allowed = ", ".join(_KINDS)
            raise ModelError(f"{MODULES}: module {show(kind)}; allowed: {allowed}")
        # A plain name inside the folder: no path leads out of it.
        if not isinstance(where, str) or Path(where).name != where or where == "..":
            raise ModelError(f"{MODULES}: path {show(where)}; allowed: a name in the folder")
        out.append((name, folder / where))
    return out


def _object(path: Path) -> dict[str, object]:
    try:
        return read_json(path, _LARGEST_FILE)
    except ModelError as error:
        # Which file of the folder; the folder is named once, above.
        raise ModelError(str(error).replace(str(path), f"{path.parent.name}/{path.name}")) from None


def _flag(settings: Mapping[str, object], key: str, default: bool) -> bool:
    value = settings.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ModelError(f"{key} is {show(value)}; allowed: true or false")
    return value


def _count(settings: Mapping[str, object], key: str) -> int | None:
    value = settings.get(key)
    if value is not None and (type(value) is not int or value < 1):
        raise ModelError(f"{key} is {show(value)}; allowed: a whole number from 1")
    return value


def _pools(settings: Mapping[str, object]) -> tuple[PoolName, ...]:
    mode = settings.get("pooling_mode")
    if mode is None:
        for flag in _OTHER_POOLS:
            if _flag(settings, flag, False):
                raise ModelError(f"{flag}: not implemented; allowed: {', '.join(_POOLS)}")
        names = tuple(name for flag, (_, name) in _POOLS.items() if _flag(settings, flag, False))
        return names or ("mean",)
    known = dict(_POOLS.values())
    modes = [str(m) for m in (mode if isinstance(mode, list) else [mode])]
    if not modes or not all(m in known for m in modes):
        raise ModelError(f"pooling_mode is {show(mode)}; allowed: {', '.join(known)}")
    return tuple(known[m] for m in modes)


def _length(lengths: Mapping[str, object], folder: Path) -> int | None:
    found = _count(lengths, "max_seq_length")
    if found is None and (folder / "tokenizer_config.json").is_file():
        # Where it is not written, the tokenizer's own limit counts (1e30 stands for none).
        value = _object(folder / "tokenizer_config.json").get("model_max_length")
        found = value if type(value) is int and 0 < value < 2**31 else None
    return found


def _prompts(settings: Mapping[str, object]) -> dict[str, str]:
    found = settings.get("prompts")
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(
        isinstance(text, str | None) for text in found.values()
    ):
        raise ModelError(f"prompts is {show(found)}; allowed: names with their texts")
    return {name: text or "" for name, text in found.items()}


def _default_prompt(settings: Mapping[str, object], prompts: Mapping[str, str]) -> str:
    name = settings.get("default_prompt_name")
    if name is None:
        return ""
    if not isinstance(name, str) or name not in prompts:
        allowed = ", ".join(prompts) or "none, for there are no prompts"
        raise ModelError(f"default_prompt_name is {show(name)}; allowed: {allowed}")
    return prompts[name]


def _similarity(settings: Mapping[str, object]) -> SimilarityName:
    name = settings.get("similarity_fn_name") or "cosine"
    for known in get_args(SimilarityName):
        if name == known or (name == "dot_product" and known == "dot"):
            return known  # type: ignore[no-any-return]
    allowed = ", ".join(get_args(SimilarityName))
    raise ModelError(f"similarity_fn_name is {show(name)}; allowed: {allowed}")


def _normalize(path: Path) -> Literal["normalize"]:
    if (path / "config.json").is_file():
        _check_names(_object(path / "config.json"), path)
    return "normalize"


def _check_names(settings: Mapping[str, object], path: Path) -> None:
    for key in ("module_input_name", "module_output_name"):
        value = settings.get(key)
        if value not in (None, "sentence_embedding"):
            raise ModelError(f"{path.name}: {key} {show(value)}; allowed: sentence_embedding")


def _dense(path: Path) -> Dense:
    settings = _object(path / "config.json")
    _check_names(settings, path)
    if _flag(settings, "use_residual", False):
        raise ModelError(f"{path.name}: use_residual is true; allowed: false")
    named = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    short = named.rsplit(".", 1)[-1]
    found = next((known for known in get_args(Activation) if known == short), None)
    if found is None or not named.startswith("torch.nn."):
        allowed = ", ".join(get_args(Activation))
        raise ModelError(f"{path.name}: activation_function {show(named)}; allowed: {allowed}")
    if not (path / "model.safetensors").is_file():
        raise ModelError(
            f"{path.name}: no model.safetensors; pickled weights are not loaded; fix: save the "
            "model anew with safetensors"
        )
    tensors = map_safetensors(path / "model.safetensors")
    weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
    shape = (_count(settings, "out_features"), _count(settings, "in_features"))
    biased = _flag(settings, "bias", True)
    if weight is None or weight.shape != shape:
        got = "missing" if weight is None else f"of shape {weight.shape}"
        raise ModelError(f"{path.name}: linear.weight is {got}; config.json asks for {shape}")
    if biased != (bias is not None) or (bias is not None and bias.shape != shape[:1]):
        got = "missing" if bias is None else f"of shape {bias.shape}"
        raise ModelError(f"{path.name}: linear.bias is {got}; config.json says bias {biased}")
    return Dense(weight=weight, bias=bias, activation=found)


# --- writing ------------------------------------------------------------------------------------


def write_sentence_settings(folder: Path, settings: SentenceSettings, *, width: int) -> None:
    """Put sentence-transformers' files into a model folder that has none, in the spelling of 2.x.

    Args:
        folder: a model folder.
        settings: how its texts become vectors; poolings are laid side by side in the library's own
            order.
        width: the encoder's hidden size.

    Raises:
        OSError: a file cannot be written.
    """
    modules = ["Transformer", "Pooling"]
    modules += ["Dense" if isinstance(step, Dense) else "Normalize" for step in settings.steps]
    places = ["", *(f"{number}_{kind}" for number, kind in enumerate(modules) if number)]
    kinds = [f"sentence_transformers.models.{kind}" for kind in modules]
    _write_json(
        folder / MODULES,
        [
            {"idx": number, "name": str(number), "path": place, "type": kind}
            for number, (place, kind) in enumerate(zip(places, kinds, strict=True))
        ],
    )
    pooling = {flag: name in settings.pool for flag, (_, name) in _POOLS.items()}
    made = {"word_embedding_dimension": width, **pooling}
    made["include_prompt"] = settings.include_prompt
    _write_json(folder / places[1] / "config.json", made)
    for place, step in zip(places[2:], settings.steps, strict=True):
        if isinstance(step, Dense):
            _write_dense(folder / place, step)
        else:
            (folder / place).mkdir(exist_ok=True)
    if settings.max_tokens is not None or settings.lower_case:
        length = {"max_seq_length": settings.max_tokens, "do_lower_case": settings.lower_case}
        _write_json(folder / _LENGTHS[0], length)
    default = [name for name, text in settings.prompts.items() if text == settings.default_prompt]
    _write_json(
        folder / _SETTINGS,
        {
            "prompts": dict(settings.prompts),
            "default_prompt_name": default[0] if settings.default_prompt else None,
            "similarity_fn_name": settings.similarity,
            "truncate_dim": settings.truncate_dim,
        },
    )


def _write_dense(folder: Path, step: Dense) -> None:
    kind = "linear" if step.activation == "Identity" else "activation"
    outputs, inputs = step.weight.shape
    _write_json(
        folder / "config.json",
        {
            "in_features": inputs,
            "out_features": outputs,
            "bias": step.bias is not None,
            "activation_function": f"torch.nn.modules.{kind}.{step.activation}",
        },
    )
    bias = {} if step.bias is None else {"linear.bias": step.bias}
    write_float32(folder / "model.safetensors", {"linear.weight": step.weight, **bias})
    sync(folder / "model.safetensors")


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
    sync(path)
