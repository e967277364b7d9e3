"""Vectors in a few bits, and the rotation before it."""

from __future__ import annotations

import torch


def hadamard(dim: int) -> torch.Tensor:
    """An orthogonal matrix of Hadamard's with random, fixed signs, ``[D, D]``, float32; ``D`` is a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < dim:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    signs = torch.randint(0, 2, (dim, 1), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    return signs * matrix / dim**0.5


def symmetric(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Rounded to ``bits`` with one bfloat16 scale for each vector ``[..., D]``."""
    top = 2 ** (bits - 1) - 1
    unit = (values.abs().amax(-1, keepdim=True) / top).bfloat16().float().clamp(min=1e-7)
    return (values / unit).round().clamp(-top, top) * unit


def symmetric_bytes(dim: int, bits: int) -> int:
    """Bytes of a vector that `symmetric` rounded: codes and the scale."""
    return dim * bits // 8 + 2
