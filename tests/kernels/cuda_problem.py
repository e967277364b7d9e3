"""Requests and their selected pages, for the tests of what attends them in CUDA C++."""

from __future__ import annotations

import torch
from test_triton_attend import exact_attend
from triton_cases import Shape, integers, normal, permutation, pinned


class Problem:
    """Requests whose selected pages are resident, or in part."""

    def __init__(self, shape: Shape, counts: list[list[int]], misses: bool, rng: torch.Generator) -> None:
        from rheo_kernels.types import Selected

        self.shape, heads, width, total = shape, shape.heads, max(map(max, counts)) + 3, 400
        self.host = normal((total, heads, 2, shape.block), shape.dtype, rng)
        self.frames = torch.full(
            (heads, total, 2, shape.block), torch.nan, dtype=shape.dtype, device=rng.device
        )
        batch = len(counts)
        self.pages = torch.full((batch, heads, width), -1, dtype=torch.int32, device=rng.device)
        self.selected = Selected.allocate(batch, heads, width, rng.device)
        for field in self.selected:
            field.fill_(-1)
        self.selected.valid.zero_()
        frame_of = [permutation(total, rng).to(torch.int32) for _ in range(heads)]
        for b, row in enumerate(counts):
            for h, count in enumerate(row):
                pages = permutation(total - 1, rng)[:count].to(torch.int32) + 1
                hits = int(integers(0, count + 1, (1,), rng)) if misses else count
                self.pages[b, h, :count] = pages
                self.selected.hits[b, h, :hits] = frame_of[h][pages[:hits].long()]
                self.selected.misses[b, h, hits:count] = pages[hits:]
                self.selected.valid[b, h, :count] = shape.page_size
                self.selected.num_hits[b, h], self.selected.num_selected[b, h] = hits, count
        for h in range(heads):
            self.frames[h, frame_of[h].long()] = self.host[:, h]
        self.q = normal((batch, heads * shape.group, shape.dim), shape.dtype, rng)
        self.scale = shape.dim**-0.5
        self.pinned = pinned(self.host)

    def exact(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and LSE in float64."""
        blocks = self.host.transpose(0, 1)
        valid = self.selected.valid
        return exact_attend(self.q, blocks, self.pages, valid, self.scale, self.shape.page_size)
