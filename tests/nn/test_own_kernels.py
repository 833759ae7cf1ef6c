"""enrobe-native's kernels for training: against float64, and themselves in other threads."""

from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from enrobe.config import EncoderConfig
from enrobe.nn import attention, encoder, products
from enrobe.nn.attention import attend, plan
from enrobe.nn.dropout import Dropout
from enrobe.nn.encoder import Layer
from enrobe.nn.kernels import kernels_for
from enrobe.nn.norms import add_norm
from enrobe.nn.products import project
from enrobe.nn.whole_layer import whole_layer
from enrobe.text.ragged import row_offsets

native: Any = pytest.importorskip("enrobe_native", reason="enrobe-native is not installed")
needs_kernels = pytest.mark.skipif(
    kernels_for(torch.zeros(1)) is None, reason="needs a processor with more than plain kernels"
)


@pytest.fixture(autouse=True)
def products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where torch's are as quick."""
    monkeypatch.setattr(products, "_own_are_quicker", lambda _: True)


def error(found: Tensor, wanted: Tensor) -> float:
    """Of all numbers together, as a share of their size."""
    return float((found - wanted).detach().norm() / wanted.detach().norm())


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("parts", [3, 2])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(1, 5, 3), (17, 56, 100), (97, 384, 65), (430, 384, 1536), (200, 1536, 129), (33, 64, 64)],
)
def test_products_are_near(rows: int, inputs: int, outputs: int, parts: int, gelu: bool) -> None:
    """In three bytes as near as float32's; in two nearer than TF32's, whose error is 2e-4."""
    made = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, inputs, generator=made)
    weight = torch.randn(outputs, inputs, generator=made) * inputs**-0.5
    bias, y_grad = torch.randn(outputs, generator=made), torch.randn(rows, outputs, generator=made)
    y_grad *= 1e-6 * torch.rand(rows, 1, generator=made)
    at = outputs // 2
    found = []
    for threads in (1, 2, 5):
        y, x_grad, grad = torch.empty(rows, outputs), torch.empty_like(x), torch.empty_like(weight)
        bias_grad, activated = torch.empty(1, outputs), torch.empty_like(y)
        size = native.product_memory(rows, inputs, outputs, parts, True)
        memory = torch.empty(size, dtype=torch.uint8).numpy()
        native.product(
            x.numpy(),
            [
                (weight[:at].numpy(), bias[:at].numpy()),
                (weight[at:].numpy(), bias[at:].numpy()),
            ],
            memory,
            y.numpy(),
            activated=activated.numpy() if gelu else None,
            parts=parts,
            for_x=True,
            threads=threads,
        )
        native.product_back(
            memory,
            inputs,
            parts,
            True,
            y_grad.numpy(),
            y.numpy() if gelu else None,
            x_grad.numpy(),
            grad.numpy(),
            bias_grad.numpy(),
            threads,
        )
        found.append((activated if gelu else y, x_grad, grad, bias_grad[0]))

    def usual(kind: torch.dtype) -> list[Tensor]:
        leaves = [one.to(kind).requires_grad_() for one in (x, weight, bias)]
        y = nn.functional.linear(*leaves)
        y = nn.functional.gelu(y) if gelu else y
        return [y, *torch.autograd.grad(y, leaves, y_grad.to(kind))]

    bar = 4e-7 if parts == 3 else 1.5e-4
    for one, exact, torchs in zip(
        found[0], usual(torch.float64), usual(torch.float32), strict=True
    ):
        assert error(one, exact) <= 2 * error(torchs, exact) + bar
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@needs_kernels
def test_what_is_not_finite_stays_so() -> None:
    x = torch.ones(100, 64)
    x[3, 5] = torch.inf
    x[7, 5] = torch.nan
    layer = nn.Linear(64, 64)
    (y,) = project(x, layer)
    assert not y[3].isfinite().any() and not y[7].isfinite().any()
    assert y[[0, 99]].isfinite().all()


