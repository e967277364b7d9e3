"""Ragged pages with sub-centroid summaries, adversarial ones among them, that several tests share."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from triton_cases import normal, page_lists, to_device

from rheo_kernels.reference.subcentroids import summarise_subcentroids
from rheo_kernels.types import Corrections
from rheo_kernels.types.subcentroids import SubcentroidLayout, subcentroid_layout


@dataclass(frozen=True)
class Geometry:
    """Model, page and row shape, and the dtype of queries and keys."""

    group: int
    dim: int
    page_size: int
    row_tokens: int
    dtype: torch.dtype
    heads: int = 2

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"g{self.group}d{self.dim}p{self.page_size}n{self.row_tokens}-{name}"

    @property
    def layout(self) -> SubcentroidLayout:
        return subcentroid_layout(self.dim, self.page_size, self.row_tokens)


GEOMETRIES = [
    Geometry(1, 64, 16, 2, torch.float32),
    Geometry(2, 128, 32, 4, torch.bfloat16),
    Geometry(4, 64, 32, 8, torch.float16),
    Geometry(7, 64, 64, 4, torch.bfloat16),
    Geometry(8, 128, 16, 4, torch.float32),
    Geometry(4, 96, 16, 2, torch.bfloat16),
]
LENGTHS = [1, 0, 77, 300, 64]
"""Tokens of the requests: one token, a padding row, ragged tails, whole pages."""
KEYS = ["normal", "offset", "huge", "zero", "needle"]
CASES = [
    pytest.param(
        geometry, KEYS[(turn + place) % len(KEYS)], id=f"{geometry}-{KEYS[(turn + place) % len(KEYS)]}"
    )
    for place, geometry in enumerate(GEOMETRIES)
    for turn in (0, 2)
]
"""Every geometry with two kinds of keys, every kind with two geometries at least."""


@dataclass(frozen=True)
class Case:
    """Requests with their pages' keys, values and summaries."""

    q: torch.Tensor
    keys: torch.Tensor
    """``[H, N, P, D]``."""
    values: torch.Tensor
    summaries: torch.Tensor
    pages: torch.Tensor
    seq_lens: torch.Tensor
    scale: float
    layout: SubcentroidLayout

    @property
    def safe(self) -> torch.Tensor:
        """Page lists without what lies out of bounds."""
        return self.pages.clamp(max=self.keys.shape[1] - 1)


def make_case(geometry: Geometry, kind: str, rng: torch.Generator, lengths: list[int] | None = None) -> Case:
    """Requests of ``lengths`` tokens; ``kind`` says what their keys are like."""
    lengths = LENGTHS if lengths is None else lengths
    size, layout = geometry.page_size, geometry.layout
    num_pages = [-(-length // size) for length in lengths]
    total = sum(num_pages) + 3
    pages = page_lists(num_pages, max(num_pages) + 3, total, rng)
    keys = normal((geometry.heads, total, size, geometry.dim), torch.float32, rng)
    values = normal(keys.shape, geometry.dtype, rng)
    q = normal((len(lengths), geometry.heads * geometry.group, geometry.dim), geometry.dtype, rng)
    if kind == "offset":
        keys += 30 * normal((geometry.heads, 1, 1, geometry.dim), torch.float32, rng)
    elif kind == "huge":
        keys[:, ::2, size // 2 + 1] *= 1000
    elif kind == "zero":
        keys[:, ::2] = 0
    elif kind == "needle":
        keys[:, 2::3, 1] = 4 * q[0, :: geometry.group].float()[:, None]
    counts = torch.full((total,), size, device=rng.device)
    for row, length in enumerate(lengths):
        if length % size:
            counts[pages[row, num_pages[row] - 1]] = length % size
    keys = keys.to(geometry.dtype)
    summaries = summarise_subcentroids(keys, values, counts.expand(geometry.heads, -1), layout)
    summaries[:, 0] = 0
    return Case(q, keys, values, summaries, pages, to_device(lengths, rng), geometry.dim**-0.5, layout)


def some_corrections(requests: int, heads: int, pages: int, rng: torch.Generator) -> Corrections:
    """Of more requests than there are, in another order, with room for more pages."""
    shape = requests + 3, heads, pages + 5
    codes = torch.randint(-48, 49, shape, generator=rng, device=rng.device).to(torch.int8)
    rows = torch.randperm(len(codes), generator=rng, device=rng.device)[:requests]
    return Corrections(codes, rows.to(torch.int32))
