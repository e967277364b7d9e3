"""stage equals its reference: resident pages come from frames, the others from host pages."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton_cases import (
    EIGHT_BIT_SHAPES,
    GPU_SHAPES,
    SHAPES,
    Shape,
    normal,
    permutation,
    residency,
    to_device,
)

from rheo_kernels import reference
from rheo_sglang.selection import SUMMARIES


def check(shape: Shape, prefixes: list[int], chunk: int, rng: torch.Generator, programs: int = 32) -> None:
    """Stage prefixes of some requests, with room for ``chunk`` tokens after each."""
    from rheo_kernels import triton as kernels

    size, heads = shape.page_size, shape.heads
    total = 2 + sum(-(-prefix // size) for prefix in prefixes)
    frames = max(total // 2, 1)
    table, _ = residency(heads, total, frames, rng)
    host = normal((total, heads, 2, shape.block), shape.kv, rng).cpu()
    pool = normal((heads, frames, 2, shape.block), shape.kv, rng)
    tokens: list[int] = []
    rows: list[int] = []
    first = 0
    for prefix in prefixes:
        starts = range(0, prefix, size)
        tokens += [min(size, prefix - start) for start in starts]
        rows += [first + start for start in starts]
        first += prefix + chunk
    pages = permutation(total - 1, rng)[: len(rows)].to(torch.int32) + 1
    staged = [normal((first, heads, shape.dim), shape.dtype, rng) for _ in range(2)]
    expected = [part.clone() for part in staged]
    listing = pages, to_device(tokens, rng), to_device(rows, rng)
    reference.stage(host, pool, table, *listing, *expected, size)
    if rng.device.type == "cuda":
        host = host.pin_memory()
    kernels.stage(host, pool, table, *listing, *staged, size, programs)
    assert torch.equal(staged[0], expected[0])
    assert torch.equal(staged[1], expected[1])


@pytest.mark.parametrize("shape", [*SHAPES, *EIGHT_BIT_SHAPES], ids=str)
def test_stage_equals_reference(shape: Shape, rng: torch.Generator) -> None:
    check(shape, [3 * shape.page_size, 1, 2 * shape.page_size + 5, shape.page_size - 1], 7, rng)


@settings(max_examples=20)
@given(
    prefixes=st.lists(st.integers(0, 100), min_size=1, max_size=5).filter(any),
    chunk=st.integers(1, 20),
    programs=st.sampled_from([1, 4, 32]),
)
def test_stage_equals_reference_on_any_batch(prefixes: list[int], chunk: int, programs: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    check(Shape(dim=16), prefixes, chunk, torch.Generator(device).manual_seed(sum(prefixes)), programs)


def test_staged_keys_and_values_are_what_was_written(rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    shape = Shape(dim=64, page_size=32, dtype=torch.float16)
    count = 75
    k, v = (normal((count, shape.heads, shape.dim), shape.dtype, rng) for _ in range(2))
    host = torch.zeros((5, shape.heads, 2, shape.block), dtype=shape.dtype)
    if rng.device.type == "cuda":
        host = host.pin_memory()
    summaries = torch.zeros((shape.heads, 5, 2, shape.dim), dtype=shape.dtype, device=rng.device)
    pages = to_device([4, 1, 3], rng)
    position = torch.arange(count, device=rng.device)
    slots = pages.long()[position // 32] * 32 + position % 32
    kernels.write(k, v, slots, host, SUMMARIES["bound"](), summaries, 32)
    table = torch.full((shape.heads, 5), -1, dtype=torch.int32, device=rng.device)
    frames = torch.zeros((shape.heads, 1, 2, shape.block), dtype=shape.dtype, device=rng.device)
    staged = [torch.zeros_like(k) for _ in range(2)]
    listing = pages, to_device([32, 32, 11], rng), to_device([0, 32, 64], rng)
    kernels.stage(host, frames, table, *listing, *staged, 32)
    assert torch.equal(staged[0], k)
    assert torch.equal(staged[1], v)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
def test_stage_equals_reference_on_long_prefixes(shape: Shape, rng: torch.Generator) -> None:
    check(shape, [5000, 0, 3 * shape.page_size, 777], 64, rng)
