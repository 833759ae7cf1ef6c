"""Products of the layers' matrices in float32 on a CPU, by what is quickest there.

With AMX that is enrobe-native: a row is rounded to 24 bits of its largest number, and all sums are
exact (docs/native.md), so results are as close to the exact ones as torch's, at any number of
threads. Where torch is told that less will do (`torch.set_float32_matmul_precision`), they are 16.
On AMD's processors with AVX-512 it is enrobe-native, too, in float32, and where that is not
installed torch's oneDNN, which torch itself leaves to other types.

Legend: T rows, I inputs, O outputs, all those of some matrices together.
"""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from enrobe.nn.kernels import is_plain_float32, kernels_for

# Fewer rows are not worth packing the weights for; of more, a sum is not sure to fit 32 bits.
_ROWS = range(96, 32_769)
# Multiplications of a product: for fewer oneDNN takes longer to make code for a new shape.
_LEAST = 2**25


def project(x_TI: Tensor, *modules: nn.Module) -> tuple[Tensor, ...]:
    """What each module makes of the same rows. Shapes: (T, I) -> (T, O) each."""
    kernels = kernels_of_products(x_TI, modules)
    if kernels is None:
        return tuple(_linear(module, x_TI) for module in modules)
    return _product(kernels, x_TI, modules, gelu=False)


def project_gelu(x_TI: Tensor, module: nn.Module) -> Tensor:
    """GELU of what a module makes of rows. Shapes: (T, I) -> (T, O)."""
    kernels = kernels_of_products(x_TI, [module])
    if kernels is None:
        return F.gelu(_linear(module, x_TI))
    return _product(kernels, x_TI, [module], gelu=True)[0]


def by_matrix(x_TI: Tensor, linear: nn.Linear) -> Tensor:
    """By a layer's matrix and bias alone, whatever its class does besides. Shapes: as `project`."""
    kernels = _kernels_of(x_TI, [linear])
    if kernels is not None:
        return _product(kernels, x_TI, [linear], gelu=False)[0]
    return _by_torch(x_TI, linear)


def kernels_of_products(x: Tensor, modules: Sequence[nn.Module]) -> ModuleType | None:
    """enrobe_native, where it can do all these products side by side and is quicker."""
    # What is put in a layer's place, as LoRA does, has a forward of its own.
    linears = [module for module in modules if type(module) is nn.Linear]
    return _kernels_of(x, linears) if len(linears) == len(modules) else None


def _kernels_of(x: Tensor, linears: Sequence[nn.Linear]) -> ModuleType | None:
    rows, inputs = x.shape
    if rows not in _ROWS or inputs > _ROWS[-1]:
        return None
    if any(linear.weight.dtype != torch.float32 for linear in linears):
        return None
    outputs = sum(linear.out_features for linear in linears)
    kernels = kernels_for(x)
    fits = outputs <= _ROWS[-1] and kernels is not None and _own_are_quicker(kernels)
    return kernels if fits else None


@cache
def _own_are_quicker(kernels: ModuleType) -> bool:
    quickest = kernels.kernels()[0]
    return quickest == "amx" or (quickest == "avx512" and _mkl_is_slow())


def bytes_of_a_number() -> int:
    """Three; two where torch is told that less will do."""
    return 3 if torch.get_float32_matmul_precision() == "highest" else 2


def _product(
    kernels: ModuleType, x_TI: Tensor, modules: Sequence[nn.Module], *, gelu: bool
) -> tuple[Tensor, ...]:
    parameters = [module.weight for module in modules] + [module.bias for module in modules]
    found: tuple[Tensor, ...] = _Product.apply(kernels, x_TI, gelu, *parameters)  # type: ignore[no-untyped-call]
    return found


