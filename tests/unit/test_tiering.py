"""What every tiering policy must do, and what tells each from the others."""

from __future__ import annotations

import pytest
import torch

from rheo_kernels.types import Selected
from rheo_sglang.page_table import PageTable
from rheo_sglang.tiering import POLICIES, SELECTED, TieringPolicy
from rheo_sglang.tiering.ranks import IDLE_DECAY

LAYERS, HEADS, PAGES = 2, 2, 10


@pytest.fixture(params=sorted(POLICIES.names()))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_policy_keeps_as_many_bytes_for_a_page_as_the_plan_counts(name: str) -> None:
    few, many = (
        PageTable(LAYERS, HEADS, 4, 16, pages, 4, "mean", name, torch.float32, "cpu").policy
        for pages in (PAGES, 2 * PAGES)
    )

    def kept(policy: TieringPolicy) -> int:
        found = [
            one for value in vars(policy).values() for one in (value if isinstance(value, list) else [value])
        ]
        return sum(one.nbytes for one in found if isinstance(one, torch.Tensor) and one.ndim == 3)

    assert kept(many) - kept(few) == LAYERS * HEADS * PAGES * (4 + few.state_bytes)


class Steps:
    """A page table and its policy, driven by decode steps of one request that runs over pages 1 to 9."""

    def __init__(self, name: str, alpha: float = 0.3) -> None:
        self.table = PageTable(LAYERS, HEADS, 4, 16, PAGES, 4, "mean", name, torch.float32, "cpu", alpha)
        self.policy = self.table.policy
        self.listed = torch.arange(1, PAGES, dtype=torch.int32)[None]
        self.count = torch.tensor([PAGES - 1], dtype=torch.int32)

    def select(self, layer: int, *heads: list[int]) -> None:
        """One step of one layer: the pages that each head selects, ranked best first."""
        width = max(map(len, heads))
        selected = torch.tensor(
            [[*pages, *[-1] * (width - len(pages))] for pages in heads], dtype=torch.int32
        )
        scores = torch.zeros(1, HEADS, self.listed.shape[1])
        for head, pages in enumerate(heads):
            for place, page in enumerate(pages):
                scores[0, head, page - 1] = 1 - place / PAGES
        self.table.begin_step()
        self.table.list_pages(self.listed, self.count)
        self.on_step(layer, selected[None], scores)

    def on_step(self, layer: int, pages: torch.Tensor, scores: torch.Tensor | None = None) -> None:
        """One step of one layer in which ``[B, H, S]`` pages are selected."""
        none = torch.full_like(pages, -1)
        found = Selected(pages, none, pages, *[none] * 4)
        batch = pages.shape[0]
        scores = torch.zeros(batch, HEADS, self.listed.shape[1]) if scores is None else scores
        listed, count = self.listed.expand(batch, -1), self.count.expand(batch)
        self.policy.on_step(layer, scores, found, listed, count)

    def values(self, layer: int) -> torch.Tensor:
        return self.policy.values(layer, torch.arange(PAGES).expand(HEADS, -1))


def test_values_lie_in_the_unit_interval(name: str) -> None:
    steps = Steps(name, alpha=1.0)
    for number in range(300):
        steps.select(0, [1, 2 + number % 5], [3])
        values = steps.values(0)
        assert values.dtype == torch.float32
        assert (values >= 0).all()
        assert (values <= 1).all()


def test_a_page_that_no_request_lists_is_worth_nothing(name: str) -> None:
    steps = Steps(name)
    steps.listed = torch.arange(1, 6, dtype=torch.int32)[None]
    steps.count = torch.tensor([5], dtype=torch.int32)
    steps.select(0, [1, 2], [3])
    assert not steps.values(0)[:, [0, 6, 9]].any()
    assert (steps.values(0)[0, [1, 2]] > 0).all()


def test_what_this_step_selected_outranks_everything_it_did_not(name: str) -> None:
    steps = Steps(name, alpha=1.0)
    for _ in range(200):
        steps.select(0, [1], [1])
    steps.select(0, [2, 3, 4], [5, 6, 7])
    values = steps.values(0)
    assert (values[0, [2, 3, 4]] + SELECTED).min() > values[0, 1]
    assert (values[1, [5, 6, 7]] + SELECTED).min() > values[1, 1]


