"""Attention within the rows of a flat batch: no padding, no mask.

Rows are sorted by length once a batch, so that rows of equal length lie side by side: each group is
a view of the flat tokens that goes through the plain fused attention (Vaswani et al. 2017). On a
CUDA device in half precision one kernel takes all rows at once (FlashAttention-2, Dao 2023).

Legend: T tokens, B rows, H hidden, N heads, D head size, P positions that ask (queries).
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, pairwise
from types import ModuleType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from enrobe.nn.dropout import draw_seed, has_own_masks, keep_mask
from enrobe.nn.kernels import kernels_for

Ids = npt.NDArray[np.int64]
# Tokens by which rows of one block may differ in length, or by an eighth.
_NEAR = 16
# Runs of like rows, for each of which a GPU is quick to be given its work.
_FEW = 4


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

    @cached_property
    def buckets(self) -> "tuple[_Bucket, ...]":
        """The rows in which somebody asks, those of like length together, the longest first."""
        rows, of_rows, of_keys = (np.array(column) for column in zip(*self.blocks, strict=True))
        queries, keys = np.repeat(of_rows, rows), np.repeat(of_keys, rows)
        asked, known = np.cumsum(queries) - queries, np.cumsum(keys) - keys
        found = []
        stop = len(keys)
        while stop:
            longest = keys[stop - 1]
            like = longest - max(_NEAR, longest // 8)
            start = int(np.searchsorted(keys[:stop], like))
            if queries[start:stop].any():
                part = slice(start, stop)
                bucket = _Bucket.of_rows(
                    queries[part], keys[part], int(asked[start]), int(known[start])
                )
                found.append(bucket.to(self.restore.device))
            stop = start
        return tuple(found)


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
    kernels = kernels_for(query_PH)
    if kernels is not None and not spans.kernel:
        own_PH: Tensor = _Own.apply(kernels, query_PH, key_TH, value_TH, spans, heads, dropout)  # type: ignore[no-untyped-call]
        return own_PH
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
    elif dropout > 0 and has_own_masks(query_PND):
        mixed_PND = _Dropping.apply(query_PND, key_TND, value_TND, spans.buckets, dropout)  # type: ignore[no-untyped-call]
        assert isinstance(mixed_PND, Tensor)
    elif query_PND.is_cuda and len(spans.blocks) > _FEW and not torch.compiler.is_compiling():
        mixed_PND = _padded(query_PND, key_TND, value_TND, spans.buckets, dropout)
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


def _padded(
    query_PND: Tensor,
    key_TND: Tensor,
    value_TND: Tensor,
    buckets: "tuple[_Bucket, ...]",
    dropout: float,
) -> Tensor:
    """The same as `_grouped`, rows of like length padded to a block.

    A batch of short rows has almost as many lengths as rows, and on a GPU the number of operators
    is what takes the time.
    """
    mixed = []
    for bucket in reversed(buckets):
        query_BNQD, key_BNKD, value_BNKD = (
            x.index_select(0, places).view(bucket.rows, -1, *x.shape[1:]).transpose(1, 2)
            for x, places in (
                (query_PND, bucket.asked),
                (key_TND, bucket.known),
                (value_TND, bucket.known),
            )
        )
        mixed_BNQD = F.scaled_dot_product_attention(
            query_BNQD,
            key_BNKD,
            value_BNKD,
            attn_mask=(bucket.beyond == 0)[:, None],
            dropout_p=dropout,
        )
        mixed.append(mixed_BNQD.transpose(1, 2).flatten(0, 1).index_select(0, bucket.asked_back))
    return torch.cat(mixed)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Bucket:
    """Neighbouring rows of like length as a block: R rows, Q queries and K keys of the longest.

    Shapes: asked (R * Q,) and known (R * K,), the position that stands at each place of the block,
    any of them beyond a row's end; asked_back and known_back, the place of each position; beyond
    (R, 1, K), -inf there, else 0; within (R * Q, 1), 0 there, else 1.
    """

    rows: int
    queries: slice
    keys: slice
    # positions of its rows
    asked: Tensor
    known: Tensor
    asked_back: Tensor
    known_back: Tensor
    beyond: Tensor
    within: Tensor

    @classmethod
    def of_rows(cls, queries: Ids, keys: Ids, asked_from: int, known_from: int) -> Self:
        """Rows with so many queries and keys, the first ones at these positions."""
        asked, asked_back, within = _block(queries, asked_from)
        known, known_back, inside = _block(keys, known_from)
        beyond = torch.zeros(len(keys), 1, int(keys.max()))
        beyond[~inside[:, None]] = -torch.inf
        return cls(
            rows=len(keys),
            queries=slice(asked_from, asked_from + int(queries.sum())),
            keys=slice(known_from, known_from + int(keys.sum())),
            asked=asked,
            known=known,
            asked_back=asked_back,
            known_back=known_back,
            beyond=beyond,
            within=within.view(-1, 1).float(),
        )

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        tensors: dict[str, Any] = {
            name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)
        }
        return replace(self, **tensors)

    @property
    def pairs(self) -> int:
        """Pairs of places."""
        return len(self.asked) * self.beyond.shape[2]


def _block(lengths: Ids, start: int) -> tuple[Tensor, Tensor, Tensor]:
    """What stands where in a block of rows; see `_Bucket`; and which places are rows' own."""
    places = np.arange(lengths.max())
    inside = places < lengths[:, None]
    firsts = np.cumsum(lengths) - lengths + start
    positions = np.where(inside, firsts[:, None] + places, start)
    back = np.flatnonzero(inside)
    return torch.from_numpy(positions.ravel()), torch.from_numpy(back), torch.from_numpy(inside)


