"""fetch: decode attention that reads missed pages from host memory and stores them into their new frames."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.attend import STAGES, WARPS
from rheo_kernels.triton.partial import (
    LOG2_E,
    Workspace,
    accumulate,
    finish,
    num_splits,
    pages_per_tile,
    splits_per_merge,
)


def attend_fetch(
    q: torch.Tensor,
    frames: torch.Tensor,
    host: torch.Tensor,
    pages: torch.Tensor,
    hits: torch.Tensor,
    valid: torch.Tensor,
    num_selected: torch.Tensor,
    page_table: torch.Tensor,
    scale: float,
    page_size: int,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    workspace: Workspace | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend every selected page, hit or miss, and fill the frames that misses were admitted to.

    Runs after `admit`: a page whose frame is the one it was found in is read there. Any other page is read
    from its host page, and if the page table names a frame for it now, stored into that frame in the same
    pass. So a frame that admission took from a hit is written, never read.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]``, contiguous in ``D``; the dtype of ``frames``.
    frames
        One layer's frames, ``[H, F, 2, D * P]``; written.
    host
        One layer's host pages, ``[N, H, 2, D * P]``, pinned.
    pages, hits, valid
        The selection as resolved before admission, ``[B, H, S]``, int32, contiguous; see `Selected`.
    num_selected
        ``[B, H]``, int32, contiguous.
    page_table
        One layer's page table after admission, ``[H, N]``, int32.
    scale
        Softmax scale.
    page_size
        Tokens per page.
    out, lse
        Result buffers, ``[B, Hq, D]`` and ``[B, Hq]``, float32, contiguous.
    workspace
        Buffers for `num_splits` splits; allocated when not given.

    Returns
    -------
    tuple of torch.Tensor
        Output and natural-log LSE; ``(0, -inf)`` where nothing is selected.

    Notes
    -----
    Tiles are dealt to the splits in turn, so that the misses at the end of a list are shared among them all.
    Reads ``2 * D * P`` elements a page, those of misses over PCIe, and writes as many per admitted page.
    Requests that share an admitted page all write the same data to its frame.
    """
    batch, queries, dim = q.shape
    heads = frames.shape[0]
    width = pages.shape[2]
    group = queries // heads
    if out is None or lse is None:
        out = torch.empty((batch, queries, dim), dtype=torch.float32, device=q.device)
        lse = torch.empty((batch, queries), dtype=torch.float32, device=q.device)
    pairs = batch * heads
    splits = num_splits(pairs, width)
    if workspace is None:
        workspace = Workspace.allocate(pairs, group, dim, splits, q.device)
    splits = min(splits, workspace.out.shape[1])
    block_d = triton.next_power_of_2(dim)
    block_g = triton.next_power_of_2(group)
    _attend_fetch[(splits, pairs)](
        q,
        frames,
        host,
        pages,
        hits,
        valid,
        num_selected,
        page_table,
        out,
        lse,
        workspace.out,
        workspace.lse,
        workspace.arrived,
        scale,
        splits,
        width,
        heads,
        q.stride(0),
        q.stride(1),
        frames.stride(0),
        frames.stride(1),
        host.stride(0),
        host.stride(1),
        page_table.stride(0),
        workspace.out.stride(0),
        workspace.lse.stride(0),
        DIM=dim,
        BLOCK_D=block_d,
        GROUP=group,
        BLOCK_G=block_g,
        PAGE_SIZE=page_size,
        ELEMENT_BYTES=frames.element_size(),
        TILE=pages_per_tile(block_d, page_size) * page_size,
        SPLIT=splits > 1,
        REDUCED=splits_per_merge(block_g, block_d),
        STAGES=STAGES,
        num_warps=WARPS,
    )
    return out, lse


