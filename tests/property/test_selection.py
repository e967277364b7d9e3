"""The selected set: sinks, window, tail, nothing beyond the sequence, within the budget (invariant 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import hypothesis.strategies as st
import torch
from hypothesis import given

from rheo_kernels.reference import favour, resolve, select
from rheo_kernels.types import ResidencyBonus

HEADS = 2

SPECIAL = (math.nan, -math.nan, math.inf, -math.inf, 3.0e38)
"""Scores that keys with NaN or huge values lead to."""


@dataclass(frozen=True)
class Case:
    """One call of select: lengths and budgets in pages."""

    num_pages: list[int]
    budgets: list[list[int]]
    sink_pages: int
    window_pages: int
    width: int
    scores: torch.Tensor

    def forced(self, request: int) -> set[int]:
        """Sinks and window, of which the tail page is always one."""
        count = self.num_pages[request]
        window = max(self.window_pages, 1)
        return {page for page in range(count) if page < self.sink_pages or page >= count - window}

    def select(self, out: torch.Tensor | None = None) -> torch.Tensor:
        num_pages = torch.tensor(self.num_pages, dtype=torch.int32)
        budget = torch.tensor(self.budgets, dtype=torch.int32)
        return select(self.scores, num_pages, budget, self.sink_pages, self.window_pages, self.width, out)


def infinite_for_nan(scores: torch.Tensor) -> torch.Tensor:
    """NaN counts as the infinity of its sign."""
    return torch.where(scores.isnan(), torch.full_like(scores, math.inf).copysign(scores), scores)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    num_pages = draw(st.lists(st.integers(1, 24), min_size=1, max_size=4))
    per_request = st.lists(st.integers(1, 24), min_size=HEADS, max_size=HEADS)
    budgets = draw(st.lists(per_request, min_size=len(num_pages), max_size=len(num_pages)))
    sink_pages, window_pages = draw(st.integers(0, 5)), draw(st.integers(0, 5))
    longest = max(num_pages)
    scores = torch.randn(
        len(num_pages),
        HEADS,
        longest,
        generator=torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1))),
    )
    if draw(st.booleans()):
        scores = scores.round()
    for value in draw(st.lists(st.sampled_from(SPECIAL), max_size=2)):
        scores[torch.rand(scores.shape, generator=torch.Generator().manual_seed(longest)) < 0.3] = value
    scores.masked_fill_(torch.arange(longest) >= torch.tensor(num_pages)[:, None, None], -math.inf)
    needed = max(max(map(max, budgets)), sink_pages + max(window_pages, 1))
    width = min(longest, needed) + draw(st.integers(0, 2))
    return Case(num_pages, budgets, sink_pages, window_pages, width, scores)


@given(cases())
def test_sinks_window_and_tail_are_always_selected(case: Case) -> None:
    for request, heads in enumerate(case.select().tolist()):
        for selected in heads:
            assert case.forced(request) <= set(selected)
            assert case.num_pages[request] - 1 in selected


@given(cases())
def test_nothing_beyond_the_sequence_and_nothing_twice(case: Case) -> None:
    for request, heads in enumerate(case.select().tolist()):
        for selected in heads:
            chosen = [page for page in selected if page >= 0]
            assert len(chosen) == len(set(chosen))
            assert all(page < case.num_pages[request] for page in chosen)
            assert selected == chosen + [-1] * (case.width - len(chosen)), "the empty columns come last"


@given(cases())
def test_the_budget_is_spent_and_not_exceeded_except_by_what_is_forced(case: Case) -> None:
    for request, heads in enumerate(case.select().tolist()):
        for budget, selected in zip(case.budgets[request], heads, strict=True):
            forced = len(case.forced(request))
            assert sum(page >= 0 for page in selected) == min(case.num_pages[request], max(budget, forced))


@given(cases())
def test_the_rest_of_the_budget_goes_to_the_best_scores(case: Case) -> None:
    for request, heads in enumerate(case.select().tolist()):
        for head, selected in enumerate(heads):
            scores = infinite_for_nan(case.scores[request, head])
            retrieved = set(selected) - case.forced(request) - {-1}
            left_out = set(range(case.num_pages[request])) - set(selected)
            if retrieved and left_out:
                assert min(scores[list(retrieved)]) >= max(scores[list(left_out)])


@given(cases())
def test_of_equal_scores_the_earlier_page_is_taken(case: Case) -> None:
    for request, heads in enumerate(case.select().tolist()):
        for head, selected in enumerate(heads):
            scores = infinite_for_nan(case.scores[request, head])
            left_out = set(range(case.num_pages[request])) - set(selected)
            for page in set(selected) - case.forced(request) - {-1}:
                assert not any(other < page for other in left_out if scores[other] == scores[page])


@given(cases())
def test_a_dirty_result_buffer_is_overwritten(case: Case) -> None:
    out = torch.full((len(case.num_pages), HEADS, case.width), 77, dtype=torch.int32)
    assert case.select(out) is out
    assert torch.equal(out, case.select())


@given(cases(), st.sampled_from([16, 32, 64]), st.integers(0, 2**32 - 1))
def test_resolved_pages_are_hits_or_misses_and_hold_the_requests_tokens(
    case: Case, page_size: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    longest, batch = max(case.num_pages), len(case.num_pages)
    pages = torch.stack([1 + torch.randperm(40, generator=draw)[:longest] for _ in range(batch)]).int()
    page_table = torch.randint(-1, 6, (HEADS, 41), generator=draw, dtype=torch.int32)
    tails = torch.randint(1, page_size + 1, (batch,), generator=draw)
    seq_lens = (torch.tensor(case.num_pages) - 1) * page_size + tails
    selected = case.select()
    found = resolve(selected, pages, seq_lens, page_table, page_size)
    for request in range(batch):
        for head in range(HEADS):
            chosen = [index for index in selected[request, head].tolist() if index >= 0]
            hits = [index for index in chosen if page_table[head, pages[request, index]] >= 0]
            order = sorted(hits) + sorted(set(chosen) - set(hits))
            assert int(found.num_hits[request, head]) == len(hits)
            assert int(found.num_selected[request, head]) == len(chosen)
            for column, index in enumerate(order + [-1] * (case.width - len(order))):
                assert int(found.indices[request, head, column]) == index
                got = [int(field[request, head, column]) for field in found[:4]]
                if index < 0:
                    assert got == [-1, -1, -1, 0]
                    continue
                page = int(pages[request, index])
                frame = int(page_table[head, page])
                tokens = min(page_size, int(seq_lens[request]) - index * page_size)
                assert got == [page, frame, page if frame < 0 else -1, tokens]


@dataclass(frozen=True)
class State:
    """A case's page lists and what has a frame."""

    pages: torch.Tensor
    page_table: torch.Tensor

    @classmethod
    def draw(cls, case: Case, seed: int, resident: float) -> State:
        draw = torch.Generator().manual_seed(seed)
        shape = case.scores.shape
        pages = torch.stack([1 + torch.randperm(40, generator=draw)[: shape[2]] for _ in range(shape[0])])
        table = torch.where(torch.rand((HEADS, 41), generator=draw) < resident, 5, -1)
        return cls(pages.int(), table.int())

    def favoured(self, case: Case, bonus: float, floors: list[float] | None = None) -> Case:
        """The case with the scores that a bonus makes."""
        given = ResidencyBonus(bonus, torch.tensor(floors or [0.0] * len(case.num_pages)))
        counts = torch.tensor(case.num_pages, dtype=torch.int32)
        return replace(case, scores=favour(case.scores, self.pages, counts, self.page_table, given))

    def misses(self, case: Case) -> torch.Tensor:
        """Of each request and KV head."""
        lengths = torch.tensor(case.num_pages) * 16
        found = resolve(case.select(), self.pages, lengths, self.page_table, 16)
        return found.num_selected - found.num_hits


