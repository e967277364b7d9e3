"""TritonAttention: attention in Triton, for any shape, and any device that Triton knows."""

from __future__ import annotations

from typing import NamedTuple

import torch

from rheo_kernels import triton as kernels
from rheo_kernels.types import DecodeBatch, Partials, Selected, Tail
from rheo_sglang.decode.attention import Attention


class TritonWorkspace(NamedTuple):
    """Partials of hits, misses and the pages left out, before they are merged."""

    hits: Partials
    misses: Partials
    tail: Partials


class TritonAttention(Attention[TritonWorkspace]):
    """One kernel attends hits, one fetches and attends misses, one merges what they found."""

    select_resolve = staticmethod(kernels.select_resolve)
    lists_runners_up = False

    def workspace(
        self, batch: int, width: int, tail_width: int = 0, device: torch.device | str | None = None
    ) -> TritonWorkspace:
        """See `Attention.workspace`."""
        pairs, group, dim = batch * self.heads.kv_heads, self.heads.group, self.heads.dim
        device = self.frames.device if device is None else device
        return TritonWorkspace(
            Partials.allocate(pairs, group, dim, kernels.num_splits(pairs, width), device),
            Partials.allocate(pairs, group, dim, kernels.fetch_splits(pairs), device),
            Partials.allocate(pairs, group, dim, kernels.tail_splits(pairs, tail_width), device),
        )

    def fetch(
        self,
        layer: int,
        selected: Selected,
        q: torch.Tensor,
        scale: float,
        workspace: TritonWorkspace,
        out: torch.Tensor,
        staged: torch.Tensor,
        tail: Tail | None = None,
    ) -> None:
        """See `Attention.fetch`."""
        misses = kernels.attend_fetch(
            q,
            self.host[layer],
            selected.misses,
            selected.valid,
            selected.num_hits,
            selected.num_selected,
            scale,
            self.page_size,
            workspace.misses,
            staged,
        )
        hits = self.hits(layer, selected, q, scale, workspace)
        coverage = None if tail is None else tail.coverage
        left_out, factor = self.tail(tail, workspace), self.scales[layer].v
        kernels.merge(hits, misses, out, tail=left_out, coverage=coverage, factor=factor)

    @staticmethod
    def tail(tail: Tail | None, workspace: TritonWorkspace) -> Partials | None:
        """Attend the pages left out, if they are to be, and leave them to be merged."""
        if tail is None:
            return None
        return kernels.tail(tail.lse, tail.summaries, tail.pages, tail.layout, workspace.tail)

    def hits(
        self, layer: int, selected: Selected, q: torch.Tensor, scale: float, workspace: TritonWorkspace
    ) -> Partials:
        """Attend a step's hits only, and leave them to be merged with what is attended elsewhere."""
        return kernels.attend(
            q,
            self.frames[layer],
            selected.hits,
            selected.valid,
            scale,
            self.page_size,
            last=selected.num_hits,
            partials=workspace.hits,
        )

    def dense(
        self,
        layer: int,
        batch: DecodeBatch,
        q: torch.Tensor,
        scale: float,
        workspace: TritonWorkspace,
        out: torch.Tensor,
        page_table: torch.Tensor,
        missed_at: torch.Tensor,
        now: torch.Tensor,
    ) -> None:
        """See `Attention.dense`."""
        parts = kernels.attend_dense(
            q,
            self.frames[layer],
            self.host[layer],
            batch.pages,
            batch.seq_lens,
            page_table,
            scale,
            self.page_size,
            workspace.hits,
            missed_at,
            now,
        )
        kernels.merge(parts, None, out, factor=self.scales[layer].v)