class _Product(Function):
    """Rows times matrices side by side, plus a bias, and with `gelu` GELU of that.

    The matrices are packed at each call: they change with each update.
    """

    @staticmethod
    def forward(
        ctx: Any, kernels: ModuleType, x_TI: Tensor, gelu: bool, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        half = len(parameters) // 2
        sizes = [len(weight) for weight in parameters[:half]]
        rows, inputs = x_TI.shape
        outputs = sum(sizes)
        parts = bytes_of_a_number()
        for_x = ctx.needs_input_grad[1]
        # What the gradients need of rows and matrices. A tensor, so that gradient checkpointing
        # can let go of it.
        memory = x_TI.new_empty(
            kernels.product_memory(rows, inputs, outputs, parts, for_x), dtype=torch.uint8
        )
        y_TO = x_TI.new_empty(rows, outputs)
        out_TO = x_TI.new_empty(rows, outputs) if gelu else y_TO
        arrays = [parameter.numpy() for parameter in parameters]
        kernels.product(
            x_TI.contiguous().numpy(),
            list(zip(arrays[:half], arrays[half:], strict=True)),
            memory.numpy(),
            y_TO.numpy(),
            out_TO.numpy() if gelu else None,
            parts,
            for_x,
            torch.get_num_threads(),
        )
        ctx.kernels, ctx.sizes, ctx.how = kernels, sizes, (inputs, parts, for_x)
        ctx.save_for_backward(*((memory, y_TO) if gelu else (memory,)))
        return (out_TO,) if half == 1 else torch.split(out_TO, sizes, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *out_grads: Tensor) -> tuple[Tensor | None, ...]:
        memory, *before = ctx.saved_tensors
        sizes, inputs = ctx.sizes, ctx.how[0]
        _, for_x, _, *for_parameters = ctx.needs_input_grad
        grad_TO = _side_by_side(out_grads)
        x_grad_TI = grad_TO.new_empty(len(grad_TO), inputs) if for_x else None
        grad_OI = bias_grad_1O = None
        if any(for_parameters):
            grad_OI = grad_TO.new_empty(sum(sizes), inputs)
            bias_grad_1O = grad_TO.new_empty(1, sum(sizes))
        ctx.kernels.product_back(
            memory.numpy(),
            *ctx.how,
            grad_TO.numpy(),
            before[0].numpy() if before else None,
            *(x if x is None else x.numpy() for x in (x_grad_TI, grad_OI, bias_grad_1O)),
            torch.get_num_threads(),
        )
        if grad_OI is None or bias_grad_1O is None:
            return (None, x_grad_TI, None, *(None for _ in for_parameters))
        if len(sizes) == 1:
            return None, x_grad_TI, None, grad_OI, bias_grad_1O[0]
        grads = [*torch.split(grad_OI, sizes), *torch.split(bias_grad_1O[0], sizes)]
        return (None, x_grad_TI, None, *grads)


def _linear(module: nn.Module, x_TI: Tensor) -> Tensor:
    if type(module) is nn.Linear:
        return _by_torch(x_TI, module)
    result: Tensor = module(x_TI)
    return result


def _by_torch(x_TI: Tensor, linear: nn.Linear) -> Tensor:
    if not by_onednn(x_TI, linear.weight):
        return F.linear(x_TI, linear.weight, linear.bias)
    found: Tensor = _Linear.apply(x_TI, linear.weight, linear.bias)  # type: ignore[no-untyped-call]
    return found


def by_onednn(x_TI: Tensor, weight_OI: Tensor) -> bool:
    """Whether the product of these is quicker by `onednn_product`."""
    return (
        len(x_TI) * weight_OI.numel() >= _LEAST
        and is_plain_float32(x_TI)
        and is_plain_float32(weight_OI)
        and torch.get_float32_matmul_precision() == "highest"
        and _onednn_is_quicker()
    )


@cache
def _mkl_is_slow() -> bool:
    """MKL, which torch takes for float32, makes half of what AMD's AVX-512 can do."""
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and "AuthenticAMD" in _processor()
    )


@cache
def _onednn_is_quicker() -> bool:
    # What torch.compile calls: not promised, but there in every version since 2.0.
    quicker = _mkl_is_slow() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if quicker:
        # It keeps the code for 1,024 shapes, a megabyte each, and hardly a batch has another's.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    return quicker


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def product(x_TI: Tensor, weight_OI: Tensor) -> Tensor:
    """x W' by the quickest of torch's, without a gradient. Shapes: (T, I), (O, I) -> (T, O)."""
    choose = onednn_product if by_onednn(x_TI, weight_OI) else F.linear
    return choose(x_TI, weight_OI)


def onednn_product(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W' + b. Shapes: (T, I), (O, I), (O,) -> (T, O); views will do."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x_TI, weight_OI, bias_O, "none", [], "")
    return found


class _Linear(Function):
    """F.linear and its gradients."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_TI, weight_OI)
        return onednn_product(x_TI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, weight_OI = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            onednn_product(grad_TO, weight_OI.t()) if for_x else None,
            onednn_product(grad_TO.t(), x_TI.t()) if for_weight else None,
            grad_TO.sum(0) if for_bias else None,
        )


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Parts (T, O) as one; without a copy where they are next to each other in memory already."""
    first, wide = parts[0], sum(part.shape[1] for part in parts)
    place = first.data_ptr()
    for part in parts:
        if part.data_ptr() != place or part.stride() != (wide, 1):
            return torch.cat(list(parts), dim=1)
        place += 4 * part.shape[1]
    return first.as_strided((len(first), wide), (wide, 1))
