"""note_margins: how far the two most probable next tokens of each request are apart."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

MOST_LOGITS = 4096
"""Logits that one pass of a program reads."""


def note_margins(
    logits: torch.Tensor, rows: torch.Tensor, num_pages: torch.Tensor, margins: torch.Tensor
) -> None:
    """Keep the margin of each request's latest pass; see `rheo_kernels.reference.note_margins`.

    Notes
    -----
    One program per request reads its row of logits once, 600 KB of a vocabulary of 150 thousand in float32.
    """
    batch, vocabulary = logits.shape
    _note_margins[(batch,)](
        logits,
        rows,
        num_pages,
        margins,
        vocabulary,
        logits.stride(0),
        BLOCK=min(triton.next_power_of_2(vocabulary), MOST_LOGITS),
        num_warps=8,
    )


@triton.jit
def _note_margins(logits, rows, num_pages, margins, vocabulary, stride_lb, BLOCK: tl.constexpr):
    request = tl.program_id(0).to(tl.int64)
    if tl.load(num_pages + request) > 0:
        place = tl.arange(0, BLOCK)
        first = tl.full([BLOCK], float("-inf"), tl.float32)
        second = tl.full([BLOCK], float("-inf"), tl.float32)
        for start in range(0, vocabulary, BLOCK):
            present = start + place < vocabulary
            row = logits + request * stride_lb + start
            logit = tl.load(row + place, mask=present, other=float("-inf")).to(tl.float32)
            logit = tl.where(logit == logit, logit, float("-inf"))
            second = tl.maximum(second, tl.minimum(first, logit))
            first = tl.maximum(first, logit)
        others = tl.where(place == tl.argmax(first, 0), second, first)
        slot = tl.load(rows + request).to(tl.int64)
        tl.store(margins + slot, tl.max(first, 0) - tl.max(others, 0))
