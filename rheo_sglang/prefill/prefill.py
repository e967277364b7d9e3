"""Prefill: dense attention over prefix and chunk, and what it leaves behind in host pages and metadata."""

from __future__ import annotations

from types import ModuleType

import torch

from rheo_kernels import reference
from rheo_sglang.config import RheoConfig
from rheo_sglang.page_table import PageTable
from rheo_sglang.prefill.batch import PrefillBatch
from rheo_sglang.prefill.dense import dense_attention
from rheo_sglang.prefill.seed import SeedAdmission, Seeding
from rheo_sglang.prefill.staging import Staging
from rheo_sglang.prefill.streams import CopyStream


class Prefill:
    """Writes a chunk to host pages, attends it densely, seeds importance and offers frames to the best pages.

    Parameters
    ----------
    config
        Settings.
    table
        Page table.
    host, frames
        Both pools' blocks, ``[L, N, H, 2, D * P]`` and ``[L, H, F, 2, D * P]``; on a GPU, ``host`` is pinned.
    page_size
        Tokens per page.
    residency
        Gives pages frames.

    Notes
    -----
    On a GPU nothing here waits for it. Host pages are written on a stream of their own while the chunk is attended,
    and are complete before the layer's pages are offered frames.
    """

    def __init__(
        self,
        config: RheoConfig,
        table: PageTable,
        host: torch.Tensor,
        frames: torch.Tensor,
        page_size: int,
        residency: SeedAdmission,
    ) -> None:
        self.table = table
        self.host = host
        self.page_size = page_size
        self.kernels = kernels_of(frames.device)
        self.stream = CopyStream(frames.device)
        self.staging = Staging(self.kernels, table, host, frames, page_size)
        self.attend = dense_attention(frames.device, frames.dtype, self.staging.head_dim)
        self.seeding = Seeding(config, self.kernels, table, residency, page_size)

    def begin(self, batch: PrefillBatch) -> None:
        """Begin a pass: its first layers' prefixes are being staged from now on.

        Parameters
        ----------
        batch
            The pass. Everything that its prefix pages and their frames wait for is on the current stream.
        """
        self.staging.begin(batch)

    def __call__(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        slots: torch.Tensor,
        batch: PrefillBatch,
        scale: float,
    ) -> torch.Tensor:
        """Run one layer of a pass that has begun; layers run in order, from 0 on.

        Parameters
        ----------
        layer
            Layer index within this rank.
        q
            Queries of all chunks, ``[T, Hq, D]``.
        k, v
            Keys and values, ``[T, H, D]``, KV dtype.
        slots
            Slots of the chunks' tokens, ``[T]``, int64.
        batch
            The pass.
        scale
            Softmax scale.

        Returns
        -------
        torch.Tensor
            Attention output, ``[T, Hq, D]``, the queries' dtype.
        """
        keys, values = self.staging.take(layer, k, v, batch)
        with self.stream.fork(ahead=True):
            self.kernels.write(k, v, slots, self.host[layer], self.table.metadata[layer], self.page_size)
        queries = q.to(keys.dtype)
        out = self.attend(queries, keys, values, batch, scale)
        mass = self.seeding.page_mass(queries, keys, batch, scale)
        self.staging.give_back(layer, batch)
        self.stream.join()
        self.seeding(layer, mass, batch)
        return out.to(q.dtype)


def kernels_of(device: torch.device) -> ModuleType:
    """Triton kernels on a GPU, their references on the CPU."""
    if device.type == "cpu":
        return reference
    from rheo_kernels import triton

    return triton