states = st.tuples(cases(), st.integers(0, 2**32 - 1), st.floats(0, 1))


@given(states, st.floats(0, 100, width=32))
def test_a_bonus_raises_no_misses_and_no_budget(state: tuple[Case, int, float], bonus: float) -> None:
    case, seed, resident = state
    where = State.draw(case, seed, resident)
    favoured = where.favoured(case, bonus)
    assert torch.equal((favoured.select() >= 0).sum(2), (case.select() >= 0).sum(2))
    assert (where.misses(favoured) <= where.misses(case)).all()
    for request, heads in enumerate(favoured.select().tolist()):
        assert all(case.forced(request) <= set(selected) for selected in heads)


@given(states, st.floats(0, 100, width=32))
def test_a_bonus_of_nothing_and_requests_with_a_floor_select_as_without(
    state: tuple[Case, int, float], bonus: float
) -> None:
    case, seed, resident = state
    where = State.draw(case, seed, resident)
    floors = [0.9] * len(case.num_pages)
    for same in (where.favoured(case, 0.0), where.favoured(case, bonus, floors)):
        assert torch.equal(same.scores.nan_to_num(7.0), case.scores.nan_to_num(7.0))
        assert torch.equal(same.select(), case.select())


@given(states, st.floats(0, 4))
def test_what_a_bonus_leaves_out_is_bounded(state: tuple[Case, int, float], bonus: float) -> None:
    """At most ``exp(bonus)`` times the share that is left out without it."""
    case, seed, resident = state
    finite = replace(case, scores=infinite_for_nan(case.scores).nan_to_num(0.0, 9.0, -math.inf))
    shares = finite.scores.clamp(max=9.0).double().exp()

    def left_out(found: Case) -> torch.Tensor:
        chosen = torch.zeros((*shares.shape[:2], shares.shape[2] + 1), dtype=torch.bool)
        chosen.scatter_(2, found.select().long() + 1, True)
        return shares.masked_fill(chosen[:, :, 1:], 0.0).sum(2)

    clamped = replace(finite, scores=finite.scores.clamp(max=9.0))
    favoured = State.draw(case, seed, resident).favoured(clamped, bonus)
    assert (left_out(favoured) <= math.exp(bonus) * left_out(clamped) * (1 + 1e-5) + 1e-9).all()
