"""select chooses exactly the reference's set, whatever the scores look like."""

from __future__ import annotations

import pytest
import torch
from triton_cases import integers, normal, rows_as_sets, to_device

from rheo_kernels import reference

DISTRIBUTIONS = {
    "normal": lambda x: x,
    "outliers": lambda x: torch.where(x > 2, x * 1e30, x),
    "tiny": lambda x: x * 1e-38,
    "clustered": lambda x: 1000 + 1e-3 * x,
    "negative": lambda x: -x.exp(),
}


def scores_of(
    kind: str, shape: tuple[int, ...], num_pages: torch.Tensor, rng: torch.Generator
) -> torch.Tensor:
    scores = DISTRIBUTIONS[kind](normal(shape, torch.float32, rng))
    past = torch.arange(shape[2], device=rng.device) >= num_pages[:, None, None]
    return scores.masked_fill(past, -torch.inf)


def check_optimal(
    selected: torch.Tensor,
    scores: torch.Tensor,
    num_pages: torch.Tensor,
    budget: torch.Tensor,
    sink: int,
    window: int,
) -> None:
    """The selection has the reference's size, forced pages and scores."""
    width = selected.shape[2]
    expected = rows_as_sets(reference.select(scores, num_pages, budget, sink, window, width))
    chosen = rows_as_sets(selected)
    heads = scores.shape[1]
    for row, (mine, theirs) in enumerate(zip(chosen, expected, strict=True)):
        batch, head = divmod(row, heads)
        values = scores[batch, head].tolist()
        pages = int(num_pages[batch])
        assert len(mine) == len(theirs)
        forced = {p for p in range(pages) if p < sink or p >= pages - max(window, 1)}
        assert forced <= mine
        assert all(0 <= p < pages for p in mine)
        assert sorted(values[p] for p in mine - forced) == sorted(values[p] for p in theirs - forced)


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_select_equals_reference(kind: str, rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    num_pages = to_device([200, 7, 1, 64, 0], rng)
    scores = scores_of(kind, (5, 2, 203), num_pages, rng)
    budget = integers(1, 60, (5, 2), rng)
    out = torch.full((5, 2, 70), -7, dtype=torch.int32, device=rng.device)
    kernels.select(scores, num_pages, budget, 1, 2, 70, out=out)
    check_optimal(out, scores, num_pages, budget, 1, 2)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_select_with_ties_takes_exactly_the_budget(levels: int, rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    num_pages = to_device([100, 128], rng)
    scores = integers(0, levels, (2, 2, 128), rng).float()
    scores = scores.masked_fill(torch.arange(128, device=rng.device) >= num_pages[:, None, None], -torch.inf)
    budget = to_device([10, 50], rng)[:, None].expand(2, 2)
    selected = kernels.select(scores, num_pages, budget, 0, 1, 64)
    check_optimal(selected, scores, num_pages, budget, 0, 1)


def test_select_whole_budget_selects_every_page(rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    num_pages = to_device([60, 33], rng)
    scores = scores_of("normal", (2, 1, 60), num_pages, rng)
    budget = torch.full((2, 1), 60, dtype=torch.int32, device=rng.device)
    selected = kernels.select(scores, num_pages, budget, 1, 2, 60)
    assert rows_as_sets(selected) == [set(range(60)), set(range(33))]
    assert selected[1, 0, 33:].eq(-1).all()


@pytest.mark.parametrize(("sink", "window"), [(4, 6), (0, 0), (20, 20)])
def test_select_keeps_forced_pages_beyond_the_budget(sink: int, window: int, rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    num_pages = to_device([30, 3], rng)
    scores = scores_of("normal", (2, 2, 30), num_pages, rng)
    budget = torch.full((2, 2), 5, dtype=torch.int32, device=rng.device)
    selected = kernels.select(scores, num_pages, budget, sink, window, 40)
    check_optimal(selected, scores, num_pages, budget, sink, window)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("columns", [1024, 4096, 8192, 32768])
def test_select_equals_reference_on_long_contexts(columns: int, kind: str, rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    num_pages = to_device([columns, columns // 3, columns - 1, 5], rng)
    scores = scores_of(kind, (4, 8, columns), num_pages, rng)
    budget = integers(16, columns // 4, (4, 8), rng)
    selected = kernels.select(scores, num_pages, budget, 1, 2, columns // 4)
    check_optimal(selected, scores, num_pages, budget, 1, 2)


def test_select_refuses_page_lists_beyond_its_counters(device: str) -> None:
    from rheo_kernels import triton as kernels

    scores = torch.zeros((1, 1, 2**15 + 1), device=device)
    count = torch.ones(1, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="32769 columns are too wide"):
        kernels.select(scores, count, count[:, None], 1, 2, 16)
