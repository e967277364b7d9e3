"""bound: the bounding box of a page's keys, and Quest's bound on the logits that it allows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.dot import dot
from rheo_kernels.types.summary import ScoringSummary, SummaryKernels
from rheo_sglang.selection.base import SUMMARIES


@triton.jit
def _fold_token(rows, key, first, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    d = tl.arange(0, BLOCK_D)
    inside = d < DIM
    row = rows + d
    wide = key.to(tl.float32)
    low = tl.load(row, mask=inside)
    high = tl.load(row + DIM, mask=inside)
    tl.store(row, tl.where(first | (wide < low.to(tl.float32)), key, low), mask=inside)
    tl.store(row + DIM, tl.where(first | (wide > high.to(tl.float32)), key, high), mask=inside)


@triton.jit
def _fold_chunk(
    rows, keys, values, held, count, DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAGE_SIZE: tl.constexpr
):
    d = tl.arange(0, BLOCK_D)
    inside = d < DIM
    wide = keys.to(tl.float32)
    low = tl.min(tl.where(held[None, :], wide, float("inf")), 1)
    high = tl.max(tl.where(held[None, :], wide, float("-inf")), 1)
    tl.store(rows + d, low.to(rows.dtype.element_ty), mask=inside)
    tl.store(rows + DIM + d, high.to(rows.dtype.element_ty), mask=inside)


@triton.jit
def _score(rows, queries, listed, heads, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    d = tl.arange(0, BLOCK_D)
    wanted = listed[:, None] & (d < DIM)[None, :]
    row = rows + d[None, :]
    low = tl.load(row, mask=wanted, other=0.0)
    high = tl.load(row + DIM, mask=wanted, other=0.0)
    query = tl.load(queries, mask=heads, other=0.0).to(tl.float32)
    logits = tl.zeros([queries.shape[0], rows.shape[0]], tl.float32)
    logits = dot(tl.maximum(query, 0.0).to(high.dtype), tl.trans(high), logits)
    return dot(tl.minimum(query, 0.0).to(low.dtype), tl.trans(low), logits)


@triton.jit
def _score_sum(rows, queries, listed, heads, scale, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    d = tl.arange(0, BLOCK_D)
    wanted = listed[:, None] & (d < DIM)[None, :]
    row = rows + d[None, :]
    low = tl.load(row, mask=wanted, other=0.0)
    high = tl.load(row + DIM, mask=wanted, other=0.0)
    query = tl.load(queries, mask=heads, other=0.0).to(tl.float32) * scale
    toward_high = tl.sum(tl.maximum(query, 0.0), 0)
    toward_low = tl.sum(tl.minimum(query, 0.0), 0)
    return tl.sum(high.to(tl.float32) * toward_high[None, :] + low.to(tl.float32) * toward_low[None, :], 1)


@SUMMARIES.register
class BoundSummary(ScoringSummary):
    """Rows ``k_min`` and ``k_max``, exact, and the largest logit that any key between them could reach.

    ``sum_d max(q_d k_min_d, q_d k_max_d)``, that is ``relu(q) . k_max + min(q, 0) . k_min`` (Quest, arXiv:2406.10774):
    linear in two vectors, so that averaging over a group sums its queries before any page is read.
    """

    name = "bound"
    rows = 2
    kernels = SummaryKernels(_fold_chunk, _score, _fold_token, _score_sum)

    def fold_chunk(self, keys: torch.Tensor, values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Least and greatest of each dimension."""
        past = torch.arange(keys.shape[3], device=keys.device) >= counts[:, None, None]
        return torch.stack(
            (keys.masked_fill(past, torch.inf).amin(3), keys.masked_fill(past, -torch.inf).amax(3)), dim=2
        )

    def fold_token(self, rows: torch.Tensor, keys: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """Extend the box by a key."""
        low, high = rows.unbind(2)
        fresh = first[None, :, None]
        return torch.stack(
            (
                torch.where(fresh, keys, torch.minimum(low, keys)),
                torch.where(fresh, keys, torch.maximum(high, keys)),
            ),
            dim=2,
        )

    def score(self, queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Quest's bound."""
        low, high = rows.to(queries.dtype).unbind(3)
        bound = torch.einsum("bhgd,hbmd->bhgm", queries.clamp(min=0), high)
        bound += torch.einsum("bhgd,hbmd->bhgm", queries.clamp(max=0), low)
        return bound
