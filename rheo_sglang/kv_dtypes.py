"""KV dtypes: what blocks may hold K and V in, what attention computes in, and what a loaded model means for 8 bits."""

from __future__ import annotations

import logging
from typing import Any

import torch

from rheo_kernels.types import UNSCALED, KVScales
from rheo_kernels.types.kv_scales import EIGHT_BITS

logger = logging.getLogger(__name__)

KV_DTYPES = (torch.float32, torch.float16, torch.bfloat16, EIGHT_BITS)
KV_DTYPE_NAMES = ("auto", "bf16", "bfloat16", "fp8_e4m3")
"""Values of ``--kv-cache-dtype``."""
FIRST_WITH_EIGHT_BITS = (8, 9)
"""Compute capability of the first GPUs that convert from 8 bits."""


def compute_dtype(kv_dtype: torch.dtype, model_dtype: torch.dtype) -> torch.dtype:
    """What attention computes in: the KV dtype or, where that is of 8 bits, the model's."""
    return model_dtype if kv_dtype == EIGHT_BITS else kv_dtype


def layer_scales(model: torch.nn.Module, kv_dtype: torch.dtype) -> list[KVScales]:
    """Scales of every attention layer of a loaded model, or of this rank's part of it, in their order.

    They are those that SGLang found in the checkpoint, 1 where there were none, and only of 8 bits: SGLang divides by
    them when it rounds to another dtype than the model's, and the other KV dtypes have the range of what they store.
    """
    from sglang.srt.layers.radix_attention import RadixAttention

    layers = [module for module in model.modules() if isinstance(module, RadixAttention)]
    if kv_dtype != EIGHT_BITS:
        return [UNSCALED] * len(layers)
    layers.sort(key=lambda layer: layer.layer_id)
    return [KVScales(_scale(layer, "k_scale"), _scale(layer, "v_scale")) for layer in layers]


def warn_of_biases(model: torch.nn.Module, architecture: str, kv_dtype: torch.dtype) -> None:
    """Log one sentence where KV of 8 bits would hold keys that have biases."""
    if kv_dtype == EIGHT_BITS and keys_have_biases(model):
        logger.warning(
            "rheo: 8 bits may hold the keys of %s badly, for they have biases, and three bits of mantissa round large "
            "constants and what differs between tokens alike: Qwen2.5-Coder-1.5B was useless so, in dense attention "
            "too; compare with --kv-cache-dtype auto before you serve (docs/memory.md)",
            architecture,
        )


def keys_have_biases(model: torch.nn.Module) -> bool:
    """Whether a loaded model, or this rank's part of it, adds constants to its keys, as Qwen2 does.

    Biases that are all 0 do not count, nor do those of encoders, which have no KV cache.
    """
    from sglang.srt.layers.linear import QKVParallelLinear
    from sglang.srt.layers.radix_attention import RadixAttention

    for name, module in model.named_modules():
        if not isinstance(module, RadixAttention):
            continue
        for part, projection in model.get_submodule(name.rpartition(".")[0]).named_children():
            bias = getattr(projection, "bias", None)
            if not isinstance(bias, torch.Tensor):
                continue
            if isinstance(projection, QKVParallelLinear):
                first = projection.num_heads * projection.head_size
                bias = bias[first : first + projection.num_kv_heads * projection.head_size]
            elif part != "k_proj":
                continue
            if bool(bias.any()):
                return True
    return False


def _scale(layer: Any, name: str) -> float:
    """The number of which SGLang keeps a tensor, and a copy on the host where the checkpoint had one."""
    value = getattr(layer, f"{name}_float", None)
    if value is None:
        value = getattr(layer, name, None)
    return 1.0 if value is None else float(value)