def test_layers_and_heads_are_valued_apart(name: str) -> None:
    steps = Steps(name)
    steps.select(0, [1], [2])
    before = steps.values(0)
    assert not steps.values(1).any()
    steps.select(1, [3], [4])
    assert torch.equal(steps.values(0), before)
    best = [[steps.values(layer)[head].argmax() for head in range(HEADS)] for layer in range(LAYERS)]
    assert best == [[1, 2], [3, 4]]


def test_values_are_looked_up_page_by_page(name: str) -> None:
    steps = Steps(name)
    steps.select(0, [1, 2, 3], [4, 5])
    pages = torch.tensor([[3, 3, 1, 9], [5, 0, 4, 4]])
    looked_up = steps.policy.values(0, pages)
    assert torch.equal(looked_up, steps.values(0).gather(1, pages))


def test_a_freed_page_starts_from_nothing(name: str) -> None:
    steps = Steps(name)
    for layer in range(LAYERS):
        steps.select(layer, [1, 2], [2, 1])
    steps.table.release(torch.tensor([1]))
    steps.table.settle()
    for layer in range(LAYERS):
        values = steps.values(layer)
        assert not values[:, 1].any()
        assert (values[:, 2] > 0).all()


def test_a_survivor_inherits_the_larger_worth(name: str) -> None:
    steps = Steps(name)
    steps.select(0, [1], [4])
    for _ in range(3):
        steps.select(0, [2], [3])
    before = steps.values(0)
    steps.table.fold(torch.tensor([2, 4]), torch.tensor([1, 3]))
    steps.table.settle()
    after = steps.values(0)
    assert after[0, 1] == before[0, 2] > before[0, 1]
    assert after[1, 3] == before[1, 3] > before[1, 4]
    assert after[0, 3] == before[0, [3, 4]].max()


def test_requests_of_one_batch_that_share_a_page_count_it_once(name: str) -> None:
    alone, shared = Steps(name), Steps(name)
    alone.on_step(0, torch.tensor([[[5], [5]]], dtype=torch.int32))
    shared.on_step(0, torch.tensor([[[5, 5], [5, -1]], [[5, -1], [-1, 5]]], dtype=torch.int32))
    assert torch.equal(alone.values(0), shared.values(0))


def test_a_step_that_selects_nothing_is_no_error(name: str) -> None:
    steps = Steps(name)
    steps.on_step(0, torch.full((2, HEADS, 3), -1, dtype=torch.int32))
    steps.on_step(0, torch.empty((2, HEADS, 0), dtype=torch.int32))
    assert not steps.values(0)[:, 0].any()


def order_after(name: str, selections: list[list[int]]) -> list[int]:
    """Pages 1 to 3 from the least to the most valuable."""
    steps = Steps(name)
    for pages in selections:
        steps.select(0, pages, pages)
    return (1 + steps.values(0)[0, 1:4].argsort()).tolist()


def test_each_policy_keeps_what_it_is_named_after() -> None:
    selections = [[1, 2], [1, 2], [1], [2, 3], [3, 2], [3]]
    assert order_after("lru", selections) == [1, 2, 3]
    assert order_after("lfu", [*selections, [2], [1], [1], [2], [2]])[-1] == 2
    assert order_after("importance", [[1]] * 9 + [[2, 3]]) == [3, 2, 1]


def test_importance_fades_while_nobody_runs_over_a_page_and_stays_otherwise() -> None:
    steps = Steps("importance")
    steps.select(0, [1, 2], [1, 2])
    before = steps.values(0)
    for _ in range(3):
        steps.table.begin_step()
        steps.table.list_pages(torch.tensor([[1, 7]], dtype=torch.int32), torch.tensor([1]))
    after = steps.values(0)
    assert torch.equal(after[:, 1], before[:, 1])
    torch.testing.assert_close(after[:, 2], before[:, 2] * IDLE_DECAY**3)
    assert torch.equal(steps.table.policy.worth[0, :, 2], before[:, 2])
