"""place: copy whole pages that a prefill pass has in contiguous K and V into the frames they were admitted to."""

from __future__ import annotations

import torch

from rheo_kernels.reference.blocks import block_keys, block_values


def place(
    k: torch.Tensor,
    v: torch.Tensor,
    row_of: torch.Tensor,
    pages: torch.Tensor,
    targets: torch.Tensor,
    counts: torch.Tensor,
    frames: torch.Tensor,
) -> None:
    """Write pages, given token by token, to frames as blocks.

    Parameters
    ----------
    k, v
        Keys and values, ``[Y, H, D]``; what the KV dtype stands for.
    row_of
        Row of ``k`` and ``v`` with the first token of each logical page, ``[N]``, int32; its other tokens follow.
    pages, targets
        Logical page and frame of each copy, ``[H, C]``, int32; targets of a row are distinct.
    counts
        Copies of each KV head, the first columns, ``[H]``, int32.
    frames
        One layer's frames, ``[H, F, 2, D * P]``; written.
    """
    page_size = frames.shape[3] // k.shape[2]
    columns = torch.arange(pages.shape[1], device=pages.device)
    head, column = (columns < counts[:, None]).nonzero(as_tuple=True)
    frame = targets[head, column].long()
    offset = torch.arange(page_size, device=pages.device)
    tokens = row_of[pages[head, column].long()].long()[:, None] + offset
    block_keys(frames, page_size)[head, frame] = k[tokens, head[:, None]].transpose(1, 2).to(frames.dtype)
    block_values(frames, page_size)[head, frame] = v[tokens, head[:, None]].to(frames.dtype)
