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
    pages_of = torch.arange(columns, dtype=torch.int32).expand(len(pages), -1)
    page_table = torch.where(torch.rand((2, columns), generator=draw) < 0.3, 7, -1).int()
    found = runners_up(scores, selected, pages_of, num_pages, page_table, most)

    for row, count in enumerate(pages):
        for head in range(2):
            chosen = {page for page in selected[row, head].tolist() if page >= 0}
            listed = found.pages[row, head, : found.counts[row, head]].tolist()
            rest = set(range(count)) - chosen
            missing = {page for page in rest if page_table[head, page] < 0}
            assert len(listed) == len(set(listed))
            assert set(listed) <= missing
            worth = scores[row, head].tolist()
            assert [worth[page] for page in listed] == sorted((worth[page] for page in listed), reverse=True)
            if len(set(worth[:count])) == count:
                best = sorted(rest, key=lambda page: -worth[page])[:most]
                assert set(listed) == set(best) & missing
