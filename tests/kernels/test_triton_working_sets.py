"""count_working_sets: the kernel equals its reference, and both equal sets of pages."""

from __future__ import annotations

import pytest
import torch
from triton_cases import integers, page_lists, to_device

from rheo_kernels import reference
from rheo_kernels.triton import working_sets as kernels
from rheo_kernels.types import Stamps

ROWS, STEP = 3, 40


def by_sets(
    pages: torch.Tensor, num_pages: torch.Tensor, stamped: torch.Tensor, oldest: int
) -> tuple[list[list[int]], list[int]]:
    """Pages of each request, ``[B][R]``, and of all, ``[R]``, counted with sets."""
    lists = [set(row[:count].tolist()) for row, count in zip(pages, num_pages.tolist(), strict=True)]
    recent = [set((row >= oldest).nonzero().flatten().tolist()) for row in stamped]
    together = set().union(*lists)
    return [[len(own & row) for row in recent] for own in lists], [len(together & row) for row in recent]


@pytest.mark.parametrize("oldest", [0, 1, 25, STEP])
@pytest.mark.parametrize(
    ("num_pages", "shared", "spare"),
    [([1], 0, 8), ([120, 1, 33, 0], 0, 8), ([40, 40, 70], 25, 300), ([2000, 1500], 1200, 9000)],
)
def test_counts_are_those_of_sets(
    num_pages: list[int], shared: int, spare: int, oldest: int, rng: torch.Generator
) -> None:
    """Requests share their first pages; programs and passes end within lists; other pages were selected, too."""
    logical = sum(num_pages) + spare
    pages = page_lists(num_pages, max(num_pages) + 3, logical, rng)
    pages[:, :shared] = pages[0, :shared]
    counts = to_device(num_pages, rng)
    stamped = integers(0, STEP, (ROWS, logical), rng)
    last_active = integers(0, STEP, (logical,), rng)
    for row, count in enumerate(num_pages):
        last_active[pages[row, :count].long()] = STEP
    last_active[0] = STEP
    expected = by_sets(pages, counts, stamped, oldest)
    requests, total = reference.count_working_sets(pages, counts, last_active, stamped, STEP, oldest)
    assert (requests.tolist(), total.tolist()) == expected
    out = torch.full((ROWS, len(num_pages) + kernels.total_programs(logical)), -7, device=rng.device)
    out = out.to(torch.int32)
    kernels.count_working_sets(pages, counts, last_active, stamped, STEP, oldest, out)
    assert torch.equal(out[:, : len(num_pages)], requests.T)
    assert out[:, len(num_pages) :].sum(1).tolist() == expected[1]


def test_stamps_are_of_the_selected_pages_alone(rng: torch.Generator) -> None:
    pages = torch.tensor([[[3, 7, -1], [3, -1, -1]], [[7, 9, 2], [-1, -1, -1]]], device=rng.device)
    stamped = torch.full((2, 12), 5, dtype=torch.int32, device=rng.device)
    step = torch.tensor(STEP, dtype=torch.int32, device=rng.device)
    reference.stamp_selected(pages.int(), Stamps(step, stamped))
    assert [set((row == STEP).nonzero().flatten().tolist()) for row in stamped] == [{2, 3, 7, 9}, {3}]
    assert int((stamped == 5).sum()) == 2 * 12 - 5
