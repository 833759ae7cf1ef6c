"""LoRA: a matrix learns a product of two thin ones beside it, and stays as it is.

    LoRA   Hu et al. 2022, arXiv:2106.09685: y = x W + b + (alpha / rank) * dropout(x) A B, with A
           drawn (Kaiming uniform, as PEFT has it) and B zero, so that training starts from the
           checkpoint

Adapters are written as PEFT reads them, under the names that the family's published checkpoints
have.

Legend: T tokens, I inputs, O outputs, R rank.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import safetensors.numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enrobe.atomic import new_folder
from enrobe.config import EncoderConfig, HeadConfig
from enrobe.dialects import DIALECTS, checkpoint_names, role
from enrobe.errors import CallError, nearest, show
from enrobe.nn.encoder import Encoder
from enrobe.nn.heads import Model
from enrobe.nn.products import by_matrix
from enrobe.train.state import save_arrays
from enrobe.train.work import model_arrays

TARGETS = ("query", "key", "value", "output", "up", "down")
_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_TASKS = {"sequence": "SEQ_CLS", "tag": "TOKEN_CLS", "answer": "QUESTION_ANS"}


@dataclass(frozen=True, kw_only=True)
class LoraTable:
    """Which matrices of every layer learn how thin a product.

    Raises:
        CallError: a value is not allowed.
    """

    rank: int = 8
    alpha: int | float = 16
    # the product counts alpha / rank times
    dropout: float = 0.0
    # of what goes into it
    targets: tuple[str, ...] = ("query", "value")
    # of query, key, value, output (attention's), up, down (feed-forward's)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise CallError(f"rank is {show(self.rank)}; allowed: 1 or more")
        if not 0 < self.alpha < math.inf:
            raise CallError(f"alpha is {show(self.alpha)}; allowed: above 0")
        if not 0 <= self.dropout < 1:
            raise CallError(f"dropout is {show(self.dropout)}; allowed: from 0 up to 1")
        for name in self.targets:
            if name not in TARGETS:
                hint = nearest(name, TARGETS)
                allowed = ", ".join(TARGETS)
                raise CallError(f"targets has {show(name)}; allowed: {allowed}{hint}")
        if not self.targets:
            raise CallError("targets is empty; allowed: one or more")


class LoraLinear(nn.Linear):
    """A linear layer whose matrix stands still while a thin product beside it is learned."""

    lora_a: nn.Parameter
    lora_b: nn.Parameter

    @classmethod
    def around(cls, linear: nn.Linear, table: LoraTable) -> Self:
        """One with this layer's own matrix and bias, which it shares."""
        with torch.device("meta"):
            made = cls(linear.in_features, linear.out_features)
        assert linear.bias is not None
        made.weight, made.bias = linear.weight, linear.bias
        made.lora_a = nn.Parameter(torch.empty(table.rank, linear.in_features))
        made.lora_b = nn.Parameter(torch.zeros(linear.out_features, table.rank))
        nn.init.kaiming_uniform_(made.lora_a, a=math.sqrt(5))
        made.scale, made.dropout = table.alpha / table.rank, table.dropout
        return made

    scale = 1.0
    dropout = 0.0

    def forward(self, x_TI: Tensor) -> Tensor:
        """Shapes: (T, I) -> (T, O)."""
        thin_TR = F.linear(F.dropout(x_TI, self.dropout, self.training), self.lora_a)
        return by_matrix(x_TI, self) + self.scale * F.linear(thin_TR, self.lora_b)

    @property
    def merged(self) -> Tensor:
        """The one matrix that does the same. Shapes: (O, I)."""
        return self.weight + self.scale * (self.lora_b @ self.lora_a)


def adapt(model: Encoder, table: LoraTable) -> None:
    """Put thin products beside the layers' matrices, from torch's generator; all else stands still.

    Heads are trained as ever.
    """
    for name, parameter in model.named_parameters():
        if name.startswith(("embeddings.", "layers.")):
            parameter.requires_grad_(False)
    for layer in model.layers:
        for target in table.targets:
            setattr(layer, target, LoraLinear.around(getattr(layer, target), table))


@torch.no_grad()
def merged_arrays(model: Model) -> dict[str, Any]:
    """A model's tensors with the products added to their matrices, as if it had been trained so."""
    arrays = {n: a for n, a in model_arrays(model).items() if not n.endswith(("lora_a", "lora_b"))}
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            arrays[f"{name}.weight"] = module.merged.cpu().numpy()
    return arrays


def write_adapter(
    folder: Path,
    model: Model,
    table: LoraTable,
    *,
    heads: Mapping[str, HeadConfig],
    base: str,
) -> None:
    """Write what was learned as PEFT reads it.

    A single head is a part of it; several are not, as transformers knows no such model: the adapter
    is then one of the encoder.

    Args:
        folder: a new one.
        model: one that `adapt` was told of.
        table: as it was told.
        heads: the model's, but for those that training alone needs.
        base: the name or the folder of the checkpoint that the products stand beside.
    """
    name, head = next(iter(heads.items())) if len(heads) == 1 else ("", None)
    arrays = model_arrays(model)
    stored = {theirs: arrays[ours] for ours, theirs in _names(model, head).items()}
    modules: list[str] = []
    if head is not None:
        own = f"head.{role(head.kind)}."
        prefix = DIALECTS[model.config.family].prefix
        for ours, theirs in checkpoint_names(model.config, head):
            if ours.startswith(own):
                stored[f"base_model.model.{theirs}"] = arrays[ours.replace(own, f"heads.{name}.")]
                modules.append(theirs.removeprefix(prefix).split(".")[0])
    settings = {
        "peft_type": "LORA",
        "task_type": _TASKS[role(head.kind)] if head is not None else "FEATURE_EXTRACTION",
        "base_model_name_or_path": base,
        "r": table.rank,
        "lora_alpha": table.alpha,
        "lora_dropout": table.dropout,
        "target_modules": _pattern(model.config, table),
        "modules_to_save": list(dict.fromkeys(modules)) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    with new_folder(folder) as work:
        save_arrays(work / _WEIGHTS, stored)
        (work / _CONFIG).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def read_adapter(folder: Path, model: Model, heads: Mapping[str, HeadConfig]) -> dict[str, Tensor]:
    """The thin matrices that `write_adapter` wrote of such a model, by our names."""
    head = next(iter(heads.values())) if len(heads) == 1 else None
    stored = safetensors.numpy.load_file(folder / _WEIGHTS)
    return {ours: torch.tensor(stored[theirs]) for ours, theirs in _names(model, head).items()}


def _names(model: Model, head: HeadConfig | None) -> dict[str, str]:
    """The thin matrices of a model: our names to PEFT's."""
    theirs = dict(checkpoint_names(model.config, head))
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            stem = "base_model.model." + theirs[f"{name}.weight"].removesuffix(".weight")
            found[f"{name}.lora_a"] = f"{stem}.lora_A.weight"
            found[f"{name}.lora_b"] = f"{stem}.lora_B.weight"
    return found


def _pattern(config: EncoderConfig, table: LoraTable) -> str:
    """A regular expression of the names of the adapted modules, as PEFT matches them.

    The end of a name would not do: BERT calls two matrices of a layer output.dense.
    """
    layer = dict(DIALECTS[config.family].layer)
    names = [layer[f"layers.{{i}}.{target}.weight"] for target in table.targets]
    either = "|".join(
        re.escape(name.removesuffix(".weight")).replace(r"\{i\}", r"\d+") for name in names
    )
    return rf"(.*\.)?({either})"
