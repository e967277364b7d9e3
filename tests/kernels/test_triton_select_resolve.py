"""select_resolve equals its references."""

from __future__ import annotations

import pytest
import torch
from test_triton_select import check_optimal, scores_of
from triton_cases import integers, page_lists, residency, to_device

from rheo_kernels import reference
from rheo_kernels.types import HitCounters, Selected


def check_fused(
    num_pages: list[int], width: int, frames: int, page_size: int, rng: torch.Generator, kind: str = "normal"
) -> None:
    from rheo_kernels import triton as kernels

    batch, heads, columns = len(num_pages), 2, max(num_pages) + 3
    total = sum(num_pages) + 8
    pages = page_lists(num_pages, columns, total, rng)
    counts = to_device(num_pages, rng)
    seq_lens = (counts.long() * page_size - integers(0, page_size, (batch,), rng)).clamp(min=0)
    table, _ = residency(heads, total, frames, rng)
    scores = scores_of(kind, (batch, heads, columns), counts, rng)
    budget = integers(1, width, (batch, heads), rng)
    out = Selected.allocate(batch, heads, width, rng.device)
    for buffer in out:
        buffer.fill_(-7)
    accessed = torch.zeros((heads, frames), dtype=torch.int8, device=rng.device)
    slots = torch.arange(batch, device=rng.device).flip(0) + 1
    rates, hits, selected = (
        torch.zeros((batch + 2, 3, heads), dtype=dtype, device=rng.device)
        for dtype in (torch.float32, torch.int64, torch.int64)
    )
    counters = HitCounters(rates[:, 1], hits[:, 1], selected[:, 1], slots)
    kernels.select_resolve(
        scores,
        pages,
        counts,
        seq_lens,
        budget,
        table,
        page_size,
        1,
        2,
        out,
        accessed=accessed,
        counters=counters,
    )

    check_optimal(out.indices, scores, counts, budget, 1, 2)
    found = reference.resolve(out.indices, pages.clamp(max=total - 1), seq_lens, table, page_size)
    for name, mine, theirs in zip(Selected._fields, out, found, strict=True):
        assert torch.equal(mine, theirs), name

    marked = torch.zeros((heads, frames + 1), dtype=torch.int8, device=rng.device)
    marked.scatter_(1, out.hits.transpose(0, 1).flatten(1).long() + 1, 1)
    assert torch.equal(accessed, marked[:, 1:])
    assert torch.equal(hits[slots, 1], out.num_hits.long())
    assert torch.equal(selected[slots, 1], out.num_selected.long())
    torch.testing.assert_close(rates[slots, 1], out.num_hits / out.num_selected.clamp(min=1))
    assert rates[:, 0].eq(0).all()
    assert rates[0].eq(0).all()


@pytest.mark.parametrize("page_size", [16, 32])
def test_select_resolve_equals_references(page_size: int, rng: torch.Generator) -> None:
    check_fused([120, 1, 33, 0], 40, 60, page_size, rng)


def test_select_resolve_with_everything_resident_or_missing(rng: torch.Generator) -> None:
    check_fused([40, 20], 45, 200, 16, rng)
    check_fused([40, 20], 45, 1, 16, rng)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["normal", "clustered"])
def test_select_resolve_equals_references_on_long_contexts(kind: str, rng: torch.Generator) -> None:
    check_fused([4093, 1, 700, 2048], 450, 1500, 32, rng, kind)