@needs_kernels
def test_modules_side_by_side_learn_as_alone() -> None:
    torch.manual_seed(0)
    modules = [nn.Linear(64, size) for size in (32, 64, 7)]
    modules[1].requires_grad_(False)
    x = torch.randn(120, 64, requires_grad=True)
    found = project(x, *modules)
    sum((y * y).sum() for y in found).backward()  # type: ignore[union-attr]
    x_grad, x.grad = x.grad, None
    grads = [parameter.grad for module in modules for parameter in module.parameters()]
    for module in modules:
        module.zero_grad()
    wanted = [module(x) for module in modules]
    sum((y * y).sum() for y in wanted).backward()
    assert x_grad is not None and x.grad is not None
    assert all(error(a, b) < 1e-6 for a, b in zip(found, wanted, strict=True))
    assert error(x_grad, x.grad) < 1e-6
    assert modules[1].weight.grad is None
    parameters = [parameter for module in modules for parameter in module.parameters()]
    for grad, parameter in zip(grads, parameters, strict=True):
        assert (grad is None) == (parameter.grad is None)
        assert grad is None or parameter.grad is None or error(grad, parameter.grad) < 1e-6


LENGTHS = [5, 1, 70, 17, 300, 33]


def inputs(asking: list[int] | None, hidden: int) -> tuple[Any, list[Tensor], Tensor]:
    torch.manual_seed(1)
    laid = plan(
        row_offsets(LENGTHS), None if asking is None else np.array(asking), torch.device("cpu")
    )
    asked = sum(LENGTHS) if asking is None else len(asking)
    # Strided, as they come out of one product.
    query = torch.randn(asked, 3 * hidden)[:, hidden : 2 * hidden]
    key, value = torch.randn(sum(LENGTHS), 2 * hidden).split(hidden, dim=1)
    return laid.last, [query, key, value], torch.randn(asked, hidden)


@needs_kernels
@pytest.mark.parametrize("asking", [None, [0, 5, 6, 100, 101, 392]])
@pytest.mark.parametrize(("hidden", "heads"), [(64, 2), (56, 7), (128, 2)])
def test_attention_and_its_gradient(asking: list[int] | None, hidden: int, heads: int) -> None:
    spans, given, grad = inputs(asking, hidden)
    found = []
    for kind in (torch.float32, torch.float64):
        # float64 takes torch's way.
        leaves = [x.to(kind).requires_grad_() for x in given]
        out = attend(*leaves, spans, heads=heads, dropout=0.0)
        found.append([out, *torch.autograd.grad(out, leaves, grad.to(kind))])
    assert all(error(a, b) < 1e-6 for a, b in zip(*found, strict=True))


@needs_kernels
def test_attentions_dropout() -> None:
    """Its gradient is that of differences, its masks do not hang on threads, its share is right."""
    spans, given, grad = inputs(None, 64)
    leaves = [x.clone().requires_grad_() for x in given]
    along = [torch.randn_like(x) for x in given]

    def value(step: float) -> Tensor:
        torch.manual_seed(5)
        moved = [x + step * move for x, move in zip(leaves, along, strict=True)]
        return attend(*moved, spans, heads=2, dropout=0.3)

    out = value(0)
    grads = torch.autograd.grad(out, leaves, grad)
    slope = sum((a * b).sum().double() for a, b in zip(grads, along, strict=True))
    ahead, behind = ((value(step).detach().double() * grad).sum() for step in (5e-3, -5e-3))
    assert float((ahead - behind) / 0.01) == pytest.approx(float(slope), rel=1e-3)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(value(0), out)
    finally:
        torch.set_num_threads(before)

    zeros, ones = torch.zeros(sum(LENGTHS), 32), torch.ones(sum(LENGTHS), 32)
    torch.manual_seed(0)
    shares = [attend(zeros, zeros, ones, spans, heads=2, dropout=0.1) for _ in range(50)]
    # Of about 10 million draws.
    assert float(torch.stack(shares).mean()) == pytest.approx(1, abs=3e-3)


@needs_kernels
def test_a_seed_has_its_own_masks() -> None:
    spans, given, _ = inputs(None, 64)
    found = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        found.append(attention.attend(*given, spans, heads=2, dropout=0.5))
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


