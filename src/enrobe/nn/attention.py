"""Attention within the rows of a flat batch: no padding, no mask.

Rows are sorted by length once a batch, so that rows of equal length lie side by side: each group is
a view of the flat tokens that goes through the plain fused attention (Vaswani et al. 2017). On a
CUDA device in half precision one kernel takes all rows at once (FlashAttention-2, Dao 2023).

Legend: T tokens, B rows, H hidden, N heads, D head size, P positions that ask (queries).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from enrobe.nn.dropout import has_own_masks, keep_mask

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Spans:
    """Which positions ask, and which they attend to: those of their own row.

    Shapes: picks (P,), restore (P,), query_offsets and key_offsets (B+1,) int32, all on the
    batch's device; the rows are in sorted order.
    """

    picks: Tensor | None
    # sorted tokens that ask; None: every token does
    restore: Tensor
    # gathers the answers back into the caller's order
    blocks: tuple[tuple[int, int, int], ...]
    # runs of like rows: (rows, queries a row, keys a row)
    query_offsets: Tensor
    key_offsets: Tensor
    most_queries: int
    most_keys: int
    # of one row
    kernel: bool
    # whether the device has the kernel for all rows at once: Ampere or later


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """How one batch runs through the layers.

    Shapes: order (T,), the caller's position of each sorted token; places (T,), its place within
    its row, from 0.
    """

    order: Tensor
    places: Tensor
    every: Spans
    last: Spans
    # the last layer's: `every`, or confined to the positions that are read after it


def plan(offsets: Ids, at: Ids | None, device: torch.device) -> Plan:
    """Sort the rows of a batch by length and lay out who attends to whom.

    Args:
        offsets: row offsets (B+1,), on the host: sizes of views are host numbers, and a tensor on a
            device would make every batch wait for it. No row is empty.
        at: positions (P,) in the caller's flat batch at which alone the last layer is wanted.
        device: where the tensors of the plan are put.
    """
    # Inside a compiled region offsets can be corrupted without a sign (pytorch issue 189895):
    # compile the layers, each for itself, and leave this outside.
    assert not torch.compiler.is_compiling()
    lengths = np.diff(offsets)
    assert offsets[0] == 0 and len(lengths) > 0 and (lengths > 0).all()
    asking = lengths
    if at is not None:
        asking = np.bincount(np.searchsorted(offsets, at, side="right") - 1, minlength=len(lengths))
    # Within a length, by the number of queries: the last layer's groups are then contiguous too.
    rows = np.lexsort((asking, lengths))
    starts, lengths, asking = offsets[:-1][rows], lengths[rows], asking[rows]
    places = np.arange(offsets[-1]) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    order = np.repeat(starts, lengths) + places
    inverse = _inverse(order)
    every = last = _spans(None, inverse, lengths, lengths, device)
    if at is not None:
        picks = inverse[at]
        ascending = np.argsort(picks)
        last = _spans(picks[ascending], _inverse(ascending), asking, lengths, device)
    return Plan(
        order=torch.from_numpy(order).to(device),
        places=torch.from_numpy(places).to(device),
        every=every,
        last=last,
    )


def _spans(picks: Ids | None, restore: Ids, queries: Ids, keys: Ids, device: torch.device) -> Spans:
    changes = np.flatnonzero(np.diff(queries) | np.diff(keys)) + 1
    bounds = [0, *changes.tolist(), len(keys)]
    return Spans(
        picks=None if picks is None else torch.from_numpy(picks).to(device),
        restore=torch.from_numpy(restore).to(device),
        blocks=tuple(
            (stop - start, int(queries[start]), int(keys[start]))
            for start, stop in pairwise(bounds)
        ),
        query_offsets=_offsets(queries, device),
        key_offsets=_offsets(keys, device),
        most_queries=int(queries.max()),
        most_keys=int(keys.max()),
        # Asked here: torch.compile cannot look into the question.
        kernel=_has_kernel(device),
    )


def _has_kernel(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _offsets(lengths: Ids, device: torch.device) -> Tensor:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return torch.from_numpy(offsets).to(device)


def _inverse(permutation: npt.NDArray[np.int64]) -> Ids:
    inverse = np.empty_like(permutation)
    inverse[permutation] = np.arange(len(permutation))
    return inverse


def attend(
    query_PH: Tensor, key_TH: Tensor, value_TH: Tensor, spans: Spans, *, heads: int, dropout: float
) -> Tensor:
    """Scaled dot-product attention of each position over its own row (Vaswani et al. 2017).

    Tokens are in the plan's order. `dropout` is the share of attention weights that is dropped.

    Shapes: query (P, H), key and value (T, H) -> (P, H).
    """
    query_PND, key_TND, value_TND = (
        x.view(len(x), heads, -1) for x in (query_PH, key_TH, value_TH)
    )
    if dropout == 0 and spans.kernel and _fits_varlen(query_PND):
        # Imported here: the module is of use on CUDA alone.
        from torch.nn.attention.varlen import varlen_attn

        mixed_PND = varlen_attn(
            query_PND,
            key_TND,
            value_TND,
            spans.query_offsets,
            spans.key_offsets,
            spans.most_queries,
            spans.most_keys,
        )
        assert isinstance(mixed_PND, Tensor)
    else:
        mixed_PND = _grouped(query_PND, key_TND, value_TND, spans.blocks, dropout)
    return mixed_PND.flatten(1)


def _fits_varlen(query_PND: Tensor) -> bool:
    """The kernel's limits: half precision, whole vectors of 8 numbers."""
    size = query_PND.shape[-1]
    return (
        query_PND.is_cuda
        and query_PND.dtype in (torch.float16, torch.bfloat16)
        and size % 8 == 0
        and size <= 256
    )


