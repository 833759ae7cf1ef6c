"""Plans and attention, against attention written row by row."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from enrobe.nn import attention
from enrobe.nn.attention import Ids, Plan, attend, plan
from enrobe.text.ragged import row_offsets

pytestmark = pytest.mark.usefixtures("either_way")

CPU = torch.device("cpu")
HEADS, SIZE = 3, 8


def row_by_row(
    query: Tensor, key: Tensor, value: Tensor, queries: list[int], keys: list[int]
) -> Tensor:
    """Softmax(q k' / sqrt(size)) v, one row and one head at a time."""
    out = []
    parts = (query.split(queries), key.split(keys), value.split(keys))
    for q, k, v in zip(*parts, strict=True):
        heads = [
            torch.softmax(q[:, h] @ k[:, h].T / SIZE**0.5, dim=-1) @ v[:, h] for h in range(HEADS)
        ]
        out.append(torch.stack(heads, dim=1))
    return torch.cat(out)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], Ids | None, int]:
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    positions = st.integers(0, sum(lengths) - 1)
    at = draw(st.none() | st.sets(positions, min_size=1).map(sorted))
    return lengths, None if at is None else np.array(at, np.int64), draw(st.integers(0, 999))


@given(batches())
@settings(deadline=None, max_examples=60)
def test_attend_is_attention_within_rows(batch: tuple[list[int], Ids | None, int]) -> None:
    lengths, at, seed = batch
    print(f"seed {seed}")
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, sum(lengths), HEADS, SIZE, generator=generator)
    wanted = row_by_row(query, key, value, lengths, lengths).flatten(1)

    laid = plan(row_offsets(lengths), at, CPU)
    sorted_query, sorted_key, sorted_value = (x[laid.order].flatten(1) for x in (query, key, value))
    every = attend(sorted_query, sorted_key, sorted_value, laid.every, heads=HEADS, dropout=0.0)
    assert torch.allclose(every[laid.every.restore], wanted, atol=1e-6)
    if at is None:
        assert laid.last is laid.every and laid.every.picks is None
        return
    picks = laid.last.picks
    assert picks is not None
    last = attend(sorted_query[picks], sorted_key, sorted_value, laid.last, heads=HEADS, dropout=0)
    assert torch.allclose(last[laid.last.restore], wanted[at], atol=1e-6)


@given(batches())
@settings(deadline=None, max_examples=60)
def test_plan_sorts_rows_and_puts_them_back(batch: tuple[list[int], Ids | None, int]) -> None:
    lengths, at, _ = batch
    offsets = row_offsets(lengths)
    laid = plan(offsets, at, CPU)
    tokens = torch.arange(sum(lengths))
    assert torch.equal(tokens[laid.order][laid.every.restore], tokens)
    assert torch.equal(
        laid.places[laid.every.restore], torch.cat([torch.arange(n) for n in lengths])
    )
    assert laid.every.most_keys == laid.every.most_queries == max(lengths)
    # One block a length: equal rows are never attended to apart.
    assert [keys for _, _, keys in laid.every.blocks] == sorted(set(lengths))
    for spans in (laid.every, laid.last):
        assert len({kind[1:] for kind in spans.blocks}) == len(spans.blocks)
        rows = [row for count, *row in spans.blocks for _ in range(count)]
        assert spans.query_offsets.tolist() == row_offsets([row[0] for row in rows]).tolist()
        assert spans.key_offsets.tolist() == row_offsets([row[1] for row in rows]).tolist()
        assert spans.query_offsets.dtype == spans.key_offsets.dtype == torch.int32
    if at is not None:
        assert laid.last.picks is not None
        assert laid.order[laid.last.picks][laid.last.restore].tolist() == at.tolist()
        assert laid.last.picks.tolist() == sorted(laid.last.picks.tolist())


@pytest.mark.parametrize("offsets", [[1, 3], [0], [0, 2, 2], [0, 3, 2]])
def test_wrong_offsets_are_caught(offsets: list[int]) -> None:
    with pytest.raises(AssertionError):
        plan(np.array(offsets), None, CPU)


def test_a_plan_is_not_made_in_a_compiled_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(AssertionError):
        plan(row_offsets([2, 3]), None, CPU)