class _Own(Function):
    """The same by enrobe-native, a head of a row at a time; dropout's masks are drawn again.

    Shapes: as `attend`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        kernels: ModuleType,
        query_PH: Tensor,
        key_TH: Tensor,
        value_TH: Tensor,
        spans: Spans,
        heads: int,
        dropout: float,
    ) -> Tensor:
        seed = draw_seed(dropout)
        how = (
            spans.query_offsets.numpy(),
            spans.key_offsets.numpy(),
            heads,
            dropout,
            seed,
        )
        mixed_PH = query_PH.new_empty(query_PH.shape)
        log_sums_NP = query_PH.new_empty(heads, len(query_PH))
        kernels.attend(
            *(x.numpy() for x in (query_PH, key_TH, value_TH)),
            *how,
            mixed_PH.numpy(),
            log_sums_NP.numpy(),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(query_PH, key_TH, value_TH, mixed_PH, log_sums_NP)
        ctx.kernels, ctx.how = kernels, how
        return mixed_PH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PH: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, mixed_PH, log_sums_NP = ctx.saved_tensors
        grads = _grads(*inputs)
        ctx.kernels.attend_back(
            *(x.numpy() for x in inputs),
            *ctx.how,
            mixed_PH.numpy(),
            log_sums_NP.numpy(),
            grad_PH.contiguous().numpy(),
            *(x.numpy() for x in grads),
            torch.get_num_threads(),
        )
        return (None, *grads, None, None, None)


def _grads(query_PH: Tensor, key_TH: Tensor, value_TH: Tensor) -> list[Tensor]:
    """Room for gradients, side by side where they are of one product, as `_Product` wants them."""
    hidden = query_PH.shape[1]
    if len(query_PH) == len(key_TH):
        return list(torch.split(query_PH.new_empty(len(query_PH), 3 * hidden), hidden, dim=1))
    sides = torch.split(key_TH.new_empty(len(key_TH), 2 * hidden), hidden, dim=1)
    return [query_PH.new_empty(query_PH.shape), *sides]


class _Dropping(Function):
    """The same with dropout on a CPU, its gradient by hand.

    A batch of short rows has almost as many lengths as rows, and then the number of operators is
    what takes the time: so rows of like length are padded to a block, here and nowhere else. No
    share of attention goes to a place beyond a row's end, and no gradient comes from one.

    Legend, beside the module's: G heads of all rows of a block, Q queries and K keys of a row.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_PND: Tensor,
        key_TND: Tensor,
        value_TND: Tensor,
        buckets: tuple[_Bucket, ...],
        dropout: float,
    ) -> Tensor:
        _, heads, size = query_PND.shape
        scaled_NPD = (query_PND * size**-0.5).transpose(0, 1).contiguous()
        key_NTD, value_NTD = (x.transpose(0, 1).contiguous() for x in (key_TND, value_TND))
        pairs = heads * sum(bucket.pairs for bucket in buckets)
        masks = keep_mask(query_PND, dropout, (pairs,))
        mixed_NPD = torch.empty_like(scaled_NPD)
        kept: list[Tensor] = []
        at = 0
        for bucket in buckets:
            query_GQD = _pick(scaled_NPD, bucket.asked, bucket.rows)
            key_GKD, value_GKD = (_pick(x, bucket.known, bucket.rows) for x in (key_NTD, value_NTD))
            score_GQK = torch.bmm(query_GQD, key_GKD.transpose(1, 2))
            score_GQK.view(heads, bucket.rows, *score_GQK.shape[1:]).add_(bucket.beyond)
            share_GQK = torch.softmax(score_GQK, -1)
            mask_GQK = masks[at : at + share_GQK.numel()].view_as(share_GQK)
            at += share_GQK.numel()
            mixed_GQD = torch.bmm(share_GQK * mask_GQK, value_GKD)
            mixed_NPD[:, bucket.queries] = _back(mixed_GQD, bucket.asked_back, heads)
            kept += [query_GQD, key_GKD, value_GKD, share_GQK, mask_GQK]
        ctx.save_for_backward(*kept)
        ctx.buckets, ctx.keys = buckets, len(key_TND)
        return mixed_NPD.transpose(0, 1).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PND: Tensor) -> tuple[Tensor | None, ...]:
        _, heads, size = grad_PND.shape
        grad_NPD = grad_PND.transpose(0, 1).contiguous()
        query_NPD = torch.empty_like(grad_NPD)
        key_NTD, value_NTD = grad_NPD.new_zeros(2, heads, ctx.keys, size)
        kept = iter(ctx.saved_tensors)
        for bucket in ctx.buckets:
            query_GQD, key_GKD, value_GKD, share_GQK, mask_GQK = islice(kept, 5)
            picked = grad_NPD.index_select(1, bucket.asked).mul_(bucket.within)
            grad_GQD = picked.view(heads * bucket.rows, -1, size)
            values = torch.bmm((share_GQK * mask_GQK).transpose(1, 2), grad_GQD)
            value_NTD[:, bucket.keys] = _back(values, bucket.known_back, heads)
            share_grad = torch.bmm(grad_GQD, value_GKD.transpose(1, 2)).mul_(mask_GQK)
            score_grad = torch._softmax_backward_data(share_grad, share_GQK, -1, share_GQK.dtype)
            queries = torch.bmm(score_grad, key_GKD)
            query_NPD[:, bucket.queries] = _back(queries, bucket.asked_back, heads)
            keys = torch.bmm(score_grad.transpose(1, 2), query_GQD)
            key_NTD[:, bucket.keys] = _back(keys, bucket.known_back, heads)
        query_NPD *= size**-0.5
        grads = (x.transpose(0, 1) for x in (query_NPD, key_NTD, value_NTD))
        return (*grads, None, None)


def _pick(x_NPD: Tensor, positions: Tensor, rows: int) -> Tensor:
    """Shapes: (N, P, D), (R * Q,) -> (N * R, Q, D)."""
    heads, _, size = x_NPD.shape
    return x_NPD.index_select(1, positions).view(heads * rows, -1, size)


def _back(x_GQD: Tensor, places: Tensor, heads: int) -> Tensor:
    """Shapes: (N * R, Q, D), (p,) -> (N, p, D)."""
    return x_GQD.view(heads, -1, x_GQD.shape[-1]).index_select(1, places)
