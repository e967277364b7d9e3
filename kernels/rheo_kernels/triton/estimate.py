"""estimate: the attention that each page draws, for every query head, and every page's share of it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.dot import dot
from rheo_kernels.triton.subcentroids import code_bits, decode_scale, packed_byte
from rheo_kernels.types.corrections import CORRECTION_STEP, Corrections
from rheo_kernels.types.estimates import LEAST_SCORE, PAGES_PER_BLOCK, Estimates
from rheo_kernels.types.subcentroids import CENTRE_GROUPS, GROUPS, LEVELS, SubcentroidLayout

ESTIMATE_WARPS = 4
PAGES_PER_SHARE = 1024
"""Pages whose shares one program of `log_shares` writes."""
SHARE_WARPS = 4
LOG2_E = tl.constexpr(1.4426950408889634)
LEAST = tl.constexpr(LEAST_SCORE)
LN_2 = tl.constexpr(0.6931471805599453)


def estimate(
    q: torch.Tensor,
    summaries: torch.Tensor,
    pages: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    layout: SubcentroidLayout,
    out: Estimates | None = None,
) -> Estimates:
    """Estimate the log-sum-exp of every page's logits; see `rheo_kernels.reference.estimate`.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]``, contiguous in ``D``; products are exact up to the sum, of bfloat16 as of float16.
    summaries
        One layer's summaries, ``[H, N, W]``, uint8, contiguous.
    pages
        Page lists, ``[B, M]``, int32 logical pages; entries past a request's last page are ignored.
    seq_lens
        Tokens of each request, ``[B]``, integer; 0 in a padding row.
    scale
        Softmax scale.
    layout
        Of the summaries.
    out
        Result buffers.

    Returns
    -------
    Estimates
        ``out``.

    Notes
    -----
    Reads the first ``layout.value_offset`` bytes of every listed page once for the whole group, and writes 4 bytes
    for each page and query head. What codes stand for is exact in float16, and two products, with the low and the
    high half of the bytes, make a row's logit. Bound by dequantising.
    """
    batch, queries, dim = q.shape
    heads, width = summaries.shape[0], pages.shape[1]
    if out is None:
        out = Estimates.allocate(batch, queries, width, q.device)
    group = queries // heads
    _estimate[(triton.cdiv(width, PAGES_PER_BLOCK), heads, batch)](
        q,
        summaries,
        pages,
        seq_lens,
        out.lse,
        out.block_lse,
        scale,
        width,
        q.stride(0),
        q.stride(1),
        summaries.stride(0),
        pages.stride(0),
        WIDTH=layout.width,
        HALF=dim // 2,
        BLOCK_H=triton.next_power_of_2(dim // 2),
        GROUP=group,
        BLOCK_G=max(triton.next_power_of_2(group), 16),
        BLOCK_M=PAGES_PER_BLOCK,
        PAGE_SIZE=layout.page_size,
        ROWS=layout.rows,
        BLOCK_ROWS=layout.interleaved_rows,
        COLUMNS=layout.columns,
        CENTRE=layout.centre_offset,
        SCALES=layout.scales_offset,
        CENTRE_BITS=layout.centre_bits,
        GROUPS=GROUPS,
        CENTRE_GROUPS=CENTRE_GROUPS,
        MIDDLE=LEVELS / 2,
        num_warps=ESTIMATE_WARPS,
    )
    return out


def log_shares(
    estimates: Estimates,
    seq_lens: torch.Tensor,
    page_size: int,
    out: torch.Tensor,
    corrections: Corrections | None = None,
) -> torch.Tensor:
    """The logarithm of every page's share of the estimated attention, averaged over the query heads of a group.

    Parameters
    ----------
    estimates
        From `estimate`.
    seq_lens
        Tokens of each request, ``[B]``, integer; those not estimated yet included.
    page_size
        Tokens per page.
    out
        Result buffer, ``[B, H, M]``, float32, contiguous in ``M``.
    corrections
        Added to the result.

    Returns
    -------
    torch.Tensor
        ``out``: natural logarithms of shares that add up to 1 for every request and KV head, at least `LEAST_SCORE`,
        and corrections; ``-inf`` past the last page.

    Notes
    -----
    Reads 4 bytes for each page and query head, a byte more for a correction, and every program all blocks' LSE; bound
    by latency.
    """
    batch, heads, width = out.shape
    queries, blocks = estimates.block_lse.shape[1:]
    group = queries // heads
    codes, rows = (None, None) if corrections is None else corrections
    _log_shares[(triton.cdiv(width, PAGES_PER_SHARE), heads, batch)](
        estimates.lse,
        estimates.block_lse,
        seq_lens,
        codes,
        rows,
        out,
        width,
        blocks,
        0 if codes is None else codes.stride(0),
        0 if codes is None else codes.stride(1),
        out.stride(0),
        out.stride(1),
        GROUP=group,
        BLOCK_M=min(triton.next_power_of_2(width), PAGES_PER_SHARE),
        BLOCK_B=min(triton.next_power_of_2(blocks), PAGES_PER_SHARE),
        STRIDE_M=PAGES_PER_SHARE,
        PAGE_SIZE=page_size,
        STEP=CORRECTION_STEP,
        num_warps=SHARE_WARPS,
    )
    return out


@triton.jit
def _estimate(
    q,
    summaries,
    pages,
    seq_lens,
    out,
    block_out,
    scale,
    width,
    stride_qb,
    stride_qh,
    stride_sh,
    stride_pb,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_H: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CENTRE: tl.constexpr,
    SCALES: tl.constexpr,
    CENTRE_BITS: tl.constexpr,
    GROUPS: tl.constexpr,
    CENTRE_GROUPS: tl.constexpr,
    MIDDLE: tl.constexpr,
):
    block = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    request = tl.program_id(2).to(tl.int64)
    position = block * BLOCK_M + tl.arange(0, BLOCK_M)
    left = tl.load(seq_lens + request).to(tl.int32) - position * PAGE_SIZE
    listed = (left > 0) & (position < width)
    g = tl.arange(0, BLOCK_G)
    row = (request * tl.num_programs(1) + head) * GROUP + g
    target = out + row[:, None] * width + position[None, :]
    wanted = (g < GROUP)[:, None] & (position < width)[None, :]
    blocks = tl.num_programs(0)
    if tl.max(listed.to(tl.int32), 0) == 0:
        tl.store(target, tl.full([BLOCK_G, BLOCK_M], float("-inf"), tl.float32), mask=wanted)
        nothing = tl.full([BLOCK_G], float("-inf"), tl.float32)
        tl.store(block_out + row * blocks + block, nothing, mask=g < GROUP)
    else:
        page = tl.load(pages + request * stride_pb + position, mask=listed, other=0).to(tl.int64)
        base = summaries + tl.multiple_of(head * stride_sh, 4) + page * WIDTH
        h = tl.arange(0, BLOCK_H)
        inside = h < HALF
        r = tl.arange(0, ROWS)
        codes = tl.load(
            base[:, None, None] + packed_byte(r[:, None], h[None, :], BLOCK_ROWS, HALF, COLUMNS)[None, :, :],
            mask=listed[:, None, None] & inside[None, None, :],
            other=0,
        )
        paired = listed[:, None] & inside[None, :]
        step_at = base[:, None] + (SCALES + h // (HALF // GROUPS))[None, :]
        step = decode_scale(tl.load(step_at, mask=paired, other=0))
        unit_at = base[:, None] + (SCALES + GROUPS + h // (HALF // CENTRE_GROUPS))[None, :]
        unit = decode_scale(tl.load(unit_at, mask=paired, other=0))
        centre_at = base[:, None] + CENTRE
        if CENTRE_BITS == 8:
            low_at = centre_at + packed_byte(0, h, 2, HALF, COLUMNS)[None, :]
            high_at = centre_at + packed_byte(1, h, 2, HALF, COLUMNS)[None, :]
            code = tl.load(low_at, mask=paired, other=0)
            centre_low = code.to(tl.int8, bitcast=True).to(tl.float32) * unit
            code = tl.load(high_at, mask=paired, other=0)
            centre_high = code.to(tl.int8, bitcast=True).to(tl.float32) * unit
        else:
            packed = tl.load(centre_at + packed_byte(0, h, 1, HALF, COLUMNS)[None, :], mask=paired, other=0)
            centre_low = (code_bits(packed, False) - MIDDLE) * unit
            centre_high = (code_bits(packed, True) - MIDDLE) * unit

        query = q + request * stride_qb + (head * GROUP + g[:, None]) * stride_qh + h[None, :]
        real = (g < GROUP)[:, None] & inside[None, :]
        query_low = tl.load(query, mask=real, other=0.0)
        query_high = tl.load(query + HALF, mask=real, other=0.0)
        low, high = query_low.to(tl.float32), query_high.to(tl.float32)
        if query_low.dtype == tl.bfloat16:
            query_low, query_high = _to_float16(low), _to_float16(high)
        kind = query_low.dtype
        spread = step[:, None, :]
        rows_low = tl.reshape((code_bits(codes, False) - MIDDLE) * spread, [BLOCK_M * ROWS, BLOCK_H])
        rows_high = tl.reshape((code_bits(codes, True) - MIDDLE) * spread, [BLOCK_M * ROWS, BLOCK_H])
        logits = tl.zeros([BLOCK_G, BLOCK_M * ROWS], tl.float32)
        logits = dot(query_low, tl.trans(rows_low.to(kind)), logits)
        logits = dot(query_high, tl.trans(rows_high.to(kind)), logits)
        middle = tl.zeros([BLOCK_G, BLOCK_M], tl.float32)
        middle = dot(query_low, tl.trans(centre_low.to(kind)), middle)
        middle = dot(query_high, tl.trans(centre_high.to(kind)), middle)

        energy = (low * low + high * high) * (scale * scale / 24)
        energy_head = energy.to(tl.bfloat16)
        energy_rest = (energy - energy_head.to(tl.float32)).to(tl.bfloat16)
        squares = tl.trans((step * step).to(tl.bfloat16))
        noise = dot(energy_head, squares, tl.zeros([BLOCK_G, BLOCK_M], tl.float32))
        noise = dot(energy_rest, squares, noise)

        per_row: tl.constexpr = PAGE_SIZE // ROWS
        tokens = tl.minimum(tl.maximum(left[:, None] - (r * per_row)[None, :], 0), per_row)
        weight = tl.where(tokens > 0, tl.log2(tl.maximum(tokens, 1).to(tl.float32)), float("-inf"))
        x = tl.reshape(logits, [BLOCK_G, BLOCK_M, ROWS]) * (scale * LOG2_E) + weight[None, :, :]
        top = tl.max(x, 2)
        shift = tl.where(top == float("-inf"), 0.0, top)
        total = tl.sum(tl.exp2(x - shift[:, :, None]), 2)
        lse = shift + tl.log2(tl.where(total > 0, total, 1.0)) + (middle * scale - noise) * LOG2_E
        lse = tl.where(listed[None, :], lse, float("-inf"))
        tl.store(target, lse * LN_2, mask=wanted)
        top = tl.max(lse, 1)
        shift = tl.where(top == float("-inf"), 0.0, top)
        total = tl.sum(tl.exp2(lse - shift[:, None]), 1)
        whole = tl.where(total > 0, shift + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
        tl.store(block_out + row * blocks + block, whole * LN_2, mask=g < GROUP)


@triton.jit
def _to_float16(values):
    """The nearest float16 that is finite."""
    return tl.minimum(tl.maximum(values, -65504.0), 65504.0).to(tl.float16)


@triton.jit
def _log_shares(
    lse,
    block_lse,
    seq_lens,
    codes,
    rows,
    out,
    width,
    blocks,
    stride_cr,
    stride_ch,
    stride_ob,
    stride_oh,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_B: tl.constexpr,
    STRIDE_M: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    STEP: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    request = tl.program_id(2).to(tl.int64)
    position = tl.program_id(0) * STRIDE_M + tl.arange(0, BLOCK_M)
    exists = position < width
    listed = exists & (position * PAGE_SIZE < tl.load(seq_lens + request))
    share = tl.zeros([BLOCK_M], tl.float32)
    first = (request * tl.num_programs(1) + head) * GROUP
    for member in range(GROUP):
        row = first + member
        top = tl.full([], float("-inf"), tl.float32)
        total = tl.full([], 0.0, tl.float32)
        for start in range(0, blocks, BLOCK_B):
            b = start + tl.arange(0, BLOCK_B)
            part = tl.load(block_lse + row * blocks + b, mask=b < blocks, other=float("-inf")) * LOG2_E
            higher = tl.maximum(top, tl.max(part, 0))
            shift = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp2(top - shift) + tl.sum(tl.exp2(part - shift), 0)
            top = higher
        shift = tl.where(top == float("-inf"), 0.0, top)
        x = tl.load(lse + row * width + position, mask=listed, other=float("-inf")) * LOG2_E
        share += tl.exp2(x - shift) / tl.where(total > 0, total, 1.0)
    score = tl.maximum(tl.log(share / GROUP), LEAST)
    if codes is not None:
        own = codes + tl.load(rows + request).to(tl.int64) * stride_cr + head * stride_ch
        score += tl.load(own + position, mask=listed, other=0).to(tl.float32) * STEP
    score = tl.where(listed, score, float("-inf"))
    tl.store(out + request * stride_ob + head * stride_oh + position, score, mask=exists)
