"""Prefill seeds importance with the attention of a chunk's last tokens, and gives the best pages frames."""

from __future__ import annotations

import pytest
import torch

from rheo_kernels.reference import block_keys
from rheo_sglang.budget.controller import BudgetController
from rheo_sglang.config import RheoConfig
from rheo_sglang.page_table import PageTable
from rheo_sglang.pools.blocks import frame_pool, host_pool
from rheo_sglang.prefill import SEED_QUERIES, Prefill, PrefillRequest

HEADS, GROUP, DIM, PAGE_SIZE, PAGES, FRAMES = 2, 3, 16, 16, 20, 3
ALPHA = 0.5


class Prompt:
    """Random Q, K and V of one prompt, and a prefill that ran it whole."""

    def __init__(self, tokens: int, **settings: float) -> None:
        self.tokens = tokens
        self.q = torch.randn(tokens, HEADS * GROUP, DIM) * 2
        self.k, self.v = torch.randn(tokens, HEADS, DIM), torch.randn(tokens, HEADS, DIM)
        config = RheoConfig(importance_alpha=ALPHA, dense_threshold=0, **settings)
        self.table = PageTable(1, HEADS, DIM, PAGES, FRAMES, "mean", "importance", torch.float32, "cpu")
        self.host = host_pool(1, PAGES, HEADS, DIM, PAGE_SIZE, torch.float32)
        self.frames = frame_pool(1, HEADS, FRAMES, DIM, PAGE_SIZE, torch.float32, "cpu")
        controller = BudgetController(config, HEADS, PAGE_SIZE)
        prefill = Prefill(config, self.table, self.host, self.frames, PAGE_SIZE, controller)
        self.pages = 1 + torch.randperm(PAGES - 1)[: -(-tokens // PAGE_SIZE)]
        position = torch.arange(tokens)
        slots = self.pages[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE
        request = PrefillRequest(0, tokens, 0, self.pages)
        prefill(0, self.q, self.k, self.v, slots, [request], DIM**-0.5, torch.empty_like(self.q))

    def page_mass(self, head: int) -> list[float]:
        """Attention that each page draws from the last tokens, token by token in float64."""
        mass = [0.0] * len(self.pages)
        for position in range(max(0, self.tokens - SEED_QUERIES), self.tokens):
            for member in range(GROUP):
                query = self.q[position, head * GROUP + member].double()
                weights = (self.k[: position + 1, head].double() @ query * DIM**-0.5).softmax(0)
                for token, weight in enumerate(weights.tolist()):
                    mass[token // PAGE_SIZE] += weight
        return mass


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 100, 256])
def test_importance_is_seeded_by_the_last_tokens_attention(tokens: int) -> None:
    prompt = Prompt(tokens)
    count = len(prompt.pages)
    for head in range(HEADS):
        mass = prompt.page_mass(head)
        ranked = sorted(range(count), key=lambda page: mass[page])
        for place, page in enumerate(ranked, 1):
            importance = float(prompt.table.importance[0, head, prompt.pages[page]])
            assert importance == pytest.approx(ALPHA * place / count, abs=1e-6)
    others = [page for page in range(PAGES) if page not in prompt.pages.tolist()]
    assert not prompt.table.importance[:, :, others].any()


def test_the_most_important_full_pages_get_the_frames() -> None:
    prompt = Prompt(10 * PAGE_SIZE + 3, budget_ratio=1.0)
    for head in range(HEADS):
        mass = prompt.page_mass(head)[:10]
        best = sorted(range(10), key=lambda page: -mass[page])[:FRAMES]
        held = prompt.table.page_of[0, head].tolist()
        assert set(held) == {int(prompt.pages[page]) for page in best}
        for frame, page in enumerate(held):
            assert torch.equal(prompt.frames[0, head, frame], prompt.host[0, page, head])
    prompt.table.check()


def test_no_more_pages_are_offered_than_decoding_will_select() -> None:
    prompt = Prompt(10 * PAGE_SIZE, budget_ratio=0.01, budget_min_pages=1, sink_pages=0, window_pages=1)
    assert (prompt.table.page_of >= 0).sum(2).tolist() == [[1, 1]]


def test_host_pages_hold_the_prompt() -> None:
    prompt = Prompt(3 * PAGE_SIZE)
    keys = block_keys(prompt.host[0, prompt.pages], PAGE_SIZE)
    assert torch.equal(keys.permute(0, 3, 1, 2).flatten(0, 1), prompt.k)