def _grouped(
    query_PND: Tensor,
    key_TND: Tensor,
    value_TND: Tensor,
    blocks: tuple[tuple[int, int, int], ...],
    dropout: float,
) -> Tensor:
    if dropout > 0 and has_own_masks(query_PND):
        dropped_PND: Tensor = _Dropping.apply(  # type: ignore[no-untyped-call]
            query_PND, key_TND, value_TND, blocks, dropout
        )
        return dropped_PND
    query_sizes = [rows * queries for rows, queries, _ in blocks]
    key_sizes = [rows * keys for rows, _, keys in blocks]
    parts = zip(
        blocks,
        torch.split(query_PND, query_sizes),
        torch.split(key_TND, key_sizes),
        torch.split(value_TND, key_sizes),
        strict=True,
    )
    mixed = []
    for (rows, queries, _), query, key, value in parts:
        if queries == 0:  # nobody asks in these rows
            continue
        query_BNPD, key_BNTD, value_BNTD = (
            x.view(rows, -1, *x.shape[1:]).transpose(1, 2) for x in (query, key, value)
        )
        mixed_BNPD = F.scaled_dot_product_attention(
            query_BNPD, key_BNTD, value_BNTD, dropout_p=dropout
        )
        mixed.append(mixed_BNPD.transpose(1, 2).flatten(0, 1))
    return torch.cat(mixed)


class _Dropping(Function):
    """The same with dropout on a CPU, its gradient by hand.

    A batch of short rows has almost as many blocks as rows, and then it is the number of operators
    that takes the time: 5 a block and 7 for its gradient, where autograd has 35. The masks of all
    blocks are drawn at once.

    Legend, beside the module's: G heads of all rows of a block, K keys of a row.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_PND: Tensor,
        key_TND: Tensor,
        value_TND: Tensor,
        blocks: tuple[tuple[int, int, int], ...],
        dropout: float,
    ) -> Tensor:
        heads, size = query_PND.shape[1:]
        scaled_PND = query_PND * size**-0.5
        pairs = sum(rows * queries * keys for rows, queries, keys in blocks)
        masks = keep_mask(query_PND, dropout, (heads * pairs,))
        mixed_PND = torch.empty_like(scaled_PND)
        shares: list[Tensor] = []
        at = 0
        for rows, asked, known in _places(blocks):
            query_GPD, key_GKD, value_GKD = (
                _by_head(x, rows) for x in (scaled_PND[asked], key_TND[known], value_TND[known])
            )
            share_GPK = torch.softmax(torch.bmm(query_GPD, key_GKD.transpose(1, 2)), -1)
            mask_GPK = masks[at : at + share_GPK.numel()].view_as(share_GPK)
            at += share_GPK.numel()
            _put(mixed_PND[asked], torch.bmm(share_GPK * mask_GPK, value_GKD), rows)
            shares.append(share_GPK)
        ctx.save_for_backward(scaled_PND, key_TND, value_TND, masks, *shares)
        ctx.blocks = blocks
        return mixed_PND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PND: Tensor) -> tuple[Tensor | None, ...]:
        scaled_PND, key_TND, value_TND, masks, *shares = ctx.saved_tensors
        query_grad = torch.empty_like(scaled_PND)
        key_grad, value_grad = torch.zeros_like(key_TND), torch.zeros_like(value_TND)
        grad_PND = grad_PND.contiguous()
        at = 0
        places = _places(ctx.blocks)
        for (rows, asked, known), share_GPK in zip(places, shares, strict=True):
            query_GPD, key_GKD, value_GKD, grad_GPD = (
                _by_head(x, rows)
                for x in (scaled_PND[asked], key_TND[known], value_TND[known], grad_PND[asked])
            )
            mask_GPK = masks[at : at + share_GPK.numel()].view_as(share_GPK)
            at += share_GPK.numel()
            dropped_GKP = (share_GPK * mask_GPK).transpose(1, 2)
            _put(value_grad[known], torch.bmm(dropped_GKP, grad_GPD), rows)
            share_grad = torch.bmm(grad_GPD, value_GKD.transpose(1, 2)).mul_(mask_GPK)
            score_grad = torch._softmax_backward_data(share_grad, share_GPK, -1, share_GPK.dtype)
            _put(query_grad[asked], torch.bmm(score_grad, key_GKD), rows)
            _put(key_grad[known], torch.bmm(score_grad.transpose(1, 2), query_GPD), rows)
        query_grad *= query_grad.shape[-1] ** -0.5
        return query_grad, key_grad, value_grad, None, None


def _places(blocks: tuple[tuple[int, int, int], ...]) -> Iterator[tuple[int, slice, slice]]:
    """Rows of each block in which somebody asks, its queries and its keys."""
    query_at = key_at = 0
    for rows, queries, keys in blocks:
        query_to, key_to = query_at + rows * queries, key_at + rows * keys
        if queries:
            yield rows, slice(query_at, query_to), slice(key_at, key_to)
        query_at, key_at = query_to, key_to


def _by_head(x_PND: Tensor, rows: int) -> Tensor:
    """Rows of equal length (rows * L, N, D) as (rows * N, L, D); of one row a view."""
    _, heads, size = x_PND.shape
    return x_PND.view(rows, -1, heads, size).transpose(1, 2).reshape(rows * heads, -1, size)


def _put(out_PND: Tensor, x_GPD: Tensor, rows: int) -> None:
    """The way back of `_by_head`, into a view."""
    _, heads, size = out_PND.shape
    rows_RPND = out_PND.view(rows, -1, heads, size)
    rows_RPND.copy_(x_GPD.view(rows, heads, -1, size).transpose(1, 2))