@needs_kernels
@pytest.mark.parametrize(("rows", "hidden"), [(1, 3), (130, 56), (1100, 384)])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_sums_and_their_norms(rows: int, hidden: int, share: float) -> None:
    torch.manual_seed(rows)
    norm, dropout = nn.LayerNorm(hidden), Dropout(share)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    residual, x, grad = (torch.randn(rows, hidden) for _ in range(3))
    # Of ones and zeros, the sum before the norm is the mask.
    torch.manual_seed(7)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    given = [one.numpy() for one in (torch.ones_like(x), torch.zeros_like(x))]
    terms = [one.detach().numpy() for one in (norm.weight, norm.bias)]
    mask, out, sums = torch.empty_like(x), torch.empty_like(x), torch.empty(rows, 2)
    written = [one.numpy() for one in (mask, out, sums)]
    native.add_norm(*given, *terms, norm.eps, share, seed, *written, 1)
    mask = mask.double()
    assert float(mask.mean()) == pytest.approx(1, abs=4 / (rows * hidden) ** 0.5)
    found = []
    for kind in (torch.float32, torch.float64):
        leaves = [
            one.detach().to(kind).requires_grad_() for one in (residual, x, norm.weight, norm.bias)
        ]
        if kind == torch.float32:
            norm.weight, norm.bias = (nn.Parameter(one.detach()) for one in leaves[2:])
            torch.manual_seed(7)
            out = add_norm(leaves[0], leaves[1], norm, dropout)
            leaves[2:] = norm.weight, norm.bias
        else:
            total = leaves[0] + leaves[1] * mask
            out = nn.functional.layer_norm(total, (hidden,), leaves[2], leaves[3], norm.eps)
        found.append([out, *torch.autograd.grad(out, leaves, grad.to(kind))])
    assert all(error(a, b) < 2e-6 for a, b in zip(*found, strict=True))


def config(hidden: int, heads: int, share: float) -> EncoderConfig:
    return EncoderConfig(
        family="bert",
        vocab_size=10,
        hidden_size=hidden,
        num_layers=1,
        num_heads=heads,
        intermediate_size=2 * hidden + 8,
        hidden_dropout=share,
        attention_dropout=share / 2,
        max_positions=512,
    )


@needs_kernels
@pytest.mark.parametrize(("hidden", "heads"), [(64, 2), (56, 7), (128, 4)])
@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize(
    "frozen",
    [(), ("hidden",), ("up.weight", "key.bias", "norm.weight"), ("*.*",), ("hidden", "up.*")],
)
def test_a_whole_layer_is_its_steps(
    hidden: int, heads: int, share: float, frozen: tuple[str, ...], monkeypatch: Any
) -> None:
    torch.manual_seed(0)
    layer = Layer(config(hidden, heads, share))
    for name, parameter in layer.named_parameters():
        nn.init.normal_(parameter, std=0.2)
        parameter.requires_grad_(not any(fnmatchcase(name, pattern) for pattern in frozen))
    spans = plan(row_offsets(LENGTHS), None, torch.device("cpu")).every
    x, grad = torch.randn(2, sum(LENGTHS), hidden)
    found = []
    for way in ("whole", "steps", "checkpoint"):
        with monkeypatch.context() as patched:
            if way == "steps":
                patched.setattr(encoder, "whole_layer", lambda *_: None)
            else:
                assert whole_layer(layer, x, spans) is not None
            leaf = x.clone().requires_grad_("hidden" not in frozen)
            torch.manual_seed(5)
            if way == "checkpoint":
                out = checkpoint(layer, leaf, spans, use_reentrant=False)
            else:
                out = layer(leaf, spans)
            after = torch.get_rng_state()
            out.backward(grad)
        grads = [leaf.grad, *(parameter.grad for parameter in layer.parameters())]
        layer.zero_grad()
        found.append([out.detach(), after, *grads])
    for name, whole, *others in zip(
        ["out", "state", "hidden", *(name for name, _ in layer.named_parameters())],
        *found,
        strict=True,
    ):
        assert (whole is None) == any(fnmatchcase(name, pattern) for pattern in frozen)
        assert all(one is whole or torch.equal(one, whole) for one in others), name


@needs_kernels
def test_a_layer_goes_step_by_step_where_it_must() -> None:
    layer, device = Layer(config(64, 2, 0.1)), torch.device("cpu")
    offsets = row_offsets(LENGTHS)
    every, x = plan(offsets, None, device).every, torch.randn(sum(LENGTHS), 64)
    assert whole_layer(layer, x, plan(offsets, np.array([3]), device).last) is None
    assert whole_layer(layer, x[:9], plan(np.array([0, 9]), None, device).every) is None
    with torch.no_grad():
        assert whole_layer(layer, x, every) is None
    layer.dropout.share = 1.0
    assert whole_layer(layer, x, every) is None
    layer.dropout.share = 0.0
    layer.down = nn.Sequential(layer.down)  # type: ignore[assignment]
    assert whole_layer(layer, x, every) is None


