"""Random ragged inputs that the tests of the Triton kernels share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rheo_kernels.types.kv_scales import EIGHT_BITS

GPU = torch.cuda.is_available()


@dataclass(frozen=True)
class Shape:
    """One model and page geometry."""

    heads: int = 2
    group: int = 4
    dim: int = 64
    page_size: int = 16
    dtype: torch.dtype = torch.float32
    stored: torch.dtype | None = None

    @property
    def kv(self) -> torch.dtype:
        """KV dtype."""
        return self.stored or self.dtype

    @property
    def block(self) -> int:
        return self.dim * self.page_size

    def __str__(self) -> str:
        name = "-".join(str(dtype).removeprefix("torch.") for dtype in (self.dtype, self.stored) if dtype)
        return f"h{self.heads}g{self.group}d{self.dim}p{self.page_size}-{name}"


SHAPES = [
    Shape(),
    Shape(group=1, dim=80, page_size=16, dtype=torch.bfloat16),
    Shape(group=3, dim=96, page_size=32, dtype=torch.float16),
    Shape(group=16, dim=128, page_size=32, dtype=torch.bfloat16),
    Shape(heads=1, group=7, dim=128, page_size=64, dtype=torch.float16),
    Shape(heads=1, group=2, dim=256, page_size=16, dtype=torch.bfloat16),
]

EIGHT_BIT_SHAPES = [
    Shape(group=4, dim=32, page_size=32, dtype=torch.float32, stored=EIGHT_BITS),
    Shape(group=3, dim=80, page_size=16, dtype=torch.bfloat16, stored=EIGHT_BITS),
]

GPU_SHAPES = [
    Shape(heads=8, group=group, dim=dim, page_size=page_size, dtype=dtype)
    for dim in (64, 80, 96, 128, 256)
    for page_size in (16, 32, 64)
    for group, dtype in ((1, torch.float16), (4, torch.bfloat16), (8, torch.float16), (16, torch.bfloat16))
]


def pinned(host: torch.Tensor) -> torch.Tensor:
    """A copy in memory of the CPU that kernels read, too."""
    return host.cpu().pin_memory() if host.is_cuda else host.clone()


def normal(shape: tuple[int, ...], dtype: torch.dtype, rng: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=rng, device=rng.device, dtype=torch.float32).to(dtype)


def integers(low: int, high: int, shape: tuple[int, ...], rng: torch.Generator) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=rng, device=rng.device, dtype=torch.int32)


def permutation(count: int, rng: torch.Generator) -> torch.Tensor:
    return torch.randperm(count, generator=rng, device=rng.device)


def page_lists(num_pages: list[int], width: int, total: int, rng: torch.Generator) -> torch.Tensor:
    """Disjoint lists of pages from 1 on; a page number past a list's end is out of bounds."""
    shuffled = permutation(total - 1, rng).to(torch.int32) + 1
    lists = torch.full((len(num_pages), width), 2**30, dtype=torch.int32, device=rng.device)
    start = 0
    for row, count in enumerate(num_pages):
        lists[row, :count] = shuffled[start : start + count]
        start += count
    return lists


def residency(heads: int, total: int, frames: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A page table ``[H, N]`` with three quarters of its frames in use, and its inverse ``[H, F]``."""
    table = torch.full((heads, total), -1, dtype=torch.int32, device=rng.device)
    page_of = torch.full((heads, frames), -1, dtype=torch.int32, device=rng.device)
    used = min(frames * 3 // 4, total - 1)
    for head in range(heads):
        pages = permutation(total - 1, rng)[:used] + 1
        taken = permutation(frames, rng)[:used]
        table[head, pages] = taken.to(torch.int32)
        page_of[head, taken] = pages.to(torch.int32)
    return table, page_of


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors are equal bit by bit."""
    return torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))


def to_device(values: list[int], rng: torch.Generator) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=rng.device)


def merged(partials: Any, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Output ``[B, Hq, D]`` and natural-log LSE ``[B, Hq]`` of all splits."""
    from rheo_kernels import triton as kernels

    pairs, _, group, dim = partials.out.shape
    queries = pairs // batch * group
    out = torch.full((batch, queries, dim), torch.nan, device=partials.out.device)
    lse = torch.full((batch, queries), torch.nan, device=partials.out.device)
    kernels.merge(partials, None, out, lse)
    return out, lse


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """``|actual - expected| / |expected|`` in float64; NaN counts as infinite."""
    difference = (actual.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)
    return float(difference.nan_to_num(nan=float("inf")))


def rows_as_sets(table: torch.Tensor) -> list[set[int]]:
    """Every row's entries that are not -1."""
    return [set(row) - {-1} for row in table.flatten(0, -2).tolist()]
