"""offload: copy queries and missed pages to mapped host memory, for the CPU to attend."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.types.offload_words import TOKEN_BITS

_TOKEN_BITS: tl.constexpr = tl.constexpr(TOKEN_BITS)


def offload_misses(
    q: torch.Tensor,
    misses: torch.Tensor,
    valid: torch.Tensor,
    first: torch.Tensor,
    last: torch.Tensor,
    host_q: torch.Tensor,
    host_entries: torch.Tensor,
    host_counts: torch.Tensor,
    host_batch: torch.Tensor,
) -> None:
    """Copy what the CPU needs of one layer's misses; lists begin at column 0 there.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]``, contiguous in ``D``.
    misses, valid
        Missed pages and their tokens, ``[B, H, S]``, int32, contiguous; see `Selected`.
    first, last
        Columns that hold them, ``[B, H]``, int32, contiguous.
    host_q
        ``[X, Hq, D]``, dtype of ``q``, contiguous, ``X >= B``; written, as are all below. Pinned.
    host_entries
        Words for pages, tagged 0, ``[X, H, Y]``, int64, contiguous, ``Y >= S``; see
        `rheo_kernels.types.offload_words`.
    host_counts
        Words for the number of pages, tagged 0, ``[X, H]``, int64, contiguous.
    host_batch
        ``[1]``, int32: becomes ``B``.

    Notes
    -----
    Posted writes over PCIe: ``2 Hq D`` bytes a request and 8 a miss; bound by latency.
    """
    batch, queries, dim = q.shape
    heads, width = misses.shape[1:]
    group = queries // heads
    _offload_misses[(batch, heads)](
        q,
        misses,
        valid,
        first,
        last,
        host_q,
        host_entries,
        host_counts,
        host_batch,
        width,
        q.stride(0),
        q.stride(1),
        host_entries.stride(1),
        GROUP=group,
        BLOCK_G=triton.next_power_of_2(group),
        DIM=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        BLOCK=min(triton.next_power_of_2(width), 1024),
        num_warps=4,
    )


@triton.jit
def _offload_misses(
    q,
    misses,
    valid,
    first,
    last,
    host_q,
    host_entries,
    host_counts,
    host_batch,
    width,
    stride_qb,
    stride_qh,
    stride_eh,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    request = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    heads = tl.num_programs(1)
    pair = request * heads + head
    begin = tl.load(first + pair)
    count = tl.load(last + pair) - begin
    tl.store(host_counts + pair, count.to(tl.int64))
    if pair == 0:
        tl.store(host_batch, tl.num_programs(0))
    if count > 0:
        g = tl.arange(0, BLOCK_G)
        d = tl.arange(0, BLOCK_D)
        inside = (g < GROUP)[:, None] & (d < DIM)[None, :]
        member = head * GROUP + g[:, None]
        queries = tl.load(q + request * stride_qb + member * stride_qh + d[None, :], mask=inside)
        tl.store(host_q + (request * heads * GROUP + member) * DIM + d[None, :], queries, mask=inside)
        i = tl.arange(0, BLOCK)
        for start in range(0, count, BLOCK):
            listed = start + i < count
            column = pair * width + begin + start + i
            pages = tl.load(misses + column, mask=listed).to(tl.int64)
            tokens = tl.load(valid + column, mask=listed)
            words = (pages << _TOKEN_BITS) + (tokens - 1)
            tl.store(host_entries + pair * stride_eh + start + i, words, mask=listed)
