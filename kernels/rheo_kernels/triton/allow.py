"""allow: pages that each request and KV head may select in this step, by a budget rule that looks at scores."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.launch import row_block, row_warps


def allow(
    rule: Any,
    scores: torch.Tensor,
    num_pages: torch.Tensor,
    caps: torch.Tensor,
    forced: int,
    dense_pages: int,
    out: torch.Tensor,
) -> torch.Tensor:
    """Apply a rule between the pages that are always selected and the cap.

    The rule does not see the tail page's score: the page is selected whatever it is, and its summary is being written.

    Parameters
    ----------
    rule
        Device function ``(scores, num_pages, cap) -> int32`` of one request and KV head; scores are ``-inf`` from the
        tail page on.
    scores
        ``[B, H, M]``, float32, ``-inf`` past the last page.
    num_pages
        ``[B]``, int32.
    caps
        Most pages each request may select, ``[B]`` or ``[B, H]``, int32.
    forced
        Pages that are selected whatever their scores.
    dense_pages
        Requests of up to so many pages select all that their cap has.
    out
        Result buffer, ``[B, H]``, int32.

    Notes
    -----
    One program per request and KV head; reads 4 bytes a page, a row in registers, and is bound by latency.
    """
    batch, heads, columns = scores.shape
    block = row_block(columns)
    _allow[(batch, heads)](
        scores,
        num_pages,
        caps,
        out,
        columns,
        forced,
        dense_pages,
        scores.stride(0),
        scores.stride(1),
        caps.stride(0),
        caps.stride(1) if caps.dim() == 2 else 0,
        out.stride(0),
        out.stride(1),
        RULE=rule,
        BLOCK_M=block,
        num_warps=row_warps(block),
    )
    return out


@triton.jit
def _allow(
    scores,
    num_pages,
    caps,
    out,
    columns,
    forced,
    dense_pages,
    stride_sb,
    stride_sh,
    stride_cb,
    stride_ch,
    stride_ob,
    stride_oh,
    RULE: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    request = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    count = tl.load(num_pages + request)
    cap = tl.load(caps + request * stride_cb + head * stride_ch)
    position = tl.arange(0, BLOCK_M)
    listed = position < tl.minimum(count - 1, columns)
    row = tl.load(
        scores + request * stride_sb + head * stride_sh + position, mask=listed, other=float("-inf")
    )
    wanted = RULE(row, count, cap).to(tl.int32)
    least = tl.where(count <= dense_pages, cap, tl.minimum(cap, forced))
    allowed = tl.minimum(tl.maximum(wanted, least), cap)
    tl.store(out + request * stride_ob + head * stride_oh, allowed)
