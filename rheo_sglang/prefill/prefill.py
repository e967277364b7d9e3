"""Prefill: dense attention over prefix and chunk, and what it leaves behind in host pages and summaries."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from rheo_kernels import reference
from rheo_kernels.reference import quantise
from rheo_kernels.types import UNSCALED, KVScales
from rheo_sglang.page_lists import page_lists
from rheo_sglang.page_table import PageTable
from rheo_sglang.prefill.batch import PrefillBatch, build_prefill_batch
from rheo_sglang.prefill.calibrate import Calibration
from rheo_sglang.prefill.dense import dense_attention
from rheo_sglang.prefill.seed import SeedAdmission, Seeding
from rheo_sglang.prefill.staging import Staging
from rheo_sglang.streams import HIGH_PRIORITY, SideStream

if TYPE_CHECKING:
    from rheo_sglang.traces import Tracer

logger = logging.getLogger(__name__)

MOST_OFFERED = 1 << 15
"""Pages that one pass offers frames at most: what one program of the admission kernel holds."""


class Prefill:
    """Writes a chunk to host pages, attends it densely, seeds the policy and offers frames to the best pages.

    Parameters
    ----------
    table
        Page table.
    host, frames
        Both pools' blocks, ``[L, N, H, 2, D * P]`` and ``[L, H, F, 2, D * P]``; on a GPU, ``host`` is pinned.
    page_size
        Tokens per page.
    residency
        Gives pages frames.
    tracer
        Records what prompts attended, or None.
    scales
        Of every layer; 1 by default.
    compute_dtype
        What attention computes in; the KV dtype by default.
    corrections
        Of estimates, ``[L, R, H, M]``, int8, which prompts leave behind; None if they leave none.

    Notes
    -----
    On a GPU nothing here waits for it. Host pages are written on a stream of their own while the chunk is attended, and
    are complete before the next layer begins; pages get their frames' data from the staged K and V.
    """

    def __init__(
        self,
        table: PageTable,
        host: torch.Tensor,
        frames: torch.Tensor,
        page_size: int,
        residency: SeedAdmission,
        tracer: Tracer | None = None,
        scales: Sequence[KVScales] = (),
        compute_dtype: torch.dtype | None = None,
        corrections: torch.Tensor | None = None,
    ) -> None:
        self.table = table
        self.host = host
        self.scales = scales or [UNSCALED] * len(host)
        self.dtype = dtype = compute_dtype or host.dtype
        self.page_size = page_size
        self.kernels = kernels_of(frames.device)
        self.stream = SideStream(frames.device, HIGH_PRIORITY)
        self.staging = Staging(self.kernels, table, host, frames, page_size, dtype)
        self.attend = dense_attention(frames.device, dtype, self.staging.head_dim)
        self.seeding = Seeding(self.kernels, table, residency, page_size, tracer)
        self.calibration = None
        if corrections is not None:
            self.calibration = Calibration(table, corrections, page_size, self.staging.head_dim)
        self.room: int | None = None
        self.columns: int | None = None

    def warm_up(self, group: int, columns: int) -> None:
        """Compile all kernels for the shapes that passes will have, so that no request waits for a compiler.

        Runs two passes over the padding page, whose content nobody reads. From then on, passes describe their pages
        in ``columns`` columns and offer `room` pages frames, however short their prompts are.

        Parameters
        ----------
        group
            Query heads of a KV head.
        columns
            Pages of the longest prompt.
        """
        start = time.monotonic()
        self.columns = columns
        self.room = min(1 << (columns - 1).bit_length(), MOST_OFFERED)
        device, heads, dim = self.table.frame_of.device, self.staging.heads, self.staging.head_dim
        pages = torch.zeros((2, columns), dtype=torch.int32, device=device)
        slots = torch.zeros(2, dtype=torch.int64, device=device)
        for prefix in (0, self.page_size):
            batch = build_prefill_batch(pages, [prefix] * 2, [1, 1], self.page_size, room=self.room)
            self.begin(batch, batch.num_pages, slots)
            shape = (2, heads, dim)
            q = torch.zeros((2, heads * group, dim), dtype=self.dtype, device=device)
            k, v = (torch.zeros(shape, dtype=self.dtype, device=device) for _ in range(2))
            for layer in range(len(self.host)):
                self(layer, q, k, v, slots, batch, 1.0)
        self.table.policy.release(torch.zeros(1, dtype=torch.int64, device=device))
        logger.info("rheo: prefill warmed up in %.1f s", time.monotonic() - start)

    def describe(
        self,
        req_to_token: torch.Tensor,
        rows: torch.Tensor,
        prefixes: Sequence[int],
        lengths: Sequence[int],
        last_goes_on: bool,
    ) -> PrefillBatch:
        """Describe a pass in pages; see `build_prefill_batch`.

        Parameters
        ----------
        req_to_token
            SGLang's token table, ``[R, context]``.
        rows
            Requests' rows in it, ``[B]``.
        prefixes, lengths
            Tokens before each chunk and in it.
        last_goes_on
            Whether the last request's prompt has more chunks to come.
        """
        longest = max(prefix + length for prefix, length in zip(prefixes, lengths, strict=True))
        tokens = longest if self.columns is None else self.columns * self.page_size
        pages = page_lists(req_to_token, rows, tokens, self.page_size)
        return build_prefill_batch(pages, prefixes, lengths, self.page_size, last_goes_on, self.room)

    def begin(self, batch: PrefillBatch, caps: torch.Tensor, rows: torch.Tensor) -> None:
        """Begin a pass: its first layer's prefixes are being staged from now on.

        Parameters
        ----------
        batch
            The pass. Everything that its prefix pages and their frames wait for is on the current stream.
        caps
            Pages that a decode step of each request may select, ``[B]``, int32.
        rows
            Requests' rows in the token table, ``[B]``.
        """
        self.staging.begin(batch)
        self.seeding.begin(batch, caps)
        if self.calibration is not None:
            self.calibration.begin(rows, batch)

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
            Keys and values, ``[T, H, D]``; KV dtype, or the model's where that is of 8 bits.
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
        scales = self.scales[layer]
        k, v = quantise(k, scales.k, self.host.dtype), quantise(v, scales.v, self.host.dtype)
        scale *= scales.k
        keys, values = self.staging.take(layer, k, v, batch)
        with self.stream.fork(starts_first=True):
            summary, summaries = self.table.summary, self.table.summaries[layer]
            self.kernels.write(k, v, slots, self.host[layer], summary, summaries, self.page_size)
        queries = q.to(keys.dtype)
        out = self.attend(queries, keys, values, batch, scale)
        mass = self.seeding.page_mass(queries, keys, batch, scale)
        self.seeding(layer, mass, keys, values, batch)
        self.stream.join()
        if self.calibration is not None and mass is not None:
            self.calibration(layer, queries, mass, scale)
        return out.to(q.dtype) if scales.v == 1.0 else (out * scales.v).to(q.dtype)


def kernels_of(device: torch.device) -> ModuleType:
    """Triton kernels on a GPU, their references on the CPU."""
    if device.type == "cpu":
        return reference
    from rheo_kernels import triton

    return triton