def test_what_does_not_fit_is_refused() -> None:
    x = np.ones((4, 8), np.float32)
    offsets, wrong = np.array([0, 4], np.int32), np.array([0, 3], np.int32)
    sums, out = np.ones((2, 4), np.float32), np.ones((4, 8), np.float32)
    for queries, keys, heads, share, what in (
        (wrong, offsets, 2, 0.0, "query_offsets must go"),
        (offsets, wrong, 2, 0.0, "key_offsets must go"),
        (np.array([0, 5, 4], np.int32), offsets, 2, 0.0, "must ascend"),
        (offsets, np.array([0, 2, 4], np.int32), 2, 0.0, "other numbers of texts"),
        (np.array([0, 4, 4], np.int32), np.array([0, 4, 4], np.int32), 2, 0.0, "no keys"),
        (offsets, offsets, 3, 0.0, "multiple of heads"),
        (offsets, offsets, 0, 0.0, "multiple of heads"),
        (offsets, offsets, 2, 1.0, "share must be"),
        (offsets, offsets, 2, float("nan"), "share must be"),
        (offsets, offsets, 4, 0.0, "log_sums must be"),
    ):
        with pytest.raises(ValueError, match=what):
            native.attend(x, x, x, queries, keys, heads, share, 0, out, sums, 1)
    flat = np.ones(8, np.float32)
    with pytest.raises(ValueError, match="one size"):
        native.adamw([(flat, flat[:4], flat, flat)], [(0.1, 1.0, 1.0)], 0.9, 0.99, 1e-6, 1.0, 1)
    with pytest.raises(ValueError, match="as many hows"):
        native.adamw([(flat, flat, flat, flat)], [], 0.9, 0.99, 1e-6, 1.0, 1)
    bias = np.ones(3, np.float32)
    room = torch.empty(native.product_memory(4, 8, 3, 3, False), dtype=torch.uint8).numpy()
    y = np.ones((4, 3), np.float32)
    for matrix, memory, y_, activated, parts, what in (
        (x[:2], room, y, None, 3, "not as long"),
        (x[:3], room, out, None, 3, "y must be 4 x 3"),
        (np.ones((3, 7), np.float32), room, y, None, 3, "a matrix must be"),
        (x[:3], room, y, out, 3, "activated must be"),
        (x[:3], room, y, None, 4, "parts must be"),
        (x[:3], room[:-1], y, None, 3, "memory is too short"),
        (x[:3], np.zeros(99_999, np.uint8)[1:], y, None, 3, "memory must start"),
    ):
        with pytest.raises(ValueError, match=what):
            native.product(x, [(matrix, bias)], memory, y_, activated, parts, False, 1)
    native.product(x, [(x[:3], bias)], room, y, None, 3, False, 1)
    for memory, y_grad, before, grads, what in (
        (room, y, None, (out, None, None), "not to be wanted"),
        (room, y, None, (None, x[:3].copy(), None), "go together"),
        (room, y, x, (None, None, None), "y must be"),
        (room[:64], y, None, (None, None, None), "memory is too short"),
    ):
        with pytest.raises(ValueError, match=what):
            native.product_back(memory, 8, 3, False, y_grad, before, *grads, 1)
    room = torch.empty(native.layer_memory(4, 8, 16, 2, 3, True), dtype=torch.uint8).numpy()
    sizes = [64, 8] * 4 + [8, 8, 128, 16, 128, 8, 8, 8]
    weights = [np.ones(size, np.float32) for size in sizes]
    how = (offsets, 2, 0.0, 0.0, (0, 0, 0), 1e-5, 3)
    native.layer(x, weights, room, out, *how, True, 1)
    grads_ = np.ones(sum(sizes), np.float32)
    native.layer_back(out, weights, room, x.copy(), grads_, *how, True, 1)
    for given, memory, out_, how_, what in (
        (weights[:15], room, out, how, "16 weights"),
        ([*weights[:3], *weights[4:], weights[3][:0]], room, out, how, "another size"),
        (weights, room[:-1], out, how, "memory is too short"),
        (weights, room, y, how, "out must be"),
        (weights, room, out, (wrong, *how[1:]), "query_offsets must go"),
        (weights, room, out, (offsets, 3, *how[2:]), "multiple of heads"),
        (weights, room, out, (offsets, 2, 0.0, 1.0, *how[4:]), "share must be"),
        (weights, room, out, (*how[:-1], 1), "parts must be"),
    ):
        with pytest.raises(ValueError, match=what):
            native.layer(x, given, memory, out_, *how_, True, 1)
    for x_grad, flat_, for_x, what in (
        (out.copy(), None, False, "not to be wanted"),
        (y, None, True, "x_grad must be"),
        (None, grads_[:-1], True, "grads is of another size"),
    ):
        with pytest.raises(ValueError, match=what):
            native.layer_back(out, weights, room, x_grad, flat_, *how, for_x, 1)
