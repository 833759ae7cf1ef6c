"""Attention within the rows of a flat batch: no padding, no mask.

Rows are sorted by length once a batch, so that rows of equal length lie side by side: each group is
a view of the flat tokens that goes through the plain fused attention (Vaswani et al. 2017). On a
CUDA device in half precision one kernel takes all rows at once (FlashAttention-2, Dao 2023).

Legend: T tokens, B rows, H hidden, N heads, D head size, P positions that ask (queries).
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

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
