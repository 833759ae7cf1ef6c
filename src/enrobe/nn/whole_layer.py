"""A layer in training as one function of enrobe-native's, where its products are quicker there.

It does what `project`, `attend` and `add_norm` do one by one. A layer of some hundred tokens takes
a few milliseconds; the way through Python and autograd between them would be a sixth of that.

Legend: T tokens, H hidden.
"""

from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from enrobe.nn.attention import Spans
from enrobe.nn.dropout import draw_seed
from enrobe.nn.products import bytes_of_a_number, kernels_of_products

if TYPE_CHECKING:
    from enrobe.nn.encoder import Layer

# Of the parameters in the gradients' memory: those of query, key and value are one product's.
_ORDER = (0, 2, 4, 1, 3, 5, *range(6, 16))


def whole_layer(layer: "Layer", hidden_TH: Tensor, spans: Spans) -> Tensor | None:
    """What a layer makes of hidden states, or None where it is to go step by step.

    Shapes: (T, H) -> (T, H).
    """
    if not torch.is_grad_enabled() or spans.picks is not None:
        return None
    matrices = [layer.query, layer.key, layer.value, layer.output, layer.up, layer.down]
    norms = [layer.attention_norm, layer.norm]
    share = layer.dropout.share if layer.dropout.training else 0.0
    kernels = kernels_of_products(hidden_TH, matrices[:3])
    if (
        kernels is None
        or share == 1
        or any(kernels_of_products(hidden_TH, [one]) is None for one in matrices[3:])
        or any(norm.weight.dtype != torch.float32 for norm in norms)
    ):
        return None
    modules = [*matrices[:4], norms[0], *matrices[4:], norms[1]]
    attention_share = layer.attention_dropout if layer.training else 0.0
    how = (layer.num_heads, attention_share, share, norms[0].eps)
    parameters = [one for module in modules for one in (module.weight, module.bias)]
    out_TH: Tensor = _Layer.apply(kernels, hidden_TH, spans, how, *parameters)  # type: ignore[no-untyped-call]
    return out_TH


class _Layer(Function):
    """Shapes: as `whole_layer`."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: ModuleType,
        hidden_TH: Tensor,
        spans: Spans,
        how: tuple[int, float, float, float],
        *parameters: Tensor,
    ) -> Tensor:
        heads, attention_share, share, eps = how
        # As `attend` and `add_norm` draw them.
        seeds = [draw_seed(dropped) for dropped in (attention_share, share, share)]
        rows, hidden = hidden_TH.shape
        sizes = (bytes_of_a_number(), ctx.needs_input_grad[1])
        wide = len(parameters[11])
        # A tensor, so that gradient checkpointing can let go of it.
        memory = hidden_TH.new_empty(
            kernels.layer_memory(rows, hidden, wide, heads, *sizes), dtype=torch.uint8
        )
        out_TH = hidden_TH.new_empty(rows, hidden)
        offsets = spans.key_offsets.numpy()
        ctx.kernels = kernels
        ctx.how = (offsets, heads, attention_share, share, seeds, eps, *sizes)
        kernels.layer(
            hidden_TH.contiguous().numpy(),
            [parameter.numpy() for parameter in parameters],
            memory.numpy(),
            out_TH.numpy(),
            *ctx.how,
            torch.get_num_threads(),
        )
        ctx.save_for_backward(memory, *parameters)
        return out_TH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TH: Tensor) -> tuple[Tensor | None, ...]:
        memory, *parameters = ctx.saved_tensors
        _, for_x, _, _, *for_parameters = ctx.needs_input_grad
        hidden_grad_TH = torch.empty_like(grad_TH, memory_format=torch.contiguous_format)
        flat = None
        if any(for_parameters):
            flat = grad_TH.new_empty(sum(parameter.numel() for parameter in parameters))
        ctx.kernels.layer_back(
            grad_TH.contiguous().numpy(),
            [parameter.numpy() for parameter in parameters],
            memory.numpy(),
            hidden_grad_TH.numpy() if for_x else None,
            None if flat is None else flat.numpy(),
            *ctx.how,
            torch.get_num_threads(),
        )
        grads: list[Tensor | None] = [None] * len(parameters)
        if flat is not None:
            parts = torch.split(flat, [parameters[place].numel() for place in _ORDER])
            for place, part in zip(_ORDER, parts, strict=True):
                grads[place] = part.view_as(parameters[place])
        return (None, hidden_grad_TH if for_x else None, None, None, *grads)
