"""write: a prefill chunk's tokens into pinned host pages, and the pages' summaries in the same pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.eight_bits import widen
from rheo_kernels.types.summary import PageSummary

WRITERS = 16
"""Programs that write: enough to fill PCIe, few enough to leave the GPU to the attention that runs at the same time."""


def write(
    k: torch.Tensor,
    v: torch.Tensor,
    slots: torch.Tensor,
    host: torch.Tensor,
    summary: PageSummary,
    summaries: torch.Tensor,
    page_size: int,
    programs: int = WRITERS,
) -> None:
    """Store tokens in their host pages and summarise the pages from what they hold then.

    Parameters
    ----------
    k, v
        Keys and values, ``[T, H, D]``, KV dtype, contiguous in ``D``.
    slots
        SGLang's slot of each token, ``[T]``, int64. The tokens of a page are consecutive and in order; a chunk
        goes on where its page's earlier tokens, which are in the host page, end.
    host
        One layer's host pages, ``[N, H, 2, D * P]``, pinned; written.
    summary
        Kind of the summaries.
    summaries
        One layer's summaries, ``[H, N, R, W]``; written.
    page_size
        Tokens per page.
    programs
        Programs over all KV heads.

    Notes
    -----
    Reads ``2 * T * H * D`` elements and writes as many over PCIe, a whole page's K and V per step, K transposed
    in registers. A program takes ``P`` tokens of the batch at a time and writes the pages that begin among them.
    Of a page that a chunk begins inside, the earlier keys, and values where the
    summary uses them, are read back over PCIe.
    """
    tokens, heads, dim = k.shape
    kernels = summary.kernels
    assert kernels is not None, "a summary without kernels was not refused at start"
    block_d = triton.next_power_of_2(dim)
    _write[(max(min(programs // heads, triton.cdiv(tokens, page_size)), 1), heads)](
        k,
        v,
        slots,
        host,
        summaries,
        tokens,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        host.stride(0),
        host.stride(1),
        summaries.stride(0),
        summaries.stride(1),
        DIM=dim,
        BLOCK_D=block_d,
        PAGE_SIZE=page_size,
        FOLD_CHUNK=kernels.fold_chunk,
        num_warps=4 if block_d * page_size <= 4096 else 8,
    )


@triton.jit(do_not_specialize=["tokens"])
def _write(
    k,
    v,
    slots,
    host,
    summaries,
    tokens,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    stride_hn,
    stride_hh,
    stride_mh,
    stride_mn,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    FOLD_CHUNK: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    i = tl.arange(0, PAGE_SIZE)
    for batch_part in range(tl.program_id(0), tl.cdiv(tokens, PAGE_SIZE), tl.num_programs(0)):
        start = batch_part * PAGE_SIZE
        token = start + i
        page = tl.load(slots + token, mask=token < tokens, other=-1) // PAGE_SIZE
        earlier = tl.load(slots + token - 1, mask=(token > 0) & (token < tokens), other=-1) // PAGE_SIZE
        begins = (token < tokens) & ((token == 0) | (page != earlier))
        begin = tl.min(tl.where(begins, i, PAGE_SIZE), 0)
        while begin < PAGE_SIZE:
            _write_page(
                k + head * stride_kh,
                v + head * stride_vh,
                slots,
                host + head * stride_hh,
                summaries + head * stride_mh,
                start + begin,
                tokens,
                stride_kt,
                stride_vt,
                stride_hn,
                stride_mn,
                DIM,
                BLOCK_D,
                PAGE_SIZE,
                FOLD_CHUNK,
            )
            begin = tl.min(tl.where(begins & (i > begin), i, PAGE_SIZE), 0)


@triton.jit
def _write_page(
    k,
    v,
    slots,
    host,
    summaries,
    first,
    tokens,
    stride_kt,
    stride_vt,
    stride_hn,
    stride_mn,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    FOLD_CHUNK: tl.constexpr,
):
    """Write one head's tokens of the page that token ``first`` is in, and summarise the page."""
    slot = tl.load(slots + first)
    page = slot // PAGE_SIZE
    entered = (slot % PAGE_SIZE).to(tl.int32)
    offset = tl.arange(0, PAGE_SIZE)
    token = first + offset - entered
    listed = (offset >= entered) & (token < tokens)
    live = listed & (tl.load(slots + token, mask=listed, other=-1) == page * PAGE_SIZE + offset)
    count = tl.sum(live.to(tl.int32), 0)
    d = tl.arange(0, BLOCK_D)
    inside = d < DIM
    token = token.to(tl.int64)
    key = tl.load(
        k + token[None, :] * stride_kt + d[:, None], mask=live[None, :] & inside[:, None], other=0.0
    )
    value = tl.load(
        v + token[:, None] * stride_vt + d[None, :], mask=live[:, None] & inside[None, :], other=0.0
    )
    block = host + page * stride_hn
    keys = block + d[:, None] * PAGE_SIZE + offset[None, :]
    full = count == PAGE_SIZE
    tl.store(keys, key, mask=full & inside[:, None])
    tl.store(keys, key, mask=(full == 0) & live[None, :] & inside[:, None])
    values = block + DIM * PAGE_SIZE + offset[:, None] * DIM + d[None, :]
    tl.store(values, value, mask=live[:, None] & inside[None, :])

    key, value = widen(key), widen(value)
    if entered > 0:
        before = offset < entered
        earlier = tl.load(keys, mask=before[None, :] & inside[:, None], other=0.0)
        key = tl.where(before[None, :], widen(earlier), key)
        earlier = tl.load(values, mask=before[:, None] & inside[None, :], other=0.0)
        value = tl.where(before[:, None], widen(earlier), value)
    held = offset < entered + count
    FOLD_CHUNK(summaries + page * stride_mn, key, value, held, entered + count, DIM, BLOCK_D, PAGE_SIZE)
