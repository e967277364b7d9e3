"""DecodeBuffers: what the kernels of one decode step hand each other, allocated once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rheo_kernels.types import Admitted, DecodeBatch, RunnersUp, Selected
from rheo_sglang.cpu_offload.cpu_attention import CpuAttention
from rheo_sglang.cpu_offload.service import CpuService
from rheo_sglang.decode.heads import HeadShape
from rheo_sglang.decode.variant import Variant

MOST_CANDIDATES = 2048
"""Pages per KV head that one step considers for admission, misses first."""
MOST_RUNNERS_UP = 512
"""Runners-up of one layer that are considered, over all requests and KV heads."""
RUNNERS_UP_PER_LIST = 128
"""What a selection knows at most."""
STAGED_BYTES = 64 * 2**20
"""Fetched pages of one layer that are kept on the device until they are admitted; misses beyond are not admitted."""


@dataclass
class StepBuffers:
    """Views of the buffers for one batch size and variant.

    Attributes
    ----------
    variant
        The shape that they are for.
    batch
        The described batch.
    rows
        The recorder's row of each request, ``[B]``, int64.
    workspace
        What the attention kernels need.
    scores
        ``[B, H, M]``, float32.
    allowed
        Pages that may be selected, ``[B, H]``, int32, where the budget rule reads scores.
    selected
        Resolved selection of every layer; one after the other use the same memory, unless misses are shared with the
        CPU: then loading them goes on behind the layers that follow.
    cpu_begin
        Of every layer, the first column that the CPU attends, ``[B, H]``, int32, if misses are shared.
    runners_up
        Of every layer, pages without a frame that the selection left out, if the kernels list them.
    candidates, worth, num_candidates
        Pages offered frames, ``[H, C]``, int32 and float32, and how many, ``[H]``, int32.
    admitted
        Pages that got one, for every layer.
    staged
        Fetched pages, ``[B * H, room, 2, D * P]``, if misses are fetched.
    cpu
        Attends misses on the CPU, if that is where all are attended.
    service
        Attends the CPU's part of them, if they are shared.
    """

    variant: Variant
    batch: DecodeBatch
    rows: torch.Tensor
    workspace: Any
    scores: torch.Tensor | None = None
    allowed: torch.Tensor | None = None
    selected: list[Selected] | None = None
    cpu_begin: list[torch.Tensor] | None = None
    runners_up: list[RunnersUp] | None = None
    candidates: torch.Tensor | None = None
    worth: torch.Tensor | None = None
    num_candidates: torch.Tensor | None = None
    admitted: list[Admitted] | None = None
    staged: torch.Tensor | None = None
    cpu: CpuAttention | None = None
    service: CpuService | None = None


class DecodeBuffers:
    """Buffers for up to ``batch`` requests in any variant.

    Parameters
    ----------
    batch
        Most requests.
    variants
        Shapes to serve.
    heads
        Heads of this rank.
    frames
        Frames, ``[L, H, F, 2, D * P]``; the buffers live where they do.
    workspace
        Makes what the attention kernels need for a batch and a width.
    cpu
        For up to as many requests, if misses are attended on the CPU.
    service
        The same, if they are shared with it.
    runners_up
        Whether the kernels list runners-up, and not every page has a frame anyway.
    """

    def __init__(
        self,
        batch: int,
        variants: list[Variant],
        heads: HeadShape,
        frames: torch.Tensor,
        workspace: Callable[[int, int], Any],
        cpu: CpuAttention | None = None,
        service: CpuService | None = None,
        runners_up: bool = False,
    ) -> None:
        self.capacity = batch
        self.cpu = cpu
        self.service = service
        self.heads = heads
        self.workspace = workspace
        layers, _, self.frames, _, block = frames.shape
        device = frames.device
        columns, width = max(v.columns for v in variants), max(v.width for v in variants)
        self.described = DecodeBatch.allocate(batch, columns, device)
        self.rows = torch.zeros(batch, dtype=torch.int64, device=device)
        kv = heads.kv_heads
        self.scores = torch.zeros((batch, kv, columns), dtype=torch.float32, device=device)
        self.allowed = torch.zeros((batch, kv), dtype=torch.int32, device=device)
        copies = 1 if service is None else layers
        self.lists = torch.zeros((4, batch * kv * width), dtype=torch.int32, device=device)
        self.misses = torch.zeros((copies, batch * kv * width), dtype=torch.int32, device=device)
        self.counts = torch.zeros((copies, 3, batch * kv), dtype=torch.int32, device=device)
        ahead = MOST_RUNNERS_UP if runners_up else 0
        self.runners_up = torch.zeros((layers, ahead), dtype=torch.int32, device=device)
        self.num_runners_up = torch.zeros((layers, batch * kv), dtype=torch.int32, device=device)
        room = min(batch * (width + RUNNERS_UP_PER_LIST), self.frames, MOST_CANDIDATES)
        self.candidates = torch.zeros(kv * room, dtype=torch.int32, device=device)
        self.worth = torch.zeros(kv * room, dtype=torch.float32, device=device)
        self.num_candidates = torch.zeros(kv, dtype=torch.int32, device=device)
        self.admitted = torch.zeros((2, layers, kv * room), dtype=torch.int32, device=device)
        self.admitted_counts = torch.zeros((layers, kv), dtype=torch.int32, device=device)
        self.staged: torch.Tensor | None = None
        if cpu is None:
            blocks = min(batch * kv * width, STAGED_BYTES // (2 * block * frames.element_size()))
            self.staged = torch.empty((max(blocks, batch * kv), 2, block), dtype=frames.dtype, device=device)
        self._views: dict[tuple[int, Variant], StepBuffers] = {}

    def views(self, batch: int, variant: Variant) -> StepBuffers:
        """The part of the buffers that ``batch`` requests use in a variant; the same memory every time."""
        key = (batch, variant)
        if key not in self._views:
            self._views[key] = self._make_views(batch, variant)
        return self._views[key]

    def _make_views(self, batch: int, variant: Variant) -> StepBuffers:
        kv, columns, width = self.heads.kv_heads, variant.columns, variant.width
        described = DecodeBatch(
            self.described.pages[:batch, :columns], *(field[:batch] for field in self.described[1:])
        )
        pairs = batch * kv
        workspace = self.workspace(batch, columns if variant.dense else width)
        views = StepBuffers(variant, described, self.rows[:batch], workspace)
        if variant.dense:
            return views
        pages, hits, valid, indices = (flat[: pairs * width].view(batch, kv, width) for flat in self.lists)
        misses = self.misses[:, : pairs * width].view(-1, batch, kv, width)
        counts = self.counts[:, :, :pairs].view(-1, 3, batch, kv)
        layers = len(self.admitted_counts)
        views.selected = [
            Selected(pages, hits, misses[copy], valid, indices, counts[copy, 0], counts[copy, 1])
            for copy in (layer % len(misses) for layer in range(layers))
        ]
        views.cpu_begin = [counts[layer % len(misses), 2] for layer in range(layers)]
        ahead = min(self.runners_up.shape[1] // pairs, RUNNERS_UP_PER_LIST)
        if ahead > 0:
            shape = batch, kv, ahead
            views.runners_up = [
                RunnersUp(pages[: pairs * ahead].view(shape), counts[:pairs].view(batch, kv))
                for pages, counts in zip(self.runners_up, self.num_runners_up, strict=True)
            ]
        room = min(batch * (width + RUNNERS_UP_PER_LIST), self.frames, MOST_CANDIDATES)
        views.scores = self.scores[:batch, :, :columns]
        views.allowed = self.allowed[:batch]
        views.candidates = self.candidates[: kv * room].view(kv, room)
        views.worth = self.worth[: kv * room].view(kv, room)
        views.num_candidates = self.num_candidates
        views.admitted = [
            Admitted(pages[: kv * room].view(kv, room), frames[: kv * room].view(kv, room), counts)
            for pages, frames, counts in zip(*self.admitted, self.admitted_counts, strict=True)
        ]
        views.cpu, views.service = self.cpu, self.service
        if self.staged is not None:
            places = min(len(self.staged) // pairs, width)
            views.staged = self.staged[: pairs * places].unflatten(0, (pairs, places))
        return views
