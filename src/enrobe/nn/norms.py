"""LayerNorm(residual + dropout(x)), after each half of a layer; by enrobe-native where it is there.

Legend: T rows, H numbers of a row.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from enrobe.nn.dropout import Dropout, draw_seed
from enrobe.nn.kernels import kernels_for


def add_norm(residual_TH: Tensor, x_TH: Tensor, norm: nn.LayerNorm, dropout: Dropout) -> Tensor:
    """The norm of a sum, x with dropout. Shapes: (T, H), (T, H) -> (T, H)."""
    kernels, weight = kernels_for(x_TH), norm.weight
    if kernels is None or weight.dtype != torch.float32:
        usual: Tensor = norm(residual_TH + dropout(x_TH))
        return usual
    share = dropout.share if dropout.training else 0.0
    if share == 1:
        x_TH, share = torch.zeros_like(x_TH), 0.0
    own: Tensor = _AddNorm.apply(kernels, residual_TH, x_TH, weight, norm.bias, norm.eps, share)  # type: ignore[no-untyped-call]
    return own


class _AddNorm(Function):
    """The same by enrobe-native; dropout's mask is drawn again for the gradient.

    Shapes: as `add_norm`; weight and bias (H,).
    """

    @staticmethod
    def forward(
        ctx: Any,
        kernels: ModuleType,
        residual_TH: Tensor,
        x_TH: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        share: float,
    ) -> Tensor:
        seed = draw_seed(share)
        total_TH, out_TH = x_TH.new_empty(x_TH.shape), x_TH.new_empty(x_TH.shape)
        found_T2 = x_TH.new_empty(len(x_TH), 2)
        ctx.kernels, ctx.how = kernels, (eps, share, seed)
        kernels.add_norm(
            *(x.contiguous().numpy() for x in (x_TH, residual_TH, weight, bias)),
            *ctx.how,
            *(x.numpy() for x in (total_TH, out_TH, found_T2)),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(total_TH, found_T2, weight, bias)
        return out_TH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TH: Tensor) -> tuple[Tensor | None, ...]:
        total_TH, found_T2, weight, bias = ctx.saved_tensors
        _, share, _ = ctx.how
        residual_grad_TH = torch.empty_like(total_TH)
        x_grad_TH = torch.empty_like(total_TH) if share else residual_grad_TH
        weight_grad, bias_grad = torch.empty_like(weight), torch.empty_like(bias)
        ctx.kernels.add_norm_back(
            *(x.numpy() for x in (total_TH, found_T2, weight, bias)),
            *ctx.how,
            grad_TH.contiguous().numpy(),
            *(x.numpy() for x in (residual_grad_TH, x_grad_TH, weight_grad, bias_grad)),
            torch.get_num_threads(),
        )
        return None, residual_grad_TH, x_grad_TH, weight_grad, bias_grad, None, None
