"""Products of the layers' matrices by enrobe-native, where that is quicker than torch: float32 on a
CPU with AMX. A row is rounded to 24 bits of its largest number, and all sums are exact
(docs/native.md), so results are as close to the exact ones as torch's, at any number of threads.

Legend: T rows, I inputs, O outputs, all those of some matrices together.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from enrobe.nn.kernels import kernels_for

# Fewer rows are not worth packing the weights for; of more, a sum is not sure to fit 32 bits.
_ROWS = range(96, 32_769)


def project(x_TI: Tensor, *modules: nn.Module) -> tuple[Tensor, ...]:
    """What each module makes of the same rows. Shapes: (T, I) -> (T, O) each."""
    linear = [module for module in modules if type(module) is nn.Linear]
    if len(linear) < len(modules) or not _fit(x_TI, linear):
        return tuple(module(x_TI) for module in modules)
    weights = [module.weight for module in linear]
    bias_O = torch.cat([module.bias for module in linear])
    y_TO = _Product.apply(x_TI, bias_O, *weights)  # type: ignore[no-untyped-call]
    return torch.split(y_TO, [len(weight) for weight in weights], dim=1)


def _fit(x: Tensor, modules: list[nn.Linear]) -> bool:
    kernels = kernels_for(x)
    widest = max(x.shape[1], sum(len(module.weight) for module in modules))
    return (
        kernels is not None
        and kernels.has_products()
        and len(x) in _ROWS
        and widest <= _ROWS[-1]
        and all(module.weight.dtype == torch.float32 for module in modules)
    )


class _Product(Function):
    """Rows times matrices side by side, plus a bias.

    The matrices are packed at each call: they change with each update.
    """

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, bias_O: Tensor, *weights: Tensor) -> Tensor:
        from enrobe_native import Product

        y_TO = x_TI.new_empty(len(x_TI), len(bias_O))
        ctx.product = Product(
            x_TI.contiguous().numpy(),
            [weight.numpy() for weight in weights],
            bias_O.numpy(),
            y_TO.numpy(),
            for_x=ctx.needs_input_grad[0],
            threads=torch.get_num_threads(),
        )
        ctx.shapes = x_TI.shape, [len(weight) for weight in weights]
        return y_TO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        (rows, inputs), sizes = ctx.shapes
        for_x, for_bias, *for_weights = ctx.needs_input_grad
        x_grad_TI = y_grad_TO.new_empty(rows, inputs) if for_x else None
        grad_OI = bias_grad_1O = None
        if for_bias or any(for_weights):
            grad_OI = y_grad_TO.new_empty(sum(sizes), inputs)
            bias_grad_1O = y_grad_TO.new_empty(1, sum(sizes))
        ctx.product.backward(
            y_grad_TO.contiguous().numpy(),
            *(x if x is None else x.numpy() for x in (x_grad_TI, grad_OI, bias_grad_1O)),
        )
        if grad_OI is None or bias_grad_1O is None:
            return (x_grad_TI, None, *(None for _ in sizes))
        return x_grad_TI, bias_grad_1O[0], *torch.split(grad_OI, sizes)
