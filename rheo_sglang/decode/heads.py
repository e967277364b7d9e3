"""HeadShape: the attention heads of one rank, as its loaded layers have them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from sglang.srt.layers.radix_attention import RadixAttention

from rheo_sglang.errors import ConfigError


class HeadShape(NamedTuple):
    """KV heads ``H``, query heads per KV head ``G``, and their dimension ``D``."""

    kv_heads: int
    group: int
    dim: int


def loaded_heads(model: torch.nn.Module) -> HeadShape:
    """Heads of this rank, from the attention layers that SGLang built.

    The model's configuration cannot tell: where there are more ranks than KV heads, every rank has one KV head, and
    its group is smaller than that of the whole model.

    Parameters
    ----------
    model
        The loaded model, or this pipeline stage's part of it.

    Raises
    ------
    ConfigError
        If it has no attention layers, or if they differ.
    """
    layers = [module for module in model.modules() if isinstance(module, RadixAttention)]
    shapes = {
        (layer.tp_q_head_num, layer.tp_k_head_num, layer.tp_v_head_num, layer.head_dim, layer.v_head_dim)
        for layer in layers
    }
    if len(shapes) != 1:
        found = "; ".join(
            f"{queries} query, {keys} K and {values} V heads of sizes {dim} and {v_dim}"
            for queries, keys, values, dim, v_dim in sorted(shapes)
        )
        raise ConfigError(
            f"--attention-backend: 'rheo' does not support this model, whose attention layers have "
            f"{found or 'no heads: there are none'}; allowed: layers that all have the same heads"
        )
    queries, keys, values, dim, v_dim = shapes.pop()
    if keys != values or dim != v_dim or queries % keys:
        raise ConfigError(
            f"--attention-backend: 'rheo' does not support attention layers with {queries} query, {keys} K and "
            f"{values} V heads of sizes {dim} and {v_dim}; allowed: as many K as V heads of one size, and a "
            "multiple of them of query heads"
        )
    return HeadShape(keys, queries // keys, dim)
