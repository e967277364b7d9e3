"""place leaves in frames what writing the same tokens to host pages and loading those would."""

from __future__ import annotations

import pytest
import torch
from triton_cases import EIGHT_BIT_SHAPES, SHAPES, Shape, integers, normal, permutation, to_device

from rheo_kernels import reference
from rheo_sglang.selection import SUMMARIES


@pytest.mark.parametrize("shape", [*SHAPES, *EIGHT_BIT_SHAPES], ids=str)
def test_place_equals_write_and_load(shape: Shape, rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    heads, size, total, frames = shape.heads, shape.page_size, 9, 7
    tokens = (total - 1) * size
    packed = normal((tokens + 5, 2, heads, shape.dim), shape.dtype, rng)
    packed = packed.to(shape.kv).to(shape.dtype)
    k, v = packed[5:, 0], packed[5:, 1]
    order = permutation(total - 1, rng) + 1
    row_of = torch.full((total,), -(10**6), dtype=torch.int32, device=rng.device)
    row_of[order] = torch.arange(total - 1, dtype=torch.int32, device=rng.device) * size
    host = torch.zeros((total, heads, 2, shape.block), dtype=shape.kv)
    slots = order[:, None] * size + torch.arange(size, device=rng.device)
    summaries = torch.zeros((heads, total, 2, shape.dim), dtype=shape.dtype)
    reference.write(
        k.cpu().to(shape.kv),
        v.cpu().to(shape.kv),
        slots.flatten().cpu(),
        host,
        SUMMARIES["bound"](),
        summaries,
        size,
    )

    counts = integers(0, 6, (heads,), rng)
    counts[0] = 5
    pages = torch.full((heads, 6), -1, dtype=torch.int32, device=rng.device)
    targets = torch.full_like(pages, -1)
    expected = torch.full((heads, frames, 2, shape.block), torch.nan, dtype=shape.kv)
    for head, count in enumerate(counts.tolist()):
        pages[head, :count] = order[permutation(total - 1, rng)[:count]].to(torch.int32)
        targets[head, :count] = permutation(frames, rng)[:count].to(torch.int32)
        expected[head, targets[head, :count].long().cpu()] = host[pages[head, :count].long().cpu(), head]
    actual = torch.full_like(expected, torch.nan, device=rng.device)
    kernels.place(k, v, row_of, pages, targets, counts, actual)
    defined = torch.full_like(actual, torch.nan)
    reference.place(k, v, row_of, pages, targets, counts, defined)
    for placed in (actual, defined):
        torch.testing.assert_close(placed.cpu().float(), expected.float(), rtol=0, atol=0, equal_nan=True)


def test_place_without_copies_touches_nothing(rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    k = normal((16, 1, 64), torch.float32, rng)
    frames = torch.full((1, 2, 2, 64 * 16), torch.nan, device=rng.device)
    nothing = to_device([-1], rng)[None]
    kernels.place(k, k, to_device([0, 0], rng), nothing, nothing, to_device([0], rng), frames)
    assert frames.isnan().all()
