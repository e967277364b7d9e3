"""How many host pages and frames a server gets."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from rheo_sglang.config import FLAG, ConfigError, RheoConfig, reject
from rheo_sglang.selection import SUMMARIES

logger = logging.getLogger(__name__)

GIB = 1 << 30
DEFAULT_RATIO = 8.0
MOST_FRAMES = 2**16 - 1
"""Frames of a layer and KV head on a GPU: what the admission kernel can count."""
DRAM_SHARE = 0.8
"""Share of the available DRAM that the host pool takes at most when its size is not given."""


@dataclass(frozen=True)
class KVShape:
    """What one page holds.

    Attributes
    ----------
    layers, kv_heads, head_dim
        Of this rank's part of the model.
    dtype
        KV dtype.
    page_size
        Tokens of a page.
    """

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    page_size: int

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's K and V over all layers and KV heads."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def page_bytes(self) -> int:
        """Bytes of one page's K and V over all layers and KV heads."""
        return self.page_size * self.token_bytes

    def staging_bytes(self, tokens: int) -> int:
        """HBM bytes that prefill stages a prefix of ``tokens`` in: two layers, and a quarter for growth."""
        return tokens * 2 * self.token_bytes // self.layers * 5 // 4

    def table_bytes(self, summary: str) -> int:
        """HBM bytes that every logical page costs: summaries, page table, importance and policy rows."""
        row_bytes = SUMMARIES[summary]().bytes_per_page(self.head_dim, self.dtype)
        return self.layers * self.kv_heads * (row_bytes + 3 * 4)


@dataclass(frozen=True)
class PoolPlan:
    """Sizes of both pools, in pages over all layers and KV heads (the padding page not counted)."""

    host_pages: int
    frame_pages: int


def plan_pools(
    config: RheoConfig,
    shape: KVShape,
    device_bytes: int,
    dram_bytes: int,
    max_total_tokens: int | None,
    frames_in_dram: bool,
) -> PoolPlan:
    """Decide both pool sizes.

    Parameters
    ----------
    config
        Sizes the user asked for.
    shape
        What one page holds.
    device_bytes
        Device memory that SGLang would give the KV cache.
    dram_bytes
        Host memory that is available.
    max_total_tokens
        SGLang's ``--max-total-tokens``: a cap on the tokens the server may hold.
    frames_in_dram
        Whether the frame pool is a second DRAM pool (``--device cpu``).

    Raises
    ------
    ConfigError
        If the page summary does not serve the model's shape, a size asked for is not to be had, or the host pool would
        be smaller than the frame pool.
    """
    reason = SUMMARIES[config.summary]().unsupported(shape.head_dim, shape.page_size, shape.dtype)
    if reason is not None:
        others = [name for name in SUMMARIES.names() if name != config.summary]
        reject("summary", config.summary, f"{', '.join(others)} ({config.summary} {reason})")
    table_bytes = shape.table_bytes(config.summary)
    frame_pages = _frames_asked(config, shape)
    if config.host_pool_gib is not None:
        host_pages = int(config.host_pool_gib * GIB) // shape.page_bytes
    elif frame_pages is not None:
        host_pages = int(frame_pages * (config.host_pool_ratio or DEFAULT_RATIO))
    else:
        ratio = config.host_pool_ratio or DEFAULT_RATIO
        room = dram_bytes * DRAM_SHARE if frames_in_dram else device_bytes
        shares = (1 + 1 / ratio) if frames_in_dram else (1 / ratio)
        host_pages = int(room / (shape.page_bytes * shares + table_bytes))
    if max_total_tokens is not None:
        asked = max_total_tokens // shape.page_size
        derived = config.host_pool_gib is None and config.host_pool_ratio is None
        host_pages = asked if derived else min(host_pages, asked)

    dram_room = dram_bytes
    if frames_in_dram:
        derived_frames = 1 / (config.host_pool_ratio or DEFAULT_RATIO) if frame_pages is None else 0
        dram_room = int((dram_bytes - (frame_pages or 0) * shape.page_bytes) / (1 + derived_frames))
    if host_pages * shape.page_bytes > dram_room:
        if config.host_pool_gib is not None or config.host_pool_ratio is not None:
            raise ConfigError(
                f"{FLAG}: a host pool of {host_pages * shape.page_bytes / GIB:.2f} GiB does not fit into the "
                f"{dram_room / GIB:.2f} GiB of available DRAM; allowed: a smaller host_pool_gib or host_pool_ratio"
            )
        host_pages = int(dram_room * DRAM_SHARE) // shape.page_bytes
        logger.warning(
            "rheo: the host pool is cut to %.2f GiB, %d %% of the available DRAM; "
            "set host_pool_gib to choose its size",
            host_pages * shape.page_bytes / GIB,
            100 * DRAM_SHARE,
        )
    if frame_pages is None:
        if frames_in_dram:
            frame_pages = max(1, int(host_pages / (config.host_pool_ratio or DEFAULT_RATIO)))
        else:
            device_room = device_bytes - host_pages * table_bytes
            frame_pages = max(0, min(host_pages, device_room // shape.page_bytes, MOST_FRAMES))
    if not frames_in_dram and frame_pages > MOST_FRAMES:
        raise ConfigError(
            f"{FLAG}: a frame pool of {frame_pages * shape.page_size} tokens is more than kernels can count; allowed: "
            f"frame_pool_gib or frame_pool_tokens up to {MOST_FRAMES * shape.page_size} tokens, or a larger --page-size"
        )
    if not frames_in_dram and frame_pages * shape.page_bytes + host_pages * table_bytes > device_bytes:
        raise ConfigError(
            f"{FLAG}: a frame pool of {frame_pages * shape.page_bytes / GIB:.2f} GiB and the page table of a host "
            f"pool of {host_pages * shape.page_bytes / GIB:.2f} GiB ({host_pages * table_bytes / GIB:.2f} GiB) do "
            f"not fit into the {device_bytes / GIB:.2f} GiB of device memory that --mem-fraction-static leaves; "
            "allowed: a smaller frame_pool_gib or host_pool_gib"
        )
    if host_pages < frame_pages:
        raise ConfigError(
            f"{FLAG}: the host pool ({host_pages * shape.page_size} tokens) is smaller than the frame pool "
            f"({frame_pages * shape.page_size} tokens); allowed: host_pool_gib, host_pool_ratio or "
            "--max-total-tokens that make it at least as large"
        )
    if frame_pages < 1:
        raise ConfigError(
            f"{FLAG}: no frame fits (one page takes {shape.page_bytes / GIB:.4f} GiB); allowed: a larger "
            "frame_pool_gib or frame_pool_tokens"
        )
    return PoolPlan(host_pages, frame_pages)


def _frames_asked(config: RheoConfig, shape: KVShape) -> int | None:
    if config.frame_pool_tokens is not None:
        return config.frame_pool_tokens // shape.page_size
    if config.frame_pool_gib is not None:
        return int(config.frame_pool_gib * GIB) // shape.page_bytes
    return None
