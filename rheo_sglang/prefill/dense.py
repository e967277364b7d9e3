"""Dense attention of chunks over contiguous K and V: FlashAttention-3 where there is one, else torch's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from rheo_sglang.prefill.batch import PrefillBatch

logger = logging.getLogger(__name__)

DenseAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, PrefillBatch, float], torch.Tensor]
"""Takes queries ``[T, Hq, D]``, keys and values ``[Y, H, D]`` of one dtype, the batch and the softmax scale; returns
``[T, Hq, D]``. Every query attends its request's keys up to its own."""

HOPPER = 9
FLASH_DTYPES = (torch.float16, torch.bfloat16)


def dense_attention(device: torch.device, dtype: torch.dtype, head_dim: int) -> DenseAttention:
    """Choose the fastest implementation that runs here, and log which one.

    Parameters
    ----------
    device, dtype, head_dim
        Of the KV cache.
    """
    flash = _flash_attention_3(device, dtype, head_dim) if device.type == "cuda" else None
    logger.info("rheo: dense prefill with %s", "FlashAttention-3" if flash else "torch's attention")
    return flash or torch_attention


def torch_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: PrefillBatch, scale: float
) -> torch.Tensor:
    """Attend one request after the other; see `DenseAttention`.

    Notes
    -----
    On a GPU in half precision no mask exists in memory; elsewhere one request's mask does.
    """
    out = torch.empty_like(q)
    spans = zip(pairwise(batch.query_starts), pairwise(batch.key_starts), strict=True)
    for (first, end), (first_key, end_key) in spans:
        queries, keys, values = (
            part.transpose(0, 1)[None] for part in (q[first:end], k[first_key:end_key], v[first_key:end_key])
        )
        attended = scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=causal_lower_right(end - first, end_key - first_key),
            scale=scale,
            enable_gqa=queries.shape[1] != keys.shape[1],
        )
        out[first:end] = attended[0].transpose(0, 1)
    return out


def _flash_attention_3(device: torch.device, dtype: torch.dtype, head_dim: int) -> DenseAttention | None:
    """All requests in one call of FlashAttention-3, or None if it does not run here."""
    if dtype not in FLASH_DTYPES or torch.cuda.get_device_capability(device)[0] != HOPPER:
        return None
    try:
        from sgl_kernel.flash_attn import flash_attn_varlen_func

        def attend(
            q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: PrefillBatch, scale: float
        ) -> torch.Tensor:
            return flash_attn_varlen_func(
                q=q,
                k=k,
                v=v,
                cu_seqlens_q=batch.cu_queries,
                cu_seqlens_k=batch.cu_keys,
                max_seqlen_q=_longest(batch.query_starts),
                max_seqlen_k=_longest(batch.key_starts),
                softmax_scale=scale,
                causal=True,
                num_splits=0,
            )

        one = torch.zeros((1, 1, head_dim), dtype=dtype, device=device)
        ends = torch.tensor([0, 1], dtype=torch.int32, device=device)
        flash_attn_varlen_func(
            q=one,
            k=one,
            v=one,
            cu_seqlens_q=ends,
            cu_seqlens_k=ends,
            max_seqlen_q=1,
            max_seqlen_k=1,
            causal=True,
        )
        torch.cuda.synchronize(device)
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        logger.info("rheo: FlashAttention-3 is not usable: %s", error)
        return None
    return attend


def _longest(starts: list[int]) -> int:
    return max(end - start for start, end in pairwise(starts))
