"""Staging: prefix pages of the next layer, gathered into HBM while a layer is attended."""

from __future__ import annotations

import logging
from types import ModuleType

import torch

from rheo_sglang.page_table import PageTable
from rheo_sglang.prefill.batch import PrefillBatch, StagedPages
from rheo_sglang.streams import HIGH_PRIORITY, SideStream

logger = logging.getLogger(__name__)

HALVES = 2
GROWTH_STEPS = 4
"""Sizes of a half between two powers of two: it is at most a quarter larger than it has to be."""
LEAST_TOKENS = 4096
FEW_TOKENS = 1024
"""New tokens of a pass up to which there is little to compute: staging takes longest, and may have the GPU."""
STAGERS_ALONE = 128
"""Programs that stage then; pages that come from frames are read as fast as there are programs."""
MIB = 1 << 20


class Staging:
    """Two halves, each K and V of one layer; a layer is staged into one while the last is attended in the other.

    Parameters
    ----------
    kernels
        Module that has the ``stage`` kernel for the pools' device.
    table
        Page table.
    host, frames
        Both pools' blocks, ``[L, N, H, 2, D * P]`` and ``[L, H, F, 2, D * P]``.
    page_size
        Tokens per page.
    dtype
        What attention computes in, and what is staged.

    Notes
    -----
    Layers have to be taken in order, from 0 on. Copies run on a stream of their own. It waits for the main
    stream when a pass begins and whenever a layer is taken, so it reads only host pages and frames that are complete,
    and overwrites only what has been attended. The main stream waits for a layer's copies before it takes the layer,
    hence before it can change that layer's frames.

    Copies begin when a layer's attention does, which takes the longer, the longer the prefix is, as they do.
    """

    def __init__(
        self,
        kernels: ModuleType,
        table: PageTable,
        host: torch.Tensor,
        frames: torch.Tensor,
        page_size: int,
        dtype: torch.dtype,
    ) -> None:
        self.kernels = kernels
        self.table = table
        self.host = host
        self.frames = frames
        self.page_size = page_size
        self.dtype = dtype
        self.layers, self.heads = host.shape[0], host.shape[2]
        self.head_dim = host.shape[4] // page_size
        self.stream = SideStream(frames.device, HIGH_PRIORITY)
        self.halves: list[torch.Tensor] = []
        self.staged: list[torch.cuda.Event | None] = [None] * HALVES
        logger.info(
            "rheo: prefill stages at most %.2f MiB of HBM per 1K tokens of the running prefixes and chunks "
            "(two layers, plus a quarter at most)",
            self.token_bytes * 1024 / MIB,
        )

    @property
    def token_bytes(self) -> int:
        """HBM bytes of one staged token: K and V in both halves."""
        return HALVES * 2 * self.heads * self.head_dim * self.dtype.itemsize

    def begin(self, batch: PrefillBatch) -> None:
        """Start to stage the first layer of a pass, after everything that the main stream was given so far."""
        if batch.prefix is None:
            return
        self.stream.join()
        self._reserve(batch.staged_tokens)
        self._stage(0, batch, batch.prefix)

    def take(
        self, layer: int, k: torch.Tensor, v: torch.Tensor, batch: PrefillBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer: staged prefixes, each followed by its chunk.

        From then on the next layer is being staged.

        Parameters
        ----------
        layer
            Layer index.
        k, v
            The chunks' keys and values, ``[T, H, D]``, KV dtype.
        batch
            The pass.

        Returns
        -------
        tuple of torch.Tensor
            ``[Y, H, D]``, until the next layer is taken; ``k`` and ``v`` themselves if no request has a prefix.
        """
        k, v = k.to(self.dtype), v.to(self.dtype)
        if batch.prefix is None:
            return k, v
        staged = self.staged[layer % HALVES]
        if staged is not None:
            staged.wait()
        keys, values = self._half(layer, batch.staged_tokens)
        keys.index_copy_(0, batch.chunk_rows, k)
        values.index_copy_(0, batch.chunk_rows, v)
        if layer + 1 < self.layers:
            self._stage(layer + 1, batch, batch.prefix)
        return keys, values

    def _stage(self, layer: int, batch: PrefillBatch, prefix: StagedPages) -> None:
        alone = self.frames.is_cuda and len(batch.chunk_rows) <= FEW_TOKENS
        with self.stream.fork(starts_first=True):
            self.kernels.stage(
                self.host[layer],
                self.frames[layer],
                self.table.frame_of[layer],
                *prefix,
                *self._half(layer, batch.staged_tokens),
                self.page_size,
                **({"programs": STAGERS_ALONE} if alone else {}),
            )
        self.staged[layer % HALVES] = self.stream.mark()

    def _half(self, layer: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.halves[layer % HALVES][:, :tokens]
        return keys, values

    def _reserve(self, tokens: int) -> None:
        """Grow both halves to hold ``tokens``; what they held is lost."""
        if self.halves and self.halves[0].shape[1] >= tokens:
            return
        self.halves.clear()
        if self.frames.is_cuda:
            torch.cuda.empty_cache()
        shape = (2, staged_capacity(tokens), self.heads, self.head_dim)
        device = self.frames.device
        self.halves = [torch.empty(shape, dtype=self.dtype, device=device) for _ in range(HALVES)]


def staged_capacity(tokens: int) -> int:
    """Tokens that a half is made for when it has to hold ``tokens``: seldom another number, and never far above."""
    step = max(1 << (tokens.bit_length() - 1), LEAST_TOKENS) // GROWTH_STEPS
    return -(-tokens // step) * step
