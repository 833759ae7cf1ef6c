"""Products by oneDNN against torch's own; where they are taken."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from enrobe.nn import products
from enrobe.nn.products import project, project_gelu
from enrobe.train.lora import LoraLinear, LoraTable

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="needs a torch with oneDNN"
)


@pytest.fixture(autouse=True)
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of products that oneDNN was given, on whatever processor."""
    monkeypatch.setattr(products, "_onednn_is_quicker", lambda: True)
    monkeypatch.setattr(products, "_LEAST", 0)
    monkeypatch.setattr(products, "_kernels_of", lambda *_: None)
    seen: list[tuple[int, ...]] = []
    plain = products.onednn_product

    def noted(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        seen.append((*x.shape, len(weight)))
        return plain(x, weight, bias)

    monkeypatch.setattr(products, "onednn_product", noted)
    return seen


@pytest.mark.parametrize("rows", [1, 7, 33, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_products_and_their_gradients_are_those_of_float64(
    rows: int, bias: bool, chosen: list[tuple[int, ...]]
) -> None:
    print("seed", rows)
    torch.manual_seed(rows)
    one, other = nn.Linear(56, 100, bias=bias), nn.Linear(56, 31, bias=bias)
    x = torch.randn(rows, 56, requires_grad=True)
    exact_x = x.detach().double().requires_grad_()
    exact = [nn.Linear(56, n, bias=bias, dtype=torch.float64) for n in (100, 31)]
    for copy, of in zip(exact, (one, other), strict=True):
        copy.load_state_dict(of.state_dict())
    grads = [torch.randn(rows, n) for n in (100, 31)]
    found = (project_gelu(x, one), *project(x, other))
    wanted = (nn.functional.gelu(exact[0](exact_x)), exact[1](exact_x))
    torch.autograd.backward(found, grads)
    torch.autograd.backward(wanted, [grad.double() for grad in grads])
    pairs = [*zip(found, wanted, strict=True), (x.grad, exact_x.grad)]
    for ours, theirs in zip((one, other), exact, strict=True):
        names = [name for name, _ in ours.named_parameters()]
        pairs += [(ours.get_parameter(n).grad, theirs.get_parameter(n).grad) for n in names]
    for a, b in pairs:
        assert a is not None and b is not None
        largest = float(b.detach().abs().max())
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5 * largest)
    assert len(chosen) == 6


def test_only_the_gradients_that_are_wanted(chosen: list[tuple[int, ...]]) -> None:
    linear = nn.Linear(8, 4).requires_grad_(False)
    x = torch.randn(3, 8, requires_grad=True)
    project(x, linear)[0].sum().backward()
    assert x.grad is not None and linear.weight.grad is None and len(chosen) == 2
    linear.requires_grad_(True)
    project(x.detach(), linear)[0].sum().backward()
    assert linear.weight.grad is not None and len(chosen) == 4


def test_what_it_is_not_for_goes_to_torch(chosen: list[tuple[int, ...]]) -> None:
    linear, x = nn.Linear(8, 4), torch.randn(3, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        project(x, linear)
    project(x.double(), nn.Linear(8, 4, dtype=torch.float64))
    torch.set_float32_matmul_precision("high")
    try:
        project(x, linear)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert not chosen
    project(x, linear)
    # Its own matrix, not what it adds to that.
    project(x, LoraLinear.around(linear, LoraTable()))
    assert chosen == [(3, 8, 4)] * 2


def test_small_products_are_not_worth_its_code(
    chosen: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_LEAST", 100)
    linear = nn.Linear(8, 4)
    project(torch.randn(3, 8), linear)
    assert not chosen
    project(torch.randn(4, 8), linear)
    assert chosen == [(4, 8, 4)]


@pytest.mark.parametrize(
    ("quickest", "slow_mkl", "taken"),
    [("amx", False, True), ("avx512", True, True), ("avx512", False, False), ("avx2", True, False)],
)
def test_where_our_own_are_taken(
    quickest: str, slow_mkl: bool, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: slow_mkl)
    kernels: Any = SimpleNamespace(kernels=lambda: [quickest, "plain"])
    assert products._own_are_quicker.__wrapped__(kernels) is taken
