"""append equals its reference, for both summaries."""

from __future__ import annotations

import pytest
import torch
from triton_cases import SHAPES, Shape, integers, normal, residency, to_device

from rheo_kernels import reference


@pytest.mark.parametrize("rows", [1, 2], ids=["mean", "bound"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_append_equals_reference(shape: Shape, rows: int, rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    heads, pages, frames = shape.heads, 12, 12
    table, _ = residency(heads, pages, frames, rng)
    for head in range(heads):
        missing = (table[head, 1:] < 0).nonzero().squeeze(1) + 1
        free = torch.tensor(sorted(set(range(frames)) - set(table[head].tolist())), device=rng.device)
        table[head, missing] = free[: missing.numel()].to(torch.int32)
    tail_pages = to_device([3, 0, 7, 5], rng)
    offsets = to_device([0, 2, shape.page_size - 1, 4], rng)
    k, v = (normal((4, heads, shape.dim), shape.dtype, rng) for _ in range(2))
    blocks = normal((heads, frames, 2, shape.block), shape.dtype, rng)
    summaries = normal((heads, pages, rows, shape.dim), shape.dtype, rng)
    expected = blocks.clone(), summaries.clone()
    reference.append(k, v, tail_pages, offsets, table, *expected, shape.page_size)
    kernels.append(k, v, tail_pages, offsets, table, blocks, summaries, shape.page_size)
    assert torch.equal(blocks, expected[0])
    tolerance = (
        0 if rows == 2 else {torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}[shape.dtype]
    )
    torch.testing.assert_close(summaries, expected[1], rtol=tolerance, atol=tolerance)


def test_append_skips_padded_rows_and_absent_tails(rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    table = torch.full((1, 4), -1, dtype=torch.int32, device=rng.device)
    blocks = normal((1, 2, 2, 1024), torch.float32, rng)
    summaries = normal((1, 4, 2, 64), torch.float32, rng)
    before = blocks.clone(), summaries.clone()
    key = normal((2, 1, 64), torch.float32, rng)
    kernels.append(key, key, to_device([0, 2], rng), integers(0, 16, (2,), rng), table, blocks, summaries, 16)
    assert torch.equal(blocks, before[0])
    assert torch.equal(summaries, before[1])
