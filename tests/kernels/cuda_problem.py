"""Requests and their selected pages, for the tests of what attends them in CUDA C++."""

from __future__ import annotations

import torch
from test_triton_attend import exact_attend
from triton_cases import Shape, integers, normal, permutation, pinned

from rheo_kernels.types.kv_scales import EIGHT_BITS


def eight_bits(shape: tuple[int, ...], bits: int, rng: torch.Generator) -> torch.Tensor:
    """e4m3 numbers of which these bits are random and the others 0; none is NaN."""
    drawn = integers(0, 256, shape, rng).to(torch.uint8) & bits
    return torch.where(drawn & 0x7F == 0x7F, drawn & 0xFE, drawn).view(EIGHT_BITS)


class Problem:
    """Requests whose selected pages are resident, or in part; ``bits`` are those of `eight_bits`, else normal."""

    def __init__(
        self,
        shape: Shape,
        counts: list[list[int]],
        misses: bool,
        rng: torch.Generator,
        bits: int | None = None,
    ) -> None:
        from rheo_kernels.types import Selected

        self.shape, heads, width, total = shape, shape.heads, max(map(max, counts)) + 3, 400
        blocks = (total, heads, 2, shape.block)
        self.host = normal(blocks, shape.kv, rng) if bits is None else eight_bits(blocks, bits, rng)
        self.frames = torch.full((heads, total, 2, shape.block), torch.nan, dtype=shape.kv, device=rng.device)
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
