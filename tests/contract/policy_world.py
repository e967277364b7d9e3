"""World: a page table, its policy and the residency of one engine, driven by the same operations as another's."""

from __future__ import annotations

import torch

from rheo_kernels.types import RunnersUp, Selected
from rheo_sglang.decode.buffers import DecodeBuffers, StagedPages
from rheo_sglang.decode.heads import HeadShape
from rheo_sglang.decode.reference_residency import ReferenceResidency
from rheo_sglang.decode.variant import Variant
from rheo_sglang.page_table import PageTable
from rheo_sglang.pools.blocks import frame_pool, host_pool

LAYERS, HEADS, DIM, PAGE_SIZE, PAGES, FRAMES = 2, 2, 16, 16, 60, 21
SELECTED_PAGES, RUNNERS_UP, ALPHA = 4, 3, 0.2937
"""Three requests list 21 candidates: a GPU considers as many as there are frames."""


class World:
    """One engine's side of a trace.

    Parameters
    ----------
    policy
        Name of the policy.
    device
        Where its tensors are.
    triton
        Whether Triton's kernels value and admit pages, or the references.
    frames
        Frames of each layer and KV head.
    prewarm
        Weight of prompts in importance; 0 = that of steps.
    """

    def __init__(
        self, policy: str, device: str, triton: bool, frames: int = FRAMES, prewarm: float = 0.0
    ) -> None:
        pinned = device == "cuda"
        self.device, self.triton = device, triton
        self.table = PageTable(
            LAYERS,
            HEADS,
            DIM,
            PAGE_SIZE,
            PAGES,
            frames,
            "mean",
            policy,
            torch.float32,
            device,
            ALPHA,
            triton,
            prewarm,
        )
        self.policy = self.table.policy
        host = host_pool(LAYERS, PAGES, HEADS, DIM, PAGE_SIZE, torch.float32, pinned)
        blocks = frame_pool(LAYERS, HEADS, frames, DIM, PAGE_SIZE, torch.float32, device)
        self.residency = ReferenceResidency(self.table, host, blocks)
        if triton:
            from rheo_sglang.decode.gpu_residency import GpuResidency

            self.residency = GpuResidency(self.table, host, blocks)
        self.blocks = blocks

    def prefill(
        self, pages: torch.Tensor, num_pages: torch.Tensor, mass: torch.Tensor, caps: torch.Tensor
    ) -> None:
        """Prompts ``[E]`` end; their tails paid ``mass``, ``[L, E, H, M]``, and all their pages are offered frames."""
        pages, num_pages, mass, caps = (part.to(self.device) for part in (pages, num_pages, mass, caps))
        self.table.settle()
        self.table.list_pages(pages, num_pages)
        decay = self.policy.prompt_decay(pages, num_pages)
        offered = torch.cat([row[:count] for row, count in zip(pages, num_pages.tolist(), strict=True)])
        offered = offered.unique().long()
        nothing = torch.zeros((PAGES * PAGE_SIZE, HEADS, DIM), device=self.device)
        rows = (offered * PAGE_SIZE).to(torch.int32)
        for layer in range(LAYERS):
            self.policy.on_prefill(layer, mass[layer], pages, num_pages, caps)
            self.residency.admit_seeded(layer, offered, decay, nothing, nothing, rows)

    def step(self, pages: torch.Tensor, num_pages: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """One decode step over ``[B]`` requests by ``scores``, ``[L, B, H, M]``; hits, ``[L, B, H]``."""
        pages, num_pages, scores = (part.to(self.device) for part in (pages, num_pages, scores))
        self.table.settle()
        self.table.begin_step()
        self.table.list_pages(pages, num_pages)
        hits = []
        for layer in range(LAYERS):
            selected, left_out = self.select(layer, pages, num_pages, scores[layer])
            self.policy.on_step(layer, scores[layer], selected, pages, num_pages)
            self.admit(layer, selected, left_out)
            hits.append(selected.num_hits.cpu())
        return torch.stack(hits)

    def select(
        self, layer: int, pages: torch.Tensor, num_pages: torch.Tensor, scores: torch.Tensor
    ) -> tuple[Selected, RunnersUp]:
        """The best pages of every request and KV head, hits before misses, and the best of the rest without a frame."""
        batch, columns = pages.shape
        listed = torch.arange(columns, device=self.device) < num_pages[:, None, None]
        order = scores.masked_fill(~listed, -torch.inf).argsort(dim=2, descending=True)
        logical = pages[:, None].expand(scores.shape).gather(2, order)
        logical = logical.masked_fill(~listed, -1)
        frame = self.table.frame_of[layer].expand(batch, -1, -1).gather(2, logical.clamp(min=0).long())
        frame = frame.masked_fill(logical < 0, -1)
        chosen, rest = logical[:, :, :SELECTED_PAGES], logical[:, :, SELECTED_PAGES:]
        kind = torch.where(frame >= 0, 0, torch.where(logical >= 0, 1, 2))
        by_kind = kind[:, :, :SELECTED_PAGES].argsort(dim=2, stable=True)
        chosen, hit = chosen.gather(2, by_kind), frame[:, :, :SELECTED_PAGES].gather(2, by_kind)
        found = Selected(
            pages=chosen,
            hits=hit,
            misses=chosen.masked_fill(hit >= 0, -1),
            valid=torch.full_like(chosen, PAGE_SIZE),
            indices=order[:, :, :SELECTED_PAGES].to(torch.int32),
            num_hits=(hit >= 0).sum(2).to(torch.int32),
            num_selected=(chosen >= 0).sum(2).to(torch.int32),
        )
        absent = (kind[:, :, SELECTED_PAGES:] - 1).abs().argsort(dim=2, stable=True)[:, :, :RUNNERS_UP]
        counts = (kind[:, :, SELECTED_PAGES:] == 1).sum(2).clamp(max=RUNNERS_UP)
        return found, RunnersUp(rest.gather(2, absent).contiguous(), counts.to(torch.int32))

    def admit(self, layer: int, selected: Selected, left_out: RunnersUp) -> None:
        """Offer misses and runners-up frames, through this engine's residency."""
        if not self.triton:
            self.residency.admit_missed(layer, selected, left_out)
            return
        batch = selected.pages.shape[0]
        shape = Variant(PAGES, SELECTED_PAGES)
        heads = HeadShape(HEADS, 1, DIM)
        staged = StagedPages(batch, SELECTED_PAGES, self.blocks)
        buffers = DecodeBuffers(
            batch, [shape], heads, self.blocks, lambda *_: None, staged, False, True, False, False
        )
        step = buffers.views(batch, shape)
        for mine, theirs in zip(step.selected[layer], selected, strict=True):
            mine.copy_(theirs)
        step.runners_up[layer].pages[:, :, : left_out.pages.shape[2]] = left_out.pages
        step.runners_up[layer].counts.copy_(left_out.counts)
        accessed = self.residency.accessed[layer]
        for head in range(HEADS):
            frames = selected.hits[:, head].flatten()
            accessed[head, frames[frames >= 0].long()] = 1
        self.residency.admit_missed(layer, step)

    def values(self, layer: int) -> torch.Tensor:
        """What every page is worth now, ``[H, N]``, on the host."""
        everything = torch.arange(PAGES, device=self.device).expand(HEADS, -1)
        return self.policy.values(layer, everything).cpu()

    def resident(self, layer: int, head: int) -> set[int]:
        """Pages with a frame."""
        return set((self.table.frame_of[layer, head] >= 0).nonzero().flatten().tolist())
