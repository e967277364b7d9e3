"""mean_radius: the mean key and the distance of the farthest one, hence a bound on every logit in the page."""

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.dot import dot
from rheo_sglang.selection import SUMMARIES, ScoringSummary, SummaryKernels


@triton.jit
def _fold_chunk(
    rows, keys, values, held, count, DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAGE_SIZE: tl.constexpr
):
    d = tl.arange(0, BLOCK_D)
    inside = d < DIM
    known = held[None, :] & inside[:, None]
    wide = tl.where(known, keys.to(tl.float32), 0.0)
    mean = tl.sum(wide, 1) / count
    apart = tl.where(known, wide - mean[:, None], 0.0)
    radius = tl.sqrt(tl.max(tl.sum(apart * apart, 0), 0))
    tl.store(rows + d, mean, mask=inside)
    tl.store(rows + DIM, radius)


@triton.jit
def _score(rows, queries, listed, heads, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    d = tl.arange(0, BLOCK_D)
    mean = tl.load(rows + d[None, :], mask=listed[:, None] & (d < DIM)[None, :], other=0.0)
    radius = tl.load(rows + DIM, mask=listed[:, None], other=0.0)
    query = tl.load(queries, mask=heads, other=0.0).to(tl.float32)
    norm = tl.sqrt(tl.sum(query * query, 1))
    return dot(query, tl.trans(mean), norm[:, None] * tl.trans(radius))


@SUMMARIES.register
class MeanRadiusSummary(ScoringSummary):
    """One float32 row: the mean ``c`` and the radius ``r``; a query's score is ``q . c + |q| r`` (Cauchy-Schwarz)."""

    name = "mean_radius"
    rows = 1
    kernels = SummaryKernels(_fold_chunk, _score)

    def row_width(self, head_dim: int, page_size: int) -> int:
        return head_dim + 1

    def dtype(self, key_dtype: torch.dtype) -> torch.dtype:
        return torch.float32

    def fold_chunk(self, keys: torch.Tensor, values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        past = torch.arange(keys.shape[3], device=keys.device) >= counts[:, None, None]
        wide = keys.to(torch.promote_types(keys.dtype, torch.float32)).masked_fill(past, 0)
        mean = wide.sum(3) / counts[:, None]
        radius = (wide - mean[..., None]).masked_fill(past, 0).norm(dim=2).amax(2)
        return torch.cat((mean, radius[..., None]), 2)[:, :, None]

    def score(self, queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        mean, radius = rows[:, :, :, 0, :-1].to(queries.dtype), rows[:, :, :, 0, -1].to(queries.dtype)
        logits = torch.einsum("bhgd,hbmd->bhgm", queries, mean)
        return logits + torch.einsum("bhg,hbm->bhgm", queries.norm(dim=3), radius)
