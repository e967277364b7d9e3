"""make_attention: the fastest attention that serves a shape on the frames' device."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from rheo_kernels.cuda.attend import unsupported
from rheo_kernels.cuda.shape import Shape
from rheo_kernels.types import KVScales
from rheo_sglang.decode.attention import Attention
from rheo_sglang.decode.cuda_attention import CudaAttention
from rheo_sglang.decode.heads import HeadShape
from rheo_sglang.decode.triton_attention import TritonAttention

logger = logging.getLogger(__name__)


def make_attention(
    host: torch.Tensor,
    frames: torch.Tensor,
    heads: HeadShape,
    page_size: int,
    scales: Sequence[KVScales] = (),
    compute_dtype: torch.dtype | None = None,
) -> Attention[Any]:
    """Attention in CUDA C++ where it runs, else in Triton; see `Attention` for the parameters."""
    inputs = host, frames, heads, page_size, scales, compute_dtype
    if frames.device.type != "cuda":
        return TritonAttention(*inputs)
    shape = Shape(heads.dim, page_size, heads.group, compute_dtype or frames.dtype, frames.dtype)
    reason = unsupported(shape, frames.device)
    if reason is None:
        return CudaAttention(*inputs)
    logger.info("rheo: decode attention runs in Triton, not in CUDA C++: %s", reason)
    return TritonAttention(*inputs)
