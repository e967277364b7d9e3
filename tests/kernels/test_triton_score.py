"""score equals its reference on ragged page lists."""

from __future__ import annotations

import pytest
import torch
from triton_cases import GPU_SHAPES, SHAPES, Shape, normal, page_lists, relative_error, to_device

from rheo_kernels import reference

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5}


def check(
    shape: Shape, rows: int, grouping: str, num_pages: list[int], total: int, rng: torch.Generator
) -> None:
    from rheo_kernels import triton as kernels

    width = max(num_pages) + 5
    pages = page_lists(num_pages, width, total, rng)
    counts = to_device(num_pages, rng)
    q = normal((len(num_pages), shape.heads * shape.group, shape.dim), shape.dtype, rng)
    summaries = normal((shape.heads, total, rows, shape.dim), shape.dtype, rng)
    scale = shape.dim**-0.5
    safe = pages.clamp(max=total - 1)
    expected = reference.score(q.double(), summaries.double(), safe, counts, scale, grouping)
    out = torch.full_like(expected, torch.nan)
    kernels.score(q, summaries, pages, counts, scale, grouping, out=out)
    listed = torch.isfinite(expected)
    assert torch.equal(out == -torch.inf, ~listed)
    assert relative_error(out[listed], expected[listed]) < TOLERANCE[shape.dtype]


@pytest.mark.parametrize("rows", [1, 2], ids=["mean-key", "bound"])
@pytest.mark.parametrize("grouping", ["mean", "max"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_score_equals_reference(shape: Shape, grouping: str, rows: int, rng: torch.Generator) -> None:
    check(shape, rows, grouping, [37, 0, 1], 64, rng)


@pytest.mark.gpu
@pytest.mark.parametrize("grouping", ["mean", "max"])
@pytest.mark.parametrize("shape", GPU_SHAPES[::3], ids=str)
def test_score_equals_reference_on_long_contexts(shape: Shape, grouping: str, rng: torch.Generator) -> None:
    check(shape, 2, grouping, [2048, 17, 900, 33], 3200, rng)
