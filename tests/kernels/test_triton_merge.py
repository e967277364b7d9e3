"""merge equals its reference over any number of splits, empty and host partials included."""

from __future__ import annotations

import math

import pytest
import torch
from triton_cases import normal

from rheo_kernels import reference

BATCH, HEADS, GROUP = 3, 2, 4


def partials(splits: int, dim: int, rng: torch.Generator):
    """Random partials; about a third are empty, with garbage in their output."""
    from rheo_kernels.types import Partials

    parts = Partials.allocate(BATCH * HEADS, GROUP, dim, splits, rng.device)
    parts.out.copy_(normal(tuple(parts.out.shape), torch.float32, rng))
    parts.lse.copy_(normal(tuple(parts.lse.shape), torch.float32, rng) * 20)
    empty = torch.rand(parts.lse.shape, generator=rng, device=rng.device) < 0.3
    parts.lse.masked_fill_(empty, -torch.inf)
    parts.out.masked_fill_(empty[..., None], torch.nan)
    return parts


def expected(*sets) -> tuple[torch.Tensor, torch.Tensor]:
    """All splits of all sets, merged two by two; natural-log LSE."""
    out = torch.zeros_like(sets[0].out[:, 0])
    lse = torch.full_like(sets[0].lse[:, 0], -torch.inf)
    for parts in sets:
        for split in range(parts.splits):
            part = parts.out[:, split].nan_to_num(0.0)
            out, lse = reference.merge(out, lse, part, parts.lse[:, split] * math.log(2))
    return out, lse


@pytest.mark.parametrize("dim", [64, 80, 256])
@pytest.mark.parametrize(
    ("splits", "more", "tail"), [(1, 0, 0), (3, 1, 2), (33, 16, 0), (70, 5, 64), (2, 0, 3)]
)
def test_merge_equals_reference(splits: int, more: int, tail: int, dim: int, rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    sets = [partials(count, dim, rng) if count else None for count in (splits, more, tail)]
    out = torch.full((BATCH, HEADS * GROUP, dim), torch.nan, device=rng.device)
    lse = torch.full((BATCH, HEADS * GROUP), torch.nan, device=rng.device)
    kernels.merge(sets[0], sets[1], out, lse, tail=sets[2])
    theirs, theirs_lse = expected(*(parts for parts in sets if parts is not None))
    torch.testing.assert_close(out, theirs.view(out.shape), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, theirs_lse.view(lse.shape), rtol=1e-5, atol=1e-4)


def test_merge_takes_a_partial_of_the_hosts_into_the_model_dtype(rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    hits, misses = partials(3, 96, rng), partials(2, 96, rng)
    host_out = normal((BATCH, HEADS * GROUP, 96), torch.float32, rng)
    host_lse = normal((BATCH, HEADS * GROUP), torch.float32, rng) * 20
    host_lse[0, :3] = -torch.inf
    host_out[0, :3] = torch.nan
    out = torch.empty(host_out.shape, dtype=torch.bfloat16, device=rng.device)
    kernels.merge(hits, misses, out, host_out=host_out, host_lse=host_lse)
    device, device_lse = expected(hits, misses)
    merged, _ = reference.merge(
        device.view(out.shape), device_lse.view(host_lse.shape), host_out.nan_to_num(0.0), host_lse
    )
    torch.testing.assert_close(out, merged.bfloat16(), rtol=1e-2, atol=1e-5)


def test_merge_of_empty_partials_is_empty(rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    parts = partials(4, 64, rng)
    parts.lse.fill_(-torch.inf)
    parts.out.fill_(torch.nan)
    out = torch.full((BATCH, HEADS * GROUP, 64), torch.nan, device=rng.device)
    lse = torch.zeros(out.shape[:2], device=rng.device)
    kernels.merge(parts, None, out, lse)
    assert out.eq(0).all()
    assert lse.eq(-torch.inf).all()


@pytest.mark.parametrize("host", [False, True])
def test_merge_counts_the_share_of_attention_that_is_not_the_tail_s(host: bool, rng: torch.Generator) -> None:
    """In the row of each request's slot; a request of which nothing is left out has all of it."""
    from rheo_kernels import triton as kernels
    from rheo_kernels.types import Coverage

    hits, misses, tail = (partials(count, 64, rng) for count in (5, 3, 4))
    for parts in (hits, misses, tail):
        parts.lse.div_(10)
    tail.lse[:HEADS].fill_(-torch.inf)
    hits.lse[HEADS].fill_(-torch.inf)
    misses.lse[HEADS].fill_(-torch.inf)
    tail.lse[HEADS, 0].fill_(0.0)
    tail.out[HEADS, 0].fill_(0.0)
    host_out = normal((BATCH, HEADS * GROUP, 64), torch.float32, rng) if host else None
    host_lse = normal((BATCH, HEADS * GROUP), torch.float32, rng) if host else None
    shares = torch.ones((5, 2, HEADS), device=rng.device)
    slots = torch.tensor([3, 0, 2], device=rng.device)
    out = torch.empty((BATCH, HEADS * GROUP, 64), device=rng.device)
    lse = torch.empty(out.shape[:2], device=rng.device)
    coverage = Coverage(shares[:, 1], slots)
    for _ in range(2):
        kernels.merge(hits, misses, out, lse, host_out, host_lse, tail, coverage)
    theirs = expected(tail)[1].view(lse.shape).double()
    covered = (1 - (theirs - lse.double()).exp()).unflatten(1, (HEADS, GROUP)).mean(2).float()
    torch.testing.assert_close(shares[slots, 1], 1 + 2 * covered, rtol=1e-4, atol=1e-4)
    assert covered[0].eq(1).all() and covered[2].min() > 0.1 and covered[2].max() < 0.99
    assert host or covered[1, 0].abs() < 1e-6
    assert shares[:, 0].eq(1).all() and shares[[1, 4]].eq(1).all()
