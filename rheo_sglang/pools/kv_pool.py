"""RheoKVPool: the KV pool that SGLang sees, addressed by slots of the logical space."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from sglang.srt.mem_cache.memory_pool import KVCache

from rheo_kernels.types import KVScales
from rheo_sglang.config import RheoConfig
from rheo_sglang.page_table import PageTable
from rheo_sglang.pools.blocks import frame_pool, host_pool

logger = logging.getLogger(__name__)


class RheoKVPool(KVCache):
    """Host pages, frames and the page table that joins them.

    Parameters
    ----------
    size
        Tokens of the logical space, a multiple of ``page_size``; the padding page is added.
    page_size
        Tokens per page.
    dtype
        KV dtype.
    head_num, head_dim, layer_num
        KV heads, head dimension and layers of this rank's part of the model.
    device
        Where frames, page table and summaries live.
    frame_pages
        ``F``: frames of each layer and KV head.
    config
        Settings.
    start_layer, end_layer
        First and last layer of this pipeline rank.
    compute_dtype
        What attention computes in; the KV dtype by default.

    Attributes
    ----------
    host
        Host pages, ``[L, N, H, 2, D * P]``.
    frames
        Frames, ``[L, H, F, 2, D * P]``.
    scales
        What K and V of each layer are divided by before they are stored in 8 bits; of the loaded model, empty before.
    table
        Residency, summaries and worth of every logical page.
    mem_usage
        GiB that SGLang shows as the KV cache's: what all of this takes on the device. Host pages are in the device's
        memory without a GPU alone; beside one they are DRAM.
    """

    def __init__(
        self,
        size: int,
        page_size: int,
        dtype: torch.dtype,
        head_num: int,
        head_dim: int,
        layer_num: int,
        device: str,
        frame_pages: int,
        config: RheoConfig,
        start_layer: int | None = None,
        end_layer: int | None = None,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            size, page_size, dtype, layer_num, device, False, start_layer=start_layer, end_layer=end_layer
        )
        self.head_num, self.head_dim, self.v_head_dim = head_num, head_dim, head_dim
        self.config = config
        self.scales: Sequence[KVScales] = ()
        self.compute_dtype = compute_dtype = compute_dtype or dtype
        pages = size // page_size + 1
        self.host = host_pool(layer_num, pages, head_num, head_dim, page_size, dtype, device != "cpu")
        self.frames = frame_pool(layer_num, head_num, frame_pages, head_dim, page_size, dtype, device)
        self.table = PageTable(
            layer_num,
            head_num,
            head_dim,
            page_size,
            pages,
            frame_pages,
            config.page_summary(head_dim, page_size, compute_dtype),
            config.policy,
            compute_dtype,
            device,
            config.importance_alpha,
            prewarm=config.prewarm_weight(torch.device(device).type),
        )
        kept = (self.frames, self.table, *((self.host,) if device == "cpu" else ()))
        self.mem_usage = sum(part.nbytes for part in kept) / (1 << 30)
        logger.info(
            "rheo: host pool %d tokens (%.2f GiB), frame pool %d tokens (%.2f GiB), page table and summaries "
            "%.2f GiB, page size %d",
            size,
            self.host.nbytes / (1 << 30),
            frame_pages * page_size,
            self.frames.nbytes / (1 << 30),
            (self.table.summaries.nbytes + 4 * self.table.policy.worth.nbytes) / (1 << 30),
            page_size,
        )

    def get_kv_size_bytes(self) -> tuple[int, int]:
        """Bytes of K and of V in the frame pool."""
        return self.frames.nbytes // 2, self.frames.nbytes // 2

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        """Not offered: K of a token is in a frame, in a host page, or in both."""
        raise NotImplementedError("the rheo KV pool has no flat K buffer; this SGLang feature needs one")

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        """Not offered; see `get_key_buffer`."""
        raise NotImplementedError("the rheo KV pool has no flat V buffer; this SGLang feature needs one")

    def get_kv_buffer(self, layer_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Not offered; see `get_key_buffer`."""
        return self.get_key_buffer(layer_id), self.get_value_buffer(layer_id)

    def set_kv_buffer(self, *args: object, **kwargs: object) -> None:
        """Not offered: the rheo attention backend writes pages itself."""
        raise NotImplementedError("the rheo KV pool is written by the rheo attention backend only")
