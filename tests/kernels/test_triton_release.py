"""release equals its reference."""

from __future__ import annotations

import pytest
import torch
from triton_cases import permutation, residency

from rheo_kernels import reference


@pytest.mark.parametrize("count", [0, 1, 150])
def test_release_equals_reference(count: int, rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    table, page_of = residency(3, 300, 90, rng)
    pages = permutation(299, rng)[:count] + 1
    expected = [tensor.clone() for tensor in (table, page_of)]
    reference.release(pages, *expected)
    kernels.release(pages, table, page_of)
    for mine, theirs in zip((table, page_of), expected, strict=True):
        assert torch.equal(mine, theirs)
