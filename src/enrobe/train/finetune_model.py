"""A checkpoint's encoder with the heads that a recipe asks for; what stays, what moves how far."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from enrobe import checkpoint
from enrobe.config import EncoderConfig, HeadConfig
from enrobe.data.splits import TaskData
from enrobe.dialects import DIALECTS, role
from enrobe.errors import CallError
from enrobe.evaluate.heads import check_metric
from enrobe.nn.heads import Model
from enrobe.settings import head_of_role
from enrobe.train.finetune_data import all_labels, tasks_of_heads
from enrobe.train.finetune_recipe import MASKED, FinetuneRecipe, FinetuneTable
from enrobe.train.lora import adapt

# Learned log-variances start at 0 and have far to go: so many times the rate of the rest.
_WEIGHTING_RATE = 100.0


def new_heads(
    recipe: FinetuneRecipe, tasks: Mapping[str, TaskData], read: checkpoint.Checkpoint
) -> dict[str, HeadConfig]:
    """A head for every task, or for several that share it, as the family publishes them."""
    settings = dict(checkpoint.read_settings(read.folder))
    settings.pop("problem_type", None)
    heads = {}
    for name, own in tasks_of_heads(recipe).items():
        kind = tasks[own[0]].task.kind
        labels = ("LABEL_0",) if kind == "regress" else all_labels(own, tasks)
        # Where a head is made for "no answer", it needs a threshold.
        some_without = any(row.label == () for task in own for row in tasks[task].train)
        given = {**settings, "id2label": {str(n): label for n, label in enumerate(labels)}}
        head = head_of_role(DIALECTS[read.config.family], role(kind), given)
        try:
            metrics = [check_metric(kind, labels, tasks[task].task.metric) for task in own]
        except CallError as error:
            raise CallError(f"tasks.{own[0]}: {error}") from None
        heads[name] = replace(
            head,
            kind=kind,
            text=tasks[own[0]].task.text,
            metric=metrics[0],
            limit=recipe.train.limit,
            no_answer=0.5 if kind == "answer" and some_without else None,
        )
    return heads


def new_model(
    recipe: FinetuneRecipe, read: checkpoint.Checkpoint, heads: Mapping[str, HeadConfig]
) -> Model:
    """The checkpoint's encoder with these heads; one that it has already goes on as it is.

    With masked LM its head is one more, that of the checkpoint where there is one.
    """
    torch.manual_seed(recipe.seed)
    known = read.heads
    given = next((name for name, head in known.items() if head.kind == "mlm"), None)
    if recipe.masked_lm is not None:
        heads = {**heads, MASKED: known[given] if given else HeadConfig(kind="mlm")}
    model = Model(read.config, heads)
    values: dict[str, Tensor] = {}
    for name in model.state_dict():
        source = name
        if name.startswith(f"heads.{MASKED}."):
            source = name.replace(MASKED, str(given), 1)
        elif name.startswith("heads."):
            _, head, part = name.split(".", 2)
            again = head in known and (known[head].kind, known[head].labels) == (
                heads[head].kind,
                heads[head].labels,
            )
            if not again:
                # BERT's pooler was pretrained as the first layer of its sequence head.
                pretrained = part.startswith("dense.") and _has_pooler(read.config, heads[head])
                source = part.replace("dense.", "pooler.") if pretrained else ""
        if source in read.tensors:
            values[name] = torch.tensor(read.tensors[source])
    model.load_state_dict(values, strict=False)
    if recipe.train.weighting == "uncertainty":
        # No weight of a matrix: a bias does not decay.
        count = len(recipe.tasks) + (recipe.masked_lm is not None)
        model.add_module("uncertainty", _LogVariances(count))
    for name in frozen(model, recipe.train.freeze):
        model.get_parameter(name).requires_grad_(False)
    if recipe.lora is not None:
        adapt(model, recipe.lora)
    return model


class _LogVariances(nn.Module):
    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(tasks))


def _has_pooler(config: EncoderConfig, head: HeadConfig) -> bool:
    table = dict(DIALECTS[config.family].heads.get("sequence", ()))
    return head.is_sequence and table.get("dense.weight", "").endswith("pooler.dense.weight")


def frozen(model: Model, freeze: str | int | None) -> list[str]:
    """Names of the parameters that stay as they are.

    Raises:
        CallError: more layers than there are.
    """
    count = model.config.num_layers
    if freeze is None:
        return []
    layers = {"embeddings": 0, "encoder": count}.get(str(freeze), freeze)
    assert isinstance(layers, int)
    if layers > count:
        raise CallError(f"train.freeze is {freeze}; the model has {count} layers")
    starts = ("embeddings.", *(f"layers.{n}." for n in range(layers)))
    return [name for name, _ in model.named_parameters() if name.startswith(starts)]


def unfreeze(model: Model, still: Sequence[str], *, stage: int) -> None:
    """Train the heads and the `stage` highest layers; the embeddings come after the lowest one.

    still: names of parameters that are never trained.
    """
    first = model.config.num_layers - stage
    for name, parameter in model.named_parameters():
        place = -1 if name.startswith("embeddings.") else None
        if name.startswith("layers."):
            place = int(name.split(".")[1])
        parameter.requires_grad_((place is None or place >= first) and name not in still)


def lr_scales(model: Model, table: FinetuneTable) -> dict[str, float]:
    """What each parameter's rate is multiplied by: heads 1, the last layer `layer_decay`, ..."""
    top = model.config.num_layers
    scales = {}
    for name, _ in model.named_parameters():
        if name.startswith("layers."):
            scales[name] = table.layer_decay ** (top - int(name.split(".")[1]))
        elif name.startswith("embeddings."):
            scales[name] = table.layer_decay ** (top + 1)
        elif name.startswith("uncertainty."):
            scales[name] = _WEIGHTING_RATE
    return scales
