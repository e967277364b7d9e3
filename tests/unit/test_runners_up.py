"""runners_up continues a selection where it ends."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from rheo_kernels.reference import runners_up, select


@given(
    pages=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    budget=st.integers(0, 45),
    sinks=st.integers(0, 3),
    window=st.integers(1, 3),
    most=st.integers(1, 50),
    levels=st.sampled_from([2, 10**6]),
    seed=st.integers(0, 2**31),
)
def test_runners_up_are_what_a_larger_budget_would_add(
    pages: list[int], budget: int, sinks: int, window: int, most: int, levels: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    num_pages = torch.tensor(pages, dtype=torch.int32)
    columns = max(*pages, 1)
    scores = torch.randint(levels, (len(pages), 2, columns), generator=draw).float()
    scores.masked_fill_(torch.arange(columns) >= num_pages[:, None, None], -torch.inf)

    budgets = torch.full((len(pages), 2), budget, dtype=torch.int32)
    selected = select(scores, num_pages, budgets, sinks, window, columns)
    found = runners_up(scores, selected, num_pages, most)

    for row, count in enumerate(pages):
        for head in range(2):
            chosen = {page for page in selected[row, head].tolist() if page >= 0}
            listed = [page for page in found[row, head].tolist() if page >= 0]
            rest = set(range(count)) - chosen
            assert found[row, head, len(listed) :].eq(-1).all()
            assert len(listed) == len(set(listed)) == min(most, len(rest))
            assert set(listed) <= rest
            worth = scores[row, head].tolist()
            best = sorted((worth[page] for page in rest), reverse=True)
            assert [worth[page] for page in listed] == best[: len(listed)]
