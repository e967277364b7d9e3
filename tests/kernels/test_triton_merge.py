"""merge equals its reference, empty partials and shared buffers included."""

from __future__ import annotations

import torch
from triton_cases import normal

from rheo_kernels import reference


def partials(rows: tuple[int, ...], dim: int, rng: torch.Generator) -> tuple[torch.Tensor, ...]:
    out_a, out_b = (normal((*rows, dim), torch.float32, rng) for _ in range(2))
    lse_a, lse_b = (normal(rows, torch.float32, rng) * 20 for _ in range(2))
    lse_a[0, 0] = lse_b[0, 1] = lse_a[0, 2] = lse_b[0, 2] = -torch.inf
    out_a[0, 0] = out_b[0, 1] = out_a[0, 2] = out_b[0, 2] = 0
    return out_a, lse_a, out_b, lse_b


def test_merge_equals_reference(rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    for dim in (64, 80, 256):
        parts = partials((3, 7), dim, rng)
        for mine, theirs in zip(kernels.merge(*parts), reference.merge(*parts), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_merge_into_an_input_and_into_the_model_dtype(rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    parts = partials((2, 4), 96, rng)
    expected = reference.merge(*parts)
    rounded = torch.empty((2, 4, 96), dtype=torch.bfloat16, device=rng.device)
    kernels.merge(*parts, out=rounded, lse=torch.empty_like(parts[1]))
    torch.testing.assert_close(rounded, expected[0].bfloat16(), rtol=1e-2, atol=1e-5)
    kernels.merge(*parts, out=parts[0], lse=parts[1])
    for mine, theirs in zip(parts[:2], expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_merge_of_empty_partials_is_empty_whatever_their_output_holds(rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    out_a = torch.full((2, 64), torch.nan, device=rng.device)
    out_b = normal((2, 64), torch.float32, rng)
    empty = torch.full((2,), -torch.inf, device=rng.device)
    lse_b = torch.tensor([1.5, -torch.inf], device=rng.device)
    out, lse = kernels.merge(out_a, empty, out_b, lse_b)
    torch.testing.assert_close(out[0], out_b[0])
    assert out[1].eq(0).all()
    assert torch.equal(lse, lse_b)
