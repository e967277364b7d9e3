"""write equals its reference, for both summaries, wherever a chunk begins and ends."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton_cases import GPU_SHAPES, SHAPES, Shape, normal, permutation

from rheo_kernels import reference

MEAN_TOLERANCE = {torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def chunk_slots(
    chunks: list[tuple[int, int]], page_size: int, total: int, rng: torch.Generator
) -> torch.Tensor:
    """Slots of chunks ``(first position, length)``, each on pages of its own, ``[T]``."""
    pages = permutation(total - 1, rng) + 1
    parts, used = [], 0
    for first, length in chunks:
        position = torch.arange(first, first + length, device=rng.device)
        local = position // page_size - first // page_size
        parts.append(pages[used + local] * page_size + position % page_size)
        used += int(local[-1]) + 1
    assert used < total
    return torch.cat(parts)


def check(
    shape: Shape, rows: int, chunks: list[tuple[int, int]], rng: torch.Generator, programs: int = 32
) -> None:
    from rheo_kernels import triton as kernels

    total = 2 + sum(length // shape.page_size + 2 for _, length in chunks)
    slots = chunk_slots(chunks, shape.page_size, total, rng)
    wide = normal((slots.numel(), 2 * shape.heads, shape.dim), shape.dtype, rng)
    k, v = wide[:, : shape.heads], wide[:, shape.heads :]
    host = normal((total, shape.heads, 2, shape.block), shape.dtype, rng).cpu()
    summaries = normal((shape.heads, total, rows, shape.dim), shape.dtype, rng)
    expected = host.clone(), summaries.clone()
    reference.write(k, v, slots, *expected, shape.page_size)
    if rng.device.type == "cuda":
        host = host.pin_memory()
    kernels.write(k, v, slots, host, summaries, shape.page_size, programs)
    if rng.device.type == "cuda":
        torch.cuda.synchronize()
    assert torch.equal(host, expected[0])
    tolerance = 0 if rows == 2 else MEAN_TOLERANCE[shape.dtype]
    torch.testing.assert_close(summaries, expected[1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rows", [1, 2], ids=["mean", "bound"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_write_equals_reference(shape: Shape, rows: int, rng: torch.Generator) -> None:
    size = shape.page_size
    check(shape, rows, [(0, 2 * size), (3, 5), (size - 1, 1), (size + 2, size), (0, 1)], rng)


@settings(max_examples=20)
@given(
    chunks=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 70)), min_size=1, max_size=6),
    programs=st.sampled_from([1, 4, 32]),
)
def test_write_equals_reference_on_any_batch(chunks: list[tuple[int, int]], programs: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    check(Shape(dim=16), 2, chunks, torch.Generator(device).manual_seed(len(chunks)), programs)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
def test_write_equals_reference_on_long_chunks(shape: Shape, rng: torch.Generator) -> None:
    check(shape, 2, [(0, 2000), (777, 1000), (64, 640)], rng)
