"""Partials with their LSE form a commutative monoid under merge, and merging attends the union."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import torch
from hypothesis import given
from unit import plain

from rheo_kernels.reference import merge

DIM = 4
Partial = tuple[torch.Tensor, torch.Tensor]


@st.composite
def partials(draw: st.DrawFn) -> Partial:
    """Partials of three queries: ordinary ones, huge and tiny LSEs, and empty ones."""
    lse = torch.tensor(
        [draw(st.one_of(st.just(-math.inf), st.floats(-20, 20), st.floats(-1e4, 1e4))) for _ in range(3)]
    )
    values = st.lists(st.floats(-4, 4, width=32), min_size=3 * DIM, max_size=3 * DIM)
    out = torch.tensor(draw(values)).view(3, DIM)
    return out.masked_fill(lse.isinf()[:, None], 0.0), lse


def assert_same(left: Partial, right: Partial) -> None:
    """Equal but for what rounding an LSE does to the weights that it stands for."""
    rounding = torch.finfo(torch.float32).eps * float(left[1].abs().nan_to_num(posinf=0.0).max())
    torch.testing.assert_close(left[0], right[0], rtol=0, atol=1e-5 + 8 * rounding)
    torch.testing.assert_close(left[1], right[1], rtol=1e-6, atol=1e-5)


@given(partials())
def test_the_empty_partial_is_the_identity(part: Partial) -> None:
    empty = torch.zeros(3, DIM), torch.full((3,), -math.inf)
    for merged in (merge(*part, *empty), merge(*empty, *part)):
        assert torch.equal(merged[0], part[0])
        torch.testing.assert_close(merged[1], part[1], rtol=1e-6, atol=0)


@given(partials(), partials())
def test_merging_commutes(left: Partial, right: Partial) -> None:
    assert_same(merge(*left, *right), merge(*right, *left))


@given(partials(), partials(), partials())
def test_merging_associates(first: Partial, second: Partial, third: Partial) -> None:
    assert_same(merge(*merge(*first, *second), *third), merge(*first, *merge(*second, *third)))


@given(partials(), partials())
def test_a_merged_partial_is_finite_and_between_its_parts(left: Partial, right: Partial) -> None:
    out, lse = merge(*left, *right)
    assert torch.isfinite(out).all()
    assert not lse.isnan().any()
    assert (lse >= torch.maximum(left[1], right[1])).all()
    empty = left[1].isinf() | right[1].isinf()
    low, high = torch.minimum(left[0], right[0]), torch.maximum(left[0], right[0])
    inside = (out >= low - 1e-5) & (out <= high + 1e-5)
    assert (inside | empty[:, None]).all()


@given(partials(), partials(), st.booleans())
def test_the_result_may_overwrite_either_input(left: Partial, right: Partial, first: bool) -> None:
    expected = merge(*left, *right)
    buffer = left if first else right
    returned = merge(*left, *right, out=buffer[0], lse=buffer[1])
    assert returned[0] is buffer[0]
    assert torch.equal(buffer[0], expected[0])
    assert torch.equal(buffer[1], expected[1])


@given(st.integers(0, 2**32 - 1), st.integers(0, 9), st.sampled_from([1.0, 30.0, 1e4]))
def test_merged_partials_attend_the_union_of_their_tokens(seed: int, split: int, magnitude: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    query = torch.randn(DIM, generator=draw)
    keys = list(torch.randn(9, DIM, generator=draw))
    values = list(torch.randn(9, DIM, generator=draw))
    whole = plain.attention(query, keys, values, magnitude)
    parts = [
        plain.attention(query, keys[side], values[side], magnitude)
        for side in (slice(None, split), slice(split, None))
    ]
    operands = [entry for out, lse in parts for entry in (out, torch.tensor(lse, dtype=torch.float64))]
    out, lse = merge(*operands)
    torch.testing.assert_close(out, whole[0])
    torch.testing.assert_close(float(lse), whole[1])