def test_dropout_drops_attention_weights() -> None:
    torch.manual_seed(5)
    laid = plan(row_offsets([50, 60]), None, CPU)
    query, key = torch.zeros(2, 110, HEADS * SIZE)
    value = torch.ones(110, HEADS * SIZE)
    mixed = attend(query, key, value, laid.every, heads=HEADS, dropout=0.25)
    # Uniform attention to ones: the mean stays, and each row and head keeps another share.
    assert abs(float(mixed.mean()) - 1.0) < 0.05
    assert float(mixed.std()) > 0.02


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Puts attention written row by row in the place of the CUDA kernel."""
    calls = []

    def kernel(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        calls.append(rest)
        query_offsets, key_offsets, _, _ = rest
        queries, keys = query_offsets.diff().tolist(), key_offsets.diff().tolist()
        return row_by_row(query, key, value, queries, keys)

    monkeypatch.setattr(attention, "_has_kernel", lambda device: True)
    monkeypatch.setattr(attention, "_fits_varlen", lambda query: True)
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", kernel)
    return calls


def ask(laid: Plan, x: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention of the picked positions, in the caller's order."""
    x = x[laid.order]
    picked = x if laid.last.picks is None else x[laid.last.picks]
    return attend(picked, x, x, laid.last, heads=HEADS, dropout=dropout)[laid.last.restore]


def test_kernel_is_told_what_the_groups_are(kernel_calls: list[tuple[Any, ...]]) -> None:
    x = torch.randn(12, HEADS * SIZE, generator=torch.Generator().manual_seed(2))
    laid = plan(row_offsets([5, 3, 3, 1]), np.array([1, 2, 9, 11]), CPU)
    by_kernel = ask(laid, x)
    query_offsets, key_offsets, most_queries, most_keys = kernel_calls.pop()
    # Rows sorted by length, then by queries: 1 token, 3 tokens, 3 tokens, 5 tokens.
    assert query_offsets.tolist() == [0, 1, 1, 2, 4] and most_queries == 2
    assert key_offsets.tolist() == [0, 1, 4, 7, 12] and most_keys == 5
    by_groups = ask(laid, x, dropout=1e-12)
    assert not kernel_calls, "the kernel knows no dropout"
    assert torch.allclose(by_kernel, by_groups, atol=1e-6)


def test_kernel_is_for_half_precision_on_cuda_alone() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert not attention._fits_varlen(torch.zeros(4, HEADS, SIZE, dtype=dtype))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kernel_on_cuda_equals_groups(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(212, HEADS * SIZE, generator=generator).to("cuda", dtype)
    laid = plan(row_offsets([5, 3, 200, 3, 1]), np.array([1, 2, 9, 100, 211]), x.device)
    by_kernel, by_groups = (x.clone().requires_grad_() for _ in range(2))
    first, second = ask(laid, by_kernel), ask(laid, by_groups, dropout=1e-12)
    first.float().square().sum().backward()
    second.float().square().sum().backward()
    assert by_kernel.grad is not None and by_groups.grad is not None
    assert torch.allclose(first, second, atol=2e-2)
    assert torch.allclose(by_kernel.grad, by_groups.grad, atol=5e-2)


@given(batches(), st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_padded_blocks_equal_groups(batch: tuple[list[int], Ids | None, int], longer: int) -> None:
    """Of rows near in length and far from it: answers and gradients."""
    lengths, at, seed = batch
    lengths = [*lengths, max(lengths) + longer]
    print(f"seed {seed}")
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(4, sum(lengths), HEADS, SIZE, generator=generator, dtype=torch.float64)
    spans = plan(row_offsets(lengths), at, CPU).last
    found = []
    for way, laid in ((attention._padded, spans.buckets), (attention._grouped, spans.blocks)):
        inputs = made[:3].clone().requires_grad_()
        query = inputs[0] if spans.picks is None else inputs[0][spans.picks]
        out = way(query, inputs[1], inputs[2], laid, 0.0)  # type: ignore[arg-type]
        (out * made[3][: len(out)]).sum().backward()
        found.append((out, inputs.grad))
    for ours, theirs in zip(*found, strict=True):
        assert ours is not None and theirs is not None
        torch.testing.assert_close(ours, theirs)
