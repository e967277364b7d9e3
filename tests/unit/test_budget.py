"""The budget stays within its bounds, short requests are dense, and the width holds every budget."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given

from rheo_sglang.budget.controller import BudgetController
from rheo_sglang.config import RheoConfig

HEADS = 3


def budget_of(config: RheoConfig, seq_lens: list[int], page_size: int) -> list[int]:
    controller = BudgetController(config, HEADS, page_size)
    lengths = torch.tensor(seq_lens)
    num_pages = ((lengths + page_size - 1) // page_size).int()
    budget = controller.budget(num_pages, lengths)
    assert budget.shape == (len(seq_lens), HEADS)
    assert budget.dtype == torch.int32
    assert (budget == budget[:, :1]).all()
    return budget[:, 0].tolist()


@pytest.mark.parametrize("page_size", [16, 32, 64])
def test_requests_up_to_the_dense_threshold_select_all_their_pages(page_size: int) -> None:
    config = RheoConfig(budget_ratio=0.01, budget_min_pages=1, dense_threshold=1000)
    pages = -(-1000 // page_size)
    assert budget_of(config, [1, 999, 1000], page_size) == [1, -(-999 // page_size), pages]
    assert budget_of(config, [1001], page_size) == [1]


def test_a_share_of_the_pages_between_least_and_most() -> None:
    config = RheoConfig(budget_ratio=0.1, budget_min_pages=8, budget_max_pages=20, dense_threshold=0)
    pages = [1, 8, 80, 101, 151, 500]
    assert budget_of(config, [16 * count for count in pages], 16) == [1, 8, 8, 11, 16, 20]


def test_full_ratio_selects_every_page_however_long() -> None:
    config = RheoConfig(budget_ratio=1.0, dense_threshold=0, budget_min_pages=1)
    assert budget_of(config, [1, 17, 100_000, 2_000_000], 16) == [1, 2, 6250, 125_000]


@st.composite
def configs(draw: st.DrawFn) -> RheoConfig:
    least = draw(st.integers(1, 40))
    return RheoConfig(
        budget_ratio=draw(st.one_of(st.sampled_from([0.05, 0.1, 0.2, 0.3, 1.0]), st.floats(1e-4, 1))),
        budget_min_pages=least,
        budget_max_pages=draw(st.one_of(st.none(), st.integers(least, 300))),
        sink_pages=draw(st.integers(0, 8)),
        window_pages=draw(st.integers(1, 8)),
        dense_threshold=draw(st.integers(0, 5000)),
    )


@given(configs(), st.lists(st.integers(1, 200_000), min_size=1, max_size=6), st.sampled_from([16, 32, 64]))
@example(RheoConfig(budget_ratio=0.3, budget_min_pages=1, dense_threshold=0), [50 * 16], 16)
def test_budgets_are_bounded_and_fit_the_width(
    config: RheoConfig, seq_lens: list[int], page_size: int
) -> None:
    width = BudgetController(config, HEADS, page_size).width(max(seq_lens))
    for tokens, budget in zip(seq_lens, budget_of(config, seq_lens, page_size), strict=True):
        pages = -(-tokens // page_size)
        assert 1 <= budget <= pages
        if tokens <= config.dense_threshold:
            assert budget == pages
        else:
            assert budget >= min(config.budget_min_pages, pages)
            assert config.budget_max_pages is None or budget <= config.budget_max_pages
        forced = min(pages, config.sink_pages + config.window_pages)
        assert width >= max(budget, forced), "a selection would not fit its columns"
    assert width <= -(-max(seq_lens) // page_size)
