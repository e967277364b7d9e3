"""merge: partial attention outputs over disjoint tokens into one, by their LSE."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

ROWS_PER_PROGRAM = 4


def merge(
    out_a: torch.Tensor,
    lse_a: torch.Tensor,
    out_b: torch.Tensor,
    lse_b: torch.Tensor,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Combine two partials.

    Parameters
    ----------
    out_a, out_b
        Outputs normalised within their part, ``[..., D]``, floating point, contiguous. Either may lie in
        mapped pinned host memory.
    lse_a, lse_b
        Natural logarithm of the sum of exponentials of each part's logits, ``[...]``, float32, contiguous;
        ``-inf`` for an empty part, which is the identity (its output is not read).
    out, lse
        Result buffers, contiguous; may be those of either input. ``out`` may have the model's dtype.

    Returns
    -------
    tuple of torch.Tensor
        The merged output and LSE. Two empty parts merge to ``(0, -inf)``.
    """
    if out is None or lse is None:
        out, lse = torch.empty_like(out_a), torch.empty_like(lse_a)
    dim = out_a.shape[-1]
    rows = lse_a.numel()
    _merge[(triton.cdiv(rows, ROWS_PER_PROGRAM),)](
        out_a,
        lse_a,
        out_b,
        lse_b,
        out,
        lse,
        rows,
        DIM=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        BLOCK_R=ROWS_PER_PROGRAM,
        num_warps=4,
    )
    return out, lse


@triton.jit
def _merge(
    out_a,
    lse_a,
    out_b,
    lse_b,
    out,
    lse,
    rows,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    present = row < rows
    first = tl.load(lse_a + row, mask=present, other=float("-inf"))
    second = tl.load(lse_b + row, mask=present, other=float("-inf"))
    top = tl.maximum(first, second)
    shift = tl.where(top == float("-inf"), 0.0, top)
    weight_a = tl.exp(first - shift)
    weight_b = tl.exp(second - shift)
    total = weight_a + weight_b
    whole = tl.where(total > 0, total, 1.0)
    cell = row[:, None].to(tl.int64) * DIM + d[None, :]
    inside = (d < DIM)[None, :]
    part_a = tl.load(out_a + cell, mask=inside & (weight_a > 0)[:, None], other=0.0).to(tl.float32)
    part_b = tl.load(out_b + cell, mask=inside & (weight_b > 0)[:, None], other=0.0).to(tl.float32)
    merged = part_a * (weight_a / whole)[:, None] + part_b * (weight_b / whole)[:, None]
    tl.store(out + cell, merged.to(out.dtype.element_ty), mask=inside & present[:, None])
    tl.store(lse + row, tl.where(total > 0, tl.log(whole) + shift, float("-inf")), mask=present)
