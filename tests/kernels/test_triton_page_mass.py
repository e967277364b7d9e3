"""page_mass follows its reference, and every request's masses sum to 1."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton_cases import GPU_SHAPES, SHAPES, Shape, normal, to_device

from rheo_kernels import reference

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-3}


def check(
    shape: Shape, requests: list[tuple[int, int]], rng: torch.Generator, last: int = 16, spare: int = 0
) -> None:
    """Compare on requests of ``(prefix, chunk)`` tokens, with spare columns and staged tokens past the end."""
    from rheo_kernels import triton as kernels

    ends_q, ends_k = [0], [0]
    for prefix, chunk in requests:
        ends_q.append(ends_q[-1] + chunk)
        ends_k.append(ends_k[-1] + prefix + chunk)
    columns = spare + max(-(-sum(request) // shape.page_size) for request in requests)
    q = normal((ends_q[-1], shape.heads * shape.group, shape.dim), shape.dtype, rng)
    k = normal((ends_k[-1] + spare, shape.heads, shape.dim), shape.dtype, rng)
    arguments = q, k, to_device(ends_q, rng), to_device(ends_k, rng), 2 * shape.dim**-0.5
    mass = kernels.page_mass(*arguments, shape.page_size, last, columns)
    expected = reference.page_mass(*arguments, shape.page_size, last, columns)
    assert torch.equal(mass.isinf(), expected.isinf())
    mass, expected = mass.masked_fill(mass.isinf(), 0), expected.masked_fill(expected.isinf(), 0)
    tolerance = TOLERANCE[shape.dtype]
    torch.testing.assert_close(mass, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(mass.sum(2), torch.ones_like(mass[:, :, 0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_page_mass_equals_reference(shape: Shape, rng: torch.Generator) -> None:
    check(shape, [(3 * shape.page_size, 40), (0, 1), (0, 17), (5, 3), (300, 16)], rng, spare=3)


@settings(max_examples=20)
@given(
    requests=st.lists(st.tuples(st.integers(0, 150), st.integers(1, 40)), min_size=1, max_size=4),
    last=st.sampled_from([1, 8, 16]),
    page_size=st.sampled_from([16, 32, 64]),
)
def test_page_mass_equals_reference_on_any_batch(
    requests: list[tuple[int, int]], last: int, page_size: int
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(sum(map(sum, requests)))
    check(Shape(dim=16, group=3, page_size=page_size), requests, generator, last)


def test_attention_to_one_token_is_the_mass_of_its_page(rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    k = normal((100, 1, 64), torch.float32, rng) * 0.01
    k[37, 0] = 1.0
    q = torch.ones((20, 2, 64), device=rng.device)
    mass = kernels.page_mass(q, k, to_device([0, 20], rng), to_device([0, 100], rng), 1.0, 16, 16, 7)
    torch.testing.assert_close(mass[0, 0], torch.eye(7, device=rng.device)[37 // 16], rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
def test_page_mass_equals_reference_on_long_prefixes(shape: Shape, rng: torch.Generator) -> None:
    check(shape, [(20000, 512), (0, 700), (4096, 1)], rng)
