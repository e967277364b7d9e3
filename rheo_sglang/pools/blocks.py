"""Host pool and frame pool: page blocks in DRAM and in HBM."""

from __future__ import annotations

import math

import torch

from rheo_sglang.pools.memory import map_memory
from rheo_sglang.pools.pinned import pinned_zeros


def host_pool(
    layers: int,
    pages: int,
    kv_heads: int,
    head_dim: int,
    page_size: int,
    dtype: torch.dtype,
    pinned: bool = False,
) -> torch.Tensor:
    """Allocate the home of every logical page; pinned where a GPU reads and writes it.

    Returns
    -------
    torch.Tensor
        Page blocks ``[L, N, H, 2, D * P]`` in DRAM: one page's blocks over all KV heads of a layer are contiguous,
        so saving and loading whole pages moves long runs.
    """
    shape = (layers, pages, kv_heads, 2, head_dim * page_size)
    if pinned:
        return pinned_zeros(shape, dtype)
    size = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(map_memory(size))[:size].view(dtype).view(shape)


def frame_pool(
    layers: int,
    kv_heads: int,
    frames: int,
    head_dim: int,
    page_size: int,
    dtype: torch.dtype,
    device: str | torch.device,
) -> torch.Tensor:
    """Allocate the frames.

    Returns
    -------
    torch.Tensor
        Page blocks ``[L, H, F, 2, D * P]`` on ``device``. Every layer and KV head has its own ``F`` frames.
    """
    shape = (layers, kv_heads, frames, 2, head_dim * page_size)
    return torch.zeros(shape, dtype=dtype, device=device)
