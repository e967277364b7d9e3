"""subcentroids: mean keys of a few tokens each, in 4 bits, and the attention that they estimate for their page."""

from __future__ import annotations

from typing import ClassVar

import torch
import triton
import triton.language as tl

from rheo_kernels.reference.subcentroids import summarise_subcentroids
from rheo_kernels.triton.subcentroids import store_subcentroids
from rheo_kernels.types import subcentroids as types
from rheo_kernels.types.subcentroids import SubcentroidLayout, subcentroid_layout
from rheo_kernels.types.summary import EstimatingSummary, SummaryKernels
from rheo_sglang.selection.base import SUMMARIES

GROUPS = tl.constexpr(types.GROUPS)
CENTRE_GROUPS = tl.constexpr(types.CENTRE_GROUPS)
LEVELS = tl.constexpr(types.LEVELS)
TILE_ROWS = tl.constexpr(types.TILE_ROWS)
COLUMNS = tl.constexpr(types.COLUMNS)
LEAST_HEAD_DIM = 32


@triton.jit
def _halves(tile, DIM: tl.constexpr, PAGE_SIZE: tl.constexpr):
    """The lower and the upper dimensions, ``[DIM / 2, PAGE_SIZE]`` each, of ``[DIM, PAGE_SIZE]``."""
    return tl.split(tl.permute(tl.reshape(tile, [2, DIM // 2, PAGE_SIZE]), [1, 2, 0]))


@triton.jit
def _fold(
    rows, keys, values, held, count, DIM: tl.constexpr, PAGE_SIZE: tl.constexpr, ROW_TOKENS: tl.constexpr
):
    # A compiled kernel may only depend on its own source: this is `subcentroid_layout` again.
    rows_held: tl.constexpr = PAGE_SIZE // ROW_TOKENS
    centre_bits: tl.constexpr = 8 if PAGE_SIZE >= 32 else 4
    centre: tl.constexpr = rows_held * DIM // 2
    scales: tl.constexpr = centre + DIM * centre_bits // 8
    wide = tl.where(held[None, :], keys.to(tl.float32), 0.0)
    key_low, key_high = _halves(wide, DIM, PAGE_SIZE)
    wide = tl.trans(tl.where(held[:, None], values.to(tl.float32), 0.0))
    value_low, value_high = _halves(wide, DIM, PAGE_SIZE)
    store_subcentroids(
        rows,
        key_low,
        key_high,
        value_low,
        value_high,
        count,
        DIM // 2,
        DIM // 2,
        PAGE_SIZE,
        rows_held,
        rows_held if rows_held < TILE_ROWS else TILE_ROWS,
        DIM // 8 if DIM // 8 < COLUMNS else COLUMNS,
        centre,
        scales,
        scales + GROUPS + CENTRE_GROUPS + 2,
        centre_bits,
        GROUPS,
        CENTRE_GROUPS,
        LEVELS,
    )


@triton.jit
def _fold_2(
    rows, keys, values, held, count, DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAGE_SIZE: tl.constexpr
):
    _fold(rows, keys, values, held, count, DIM, PAGE_SIZE, 2)


@triton.jit
def _fold_4(
    rows, keys, values, held, count, DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAGE_SIZE: tl.constexpr
):
    _fold(rows, keys, values, held, count, DIM, PAGE_SIZE, 4)


@triton.jit
def _fold_8(
    rows, keys, values, held, count, DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAGE_SIZE: tl.constexpr
):
    _fold(rows, keys, values, held, count, DIM, PAGE_SIZE, 8)


class SubcentroidSummary(EstimatingSummary):
    """Mean keys of rows of tokens, as 4-bit differences to the page's centre, and the page's mean V in 4 bits.

    A page's estimate is the log-sum-exp over its rows, as if every token had the mean key of its row
    (`rheo_kernels.reference.estimate`). A page is summarised anew for every token that it receives.

    Attributes
    ----------
    row_tokens
        Tokens of a row.
    """

    row_tokens: ClassVar[int]

    def layout(self, head_dim: int, page_size: int) -> SubcentroidLayout:
        """See `EstimatingSummary.layout`."""
        return subcentroid_layout(head_dim, page_size, self.row_tokens)

    def unsupported(self, head_dim: int, page_size: int, key_dtype: torch.dtype) -> str | None:
        """Head sizes that are no power of two, and those whose halves are too small for a product of tensor cores."""
        if head_dim < LEAST_HEAD_DIM or head_dim & (head_dim - 1):
            return f"needs a head size that is a power of two from {LEAST_HEAD_DIM} on, not {head_dim}"
        return None

    def fold_chunk(self, keys: torch.Tensor, values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Rows of bytes; see `SubcentroidLayout`."""
        layout = self.layout(keys.shape[2], keys.shape[3])
        return summarise_subcentroids(keys.transpose(2, 3), values, counts, layout)[:, :, None]


@SUMMARIES.register
class SubcentroidSummary2(SubcentroidSummary):
    """Rows of two tokens: nearly every key, 7.5 % of the KV's bytes at page size 32 and head size 128."""

    name = "subcentroids2"
    row_tokens = 2
    kernels = SummaryKernels(_fold_2)


@SUMMARIES.register
class SubcentroidSummary4(SubcentroidSummary):
    """Rows of four tokens, 4.4 % of the KV's bytes at page size 32 and head size 128."""

    name = "subcentroids4"
    row_tokens = 4
    kernels = SummaryKernels(_fold_4)


@SUMMARIES.register
class SubcentroidSummary8(SubcentroidSummary):
    """Rows of eight tokens, 2.8 % of the KV's bytes at page size 32 and head size 128."""

    name = "subcentroids8"
    row_tokens = 8
    kernels = SummaryKernels(_fold_8)
