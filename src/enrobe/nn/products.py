"""Products of the layers' matrices by enrobe-native, where that is quicker than torch: float32 on a
CPU with AMX. A row is rounded to 24 bits of its largest number, and all sums are exact
(docs/native.md), so results are as close to the exact ones as torch's, at any number of threads.
Where torch is told that less will do (`torch.set_float32_matmul_precision`), it is 16 bits.

Legend: T rows, I inputs, O outputs, all those of some matrices together.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from enrobe.nn.kernels import kernels_for

# Fewer rows are not worth packing the weights for; of more, a sum is not sure to fit 32 bits.
_ROWS = range(96, 32_769)


def project(x_TI: Tensor, *modules: nn.Module) -> tuple[Tensor, ...]:
    """What each module makes of the same rows. Shapes: (T, I) -> (T, O) each."""
    if not _fit(x_TI, modules):
        return tuple(module(x_TI) for module in modules)
    return _product(x_TI, modules, gelu=False)


def project_gelu(x_TI: Tensor, module: nn.Module) -> Tensor:
    """GELU of what a module makes of rows. Shapes: (T, I) -> (T, O)."""
    if not _fit(x_TI, [module]):
        return F.gelu(module(x_TI))
    return _product(x_TI, [module], gelu=True)[0]


def _fit(x: Tensor, modules: Sequence[nn.Module]) -> bool:
    # What is put in a layer's place, as LoRA does, has a forward of its own.
    linear = [module for module in modules if type(module) is nn.Linear]
    kernels = kernels_for(x)
    return (
        len(linear) == len(modules)
        and kernels is not None
        and kernels.has_products()
        and len(x) in _ROWS
        and max(x.shape[1], sum(len(module.weight) for module in linear)) <= _ROWS[-1]
        and all(module.weight.dtype == torch.float32 for module in linear)
    )


def _product(x_TI: Tensor, modules: Sequence[nn.Module], *, gelu: bool) -> tuple[Tensor, ...]:
    weights = [module.weight for module in modules]
    biases = [module.bias for module in modules]
    found: tuple[Tensor, ...] = _Product.apply(x_TI, gelu, *weights, *biases)  # type: ignore[no-untyped-call]
    return found


class _Product(Function):
    """Rows times matrices side by side, plus a bias, and with `gelu` GELU of that.

    The matrices are packed at each call: they change with each update.
    """

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, gelu: bool, *parameters: Tensor) -> tuple[Tensor, ...]:
        from enrobe_native import Product

        half = len(parameters) // 2
        sizes = [len(weight) for weight in parameters[:half]]
        y_TO = x_TI.new_empty(len(x_TI), sum(sizes))
        out_TO = torch.empty_like(y_TO) if gelu else y_TO
        ctx.product = Product(
            x_TI.contiguous().numpy(),
            [
                (weight.numpy(), bias.numpy())
                for weight, bias in zip(parameters[:half], parameters[half:], strict=True)
            ],
            y_TO.numpy(),
            activated=out_TO.numpy() if gelu else None,
            parts=3 if torch.get_float32_matmul_precision() == "highest" else 2,
            for_x=ctx.needs_input_grad[0],
            threads=torch.get_num_threads(),
        )
        ctx.save_for_backward(*([y_TO] if gelu else []))
        ctx.shapes = x_TI.shape, sizes
        return torch.split(out_TO, sizes, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *out_grads: Tensor) -> tuple[Tensor | None, ...]:
        (rows, inputs), sizes = ctx.shapes
        for_x, _, *for_parameters = ctx.needs_input_grad
        grad_TO = _side_by_side(out_grads)
        x_grad_TI = grad_TO.new_empty(rows, inputs) if for_x else None
        grad_OI = bias_grad_1O = None
        if any(for_parameters):
            grad_OI = grad_TO.new_empty(sum(sizes), inputs)
            bias_grad_1O = grad_TO.new_empty(1, sum(sizes))
        before = [y_TO.numpy() for y_TO in ctx.saved_tensors]
        ctx.product.backward(
            grad_TO.numpy(),
            before[0] if before else None,
            *(x if x is None else x.numpy() for x in (x_grad_TI, grad_OI, bias_grad_1O)),
        )
        if grad_OI is None or bias_grad_1O is None:
            return (x_grad_TI, None, *(None for _ in for_parameters))
        grads = [*torch.split(grad_OI, sizes), *torch.split(bias_grad_1O[0], sizes)]
        return (x_grad_TI, None, *grads)


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Parts (T, O) as one; without a copy where they are next to each other in memory already."""
    first, wide = parts[0], sum(part.shape[1] for part in parts)
    place = first.data_ptr()
    for part in parts:
        if part.data_ptr() != place or part.stride() != (wide, 1):
            return torch.cat(list(parts), dim=1)
        place += 4 * part.shape[1]
    return first.as_strided((len(first), wide), (wide, 1))
