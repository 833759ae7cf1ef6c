"""Dropout's own masks on a CPU: how much is dropped, by whose seed, and the gradient."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enrobe.nn.attention import attend, plan
from enrobe.nn.dropout import Dropout, keep_mask
from enrobe.text.ragged import row_offsets

COUNT = 200_000


@pytest.mark.parametrize("share", [1e-4, 0.1, 0.25, 0.5, 0.9])
def test_the_share_is_dropped_and_the_mean_stays(share: float) -> None:
    torch.manual_seed(7)
    mask = keep_mask(torch.empty(COUNT), share)
    kept = mask[mask > 0]
    assert len(kept.unique()) == 1 and float(kept[0]) == pytest.approx(1 / (1 - share), rel=1e-4)
    # Within four standard deviations.
    spread = 4 * (share * (1 - share) / COUNT) ** 0.5
    assert abs(1 - len(kept) / COUNT - share) < spread
    # Neighbours, which share a draw of 64 bits, do not go together.
    zero = (mask == 0).view(-1, 4).float()
    for other in (1, 2, 3):
        both = float((zero[:, 0] * zero[:, other]).mean())
        assert abs(both - share**2) < 4 * (share**2 / (COUNT / 4)) ** 0.5 + 1e-4


def test_all_or_nothing() -> None:
    x = torch.ones(5)
    assert torch.equal(keep_mask(x, 0.0), x)
    assert torch.equal(keep_mask(x, 1.0), torch.zeros(5))
    assert keep_mask(torch.empty(0, 3), 0.5).shape == (0, 3)
    assert keep_mask(x.double(), 0.5, (3, 2)).dtype == torch.float64


def test_the_generator_decides_and_threads_do_not() -> None:
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.stack([keep_mask(torch.empty(999), 0.5) for _ in range(2)])

    before = torch.get_num_threads()
    first = drawn(1)
    torch.set_num_threads(1)
    again = drawn(1)
    torch.set_num_threads(before)
    assert torch.equal(first, again) and not torch.equal(first[0], first[1])
    assert not torch.equal(first, drawn(2))


def test_the_module_is_for_training_alone() -> None:
    dropout, x = Dropout(0.5), torch.ones(400)
    assert dropout.eval()(x) is x and Dropout(0.0).train()(x) is x
    x.requires_grad_()
    out = dropout.train()(x)
    out.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, out.detach()) and (out == 0).any()


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
@settings(deadline=None, max_examples=12)
def test_the_gradient_of_attention_is_that_of_its_differences(
    lengths: list[int], data: st.DataObject
) -> None:
    tokens = sum(lengths)
    positions = st.sets(st.integers(0, tokens - 1), min_size=1).map(sorted)
    at = data.draw(st.none() | positions)
    laid = plan(
        row_offsets(lengths), None if at is None else np.array(at, np.int64), torch.device("cpu")
    )
    generator = torch.Generator().manual_seed(3)
    asking = tokens if at is None else len(at)
    inputs = [
        torch.randn(n, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        for n in (asking, tokens, tokens)
    ]

    def mixed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)
        return attend(query, key, value, laid.last, heads=2, dropout=0.3)

    assert torch.autograd.gradcheck(mixed, inputs)


@pytest.mark.parametrize("at", [None, [0, 2, 44, 45, 46, 107]])
def test_attention_that_drops_nearly_nothing_is_attention(at: list[int] | None) -> None:
    # Blocks of several lengths, of one, and rows in which nobody asks.
    lengths = [3, 40, 1, 20, 41, 3, 38]
    offsets, tokens = row_offsets(lengths), sum(lengths)
    laid = plan(offsets, None if at is None else np.array(at, np.int64), torch.device("cpu"))
    assert len(laid.last.buckets) > 1
    asking = tokens if at is None else len(at)
    found = []
    for dropout in (0.0, 1e-9):
        generator = torch.Generator().manual_seed(2)
        inputs = [
            torch.randn(n, 12, generator=generator, requires_grad=True)
            for n in (asking, tokens, tokens)
        ]
        mixed = attend(*inputs, laid.last, heads=3, dropout=dropout)
        (mixed * torch.randn(mixed.shape, generator=generator)).sum().backward()
        found.append([mixed, *(x.grad for x in inputs)])
    for one, other in zip(*found, strict=True):
        assert one is not None and other is not None
        assert torch.allclose(one, other, atol=1e-6)
