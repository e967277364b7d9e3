"""mean: the average of a page's keys, and its logit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.dot import dot
from rheo_kernels.types.summary import ScoringSummary, SummaryKernels
from rheo_sglang.selection.base import SUMMARIES


@triton.jit
def _fold_chunk(
    rows, keys, values, held, count, DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAGE_SIZE: tl.constexpr
):
    d = tl.arange(0, BLOCK_D)
    mean = tl.sum(tl.where(held[None, :], keys.to(tl.float32), 0.0), 1) / count
    tl.store(rows + d, mean.to(rows.dtype.element_ty), mask=d < DIM)


@triton.jit
def _score(rows, queries, listed, heads, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    d = tl.arange(0, BLOCK_D)
    mean = tl.load(rows + d[None, :], mask=listed[:, None] & (d < DIM)[None, :], other=0.0)
    query = tl.load(queries, mask=heads, other=0.0)
    logits = tl.zeros([queries.shape[0], rows.shape[0]], tl.float32)
    return dot(query.to(mean.dtype), tl.trans(mean), logits)


@triton.jit
def _score_sum(rows, queries, listed, heads, scale, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    d = tl.arange(0, BLOCK_D)
    mean = tl.load(rows + d[None, :], mask=listed[:, None] & (d < DIM)[None, :], other=0.0)
    query = tl.sum(tl.load(queries, mask=heads, other=0.0).to(tl.float32) * scale, 0)
    return tl.sum(mean.to(tl.float32) * query[None, :], 1)


@SUMMARIES.register
class MeanSummary(ScoringSummary):
    """One row, the mean key, summed in float32 and rounded once: a page is folded anew for every token.

    Its score is the mean of the page's logits.
    """

    name = "mean"
    rows = 1
    kernels = SummaryKernels(_fold_chunk, _score, score_sum=_score_sum)

    def fold_chunk(self, keys: torch.Tensor, values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Mean of the keys, in float32 at least."""
        past = torch.arange(keys.shape[3], device=keys.device) >= counts[:, None, None]
        wide = keys.to(torch.promote_types(keys.dtype, torch.float32)).masked_fill(past, 0.0)
        return (wide.sum(3) / counts[:, None])[:, :, None]

    def score(self, queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Logit of the mean key."""
        return torch.einsum("bhgd,hbmd->bhgm", queries, rows[:, :, :, 0].to(queries.dtype))