@triton.jit(do_not_specialize=["splits"])
def _attend_fetch(
    q,
    frames,
    host,
    pages,
    hits,
    valid,
    num_selected,
    page_table,
    out,
    lse,
    split_out,
    split_lse,
    arrived,
    scale,
    splits,
    width,
    heads,
    stride_qb,
    stride_qh,
    stride_fh,
    stride_ff,
    stride_hn,
    stride_hh,
    stride_th,
    stride_wo,
    stride_wl,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    ELEMENT_BYTES: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    REDUCED: tl.constexpr,
    STAGES: tl.constexpr,
):
    split = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    request = pair // heads
    head = pair % heads
    tile_pages: tl.constexpr = TILE // PAGE_SIZE
    count = tl.load(num_selected + pair)
    tiles = tl.cdiv(count, tile_pages)
    rows: tl.constexpr = 16 if BLOCK_G < 16 else BLOCK_G
    g = tl.arange(0, rows)
    d = tl.arange(0, BLOCK_D)
    token = tl.arange(0, TILE)
    offset = token % PAGE_SIZE
    inside = d < DIM
    query = tl.load(
        q + request * stride_qb + (head * GROUP + g[:, None]) * stride_qh + d[None, :],
        mask=(g < GROUP)[:, None] & inside[None, :],
        other=0.0,
    )
    head_frames = frames + head * stride_fh
    to_host = ((host + head * stride_hh).to(tl.int64) - head_frames.to(tl.int64)) // ELEMENT_BYTES
    to_host = tl.multiple_of(to_host, 8)
    keys = head_frames + (d * PAGE_SIZE)[:, None] + offset[None, :]
    values = head_frames + (DIM * PAGE_SIZE) + (offset * DIM)[:, None] + d[None, :]
    table = page_table + head * stride_th
    row = pair * width

    top = tl.full([rows], float("-inf"), tl.float32)
    total = tl.zeros([rows], tl.float32)
    mixed = tl.zeros([rows, BLOCK_D], tl.float32)
    for tile in tl.range(split, tiles, splits, num_stages=STAGES):
        start = tile * tile_pages
        source = tl.zeros([TILE], tl.int64)
        target = tl.full([TILE], -1, tl.int32)
        tokens = tl.full([TILE], 0, tl.int32)
        for slot in tl.static_range(tile_pages):
            listed = start + slot < count
            column = row + start + slot
            mine = token // PAGE_SIZE == slot
            page = tl.load(pages + column, mask=listed, other=0)
            found = tl.load(hits + column, mask=listed, other=-1)
            frame = tl.load(table + page, mask=listed, other=-1)
            stays = (found >= 0) & (found == frame)
            fill = (stays == 0) & (frame >= 0)
            in_frame = frame.to(tl.int64) * stride_ff
            in_host = to_host + page.to(tl.int64) * stride_hn
            source = tl.where(mine, tl.where(stays, in_frame, in_host), source)
            target = tl.where(mine, tl.where(fill, frame, -1), target)
            tokens = tl.where(mine, tl.load(valid + column, mask=listed, other=0), tokens)
        present = start + token // PAGE_SIZE < count
        live = present & (offset < tokens)
        source = tl.max_constancy(source, [PAGE_SIZE])
        key = tl.load(keys + source[None, :], mask=present[None, :] & inside[:, None], other=0.0)
        value = tl.load(values + source[:, None], mask=present[:, None] & inside[None, :], other=0.0)
        target = tl.max_constancy(target, [PAGE_SIZE])
        filled = target.to(tl.int64) * stride_ff
        fresh = target >= 0
        tl.store(keys + filled[None, :], key, mask=fresh[None, :] & inside[:, None])
        tl.store(values + filled[:, None], value, mask=fresh[:, None] & inside[None, :])
        value = tl.where(live[:, None], value, 0.0)
        top, total, mixed = accumulate(query, key, value, live, scale * LOG2_E, top, total, mixed)
    finish(
        top,
        total,
        mixed,
        pair,
        split,
        out,
        lse,
        split_out,
        split_lse,
        arrived,
        stride_wo,
        stride_wl,
        DIM,
        BLOCK_D,
        GROUP,
        BLOCK_G,
        splits,
        SPLIT,
        REDUCED,
    )
