"""quantise and widen: between K and V as they are computed with and as blocks hold them."""

from __future__ import annotations

import torch

from rheo_kernels.types.kv_scales import EIGHT_BITS, LARGEST


def quantise(values: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    """What blocks hold of K or V.

    Parameters
    ----------
    values
        K or V, any floating dtype and shape.
    scale
        See `rheo_kernels.types.KVScales`; 1 where the KV dtype is not of 8 bits.
    dtype
        KV dtype.

    Returns
    -------
    torch.Tensor
        ``values * (1 / scale)`` in float32, rounded to nearest and ties to even; beyond the largest number of
        8 bits it is that one.
    """
    if dtype != EIGHT_BITS:
        return values.to(dtype)
    return (values.float() * (1 / scale)).clamp(-LARGEST, LARGEST).to(dtype)


def widen(stored: torch.Tensor) -> torch.Tensor:
    """The numbers that 8 bits stand for, float32; other dtypes as they are."""
    return stored.float() if stored.dtype == EIGHT_BITS else stored
