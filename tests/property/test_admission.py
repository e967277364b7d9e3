"""Admission keeps pages and frames inverse (invariant 2) and the most valuable pages resident."""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis.strategies as st
import torch
from hypothesis import given

from rheo_kernels.reference import NEVER_EVICT, admit
from rheo_kernels.types import Admitted


@dataclass
class Residents:
    """One layer's page table, what its frames are worth, and candidates for them."""

    page_table: torch.Tensor
    page_of: torch.Tensor
    frame_values: torch.Tensor
    candidates: torch.Tensor
    candidate_values: torch.Tensor

    def copy(self) -> Residents:
        return Residents(*(tensor.clone() for tensor in vars(self).values()))

    def admit(self) -> Admitted:
        return admit(self.candidates, self.candidate_values, self.page_table, self.page_of, self.frame_values)

    def value_of(self, head: int) -> dict[int, float]:
        """What each resident page of a head is worth."""
        held = zip(self.page_of[head].tolist(), self.frame_values[head].tolist(), strict=True)
        return {page: value for page, value in held if page >= 0}

    def offers(self, head: int) -> dict[int, list[float]]:
        """Every value at which each admissible candidate of a head is offered."""
        offered: dict[int, list[float]] = {}
        for page, value in zip(
            self.candidates[head].tolist(), self.candidate_values[head].tolist(), strict=True
        ):
            if page > 0 and int(self.page_table[head, page]) < 0:
                offered.setdefault(page, []).append(value)
        return offered


@st.composite
def residents(draw: st.DrawFn) -> Residents:
    heads, pages, frames = draw(st.integers(1, 3)), draw(st.integers(2, 20)), draw(st.integers(1, 8))
    width = draw(st.integers(0, 12))
    seeded = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    page_table = torch.full((heads, pages), -1, dtype=torch.int32)
    page_of = torch.full((heads, frames), -1, dtype=torch.int32)
    for head in range(heads):
        held = draw(st.integers(0, min(frames, pages - 1)))
        held_pages = 1 + torch.randperm(pages - 1, generator=seeded)[:held]
        held_frames = torch.randperm(frames, generator=seeded)[:held]
        page_of[head, held_frames] = held_pages.int()
        page_table[head, held_pages] = held_frames.int()
    grain = draw(st.sampled_from([3.0, 1e6]))
    frame_values = (torch.rand(heads, frames, generator=seeded) * grain).round() / grain
    pinned = torch.rand(heads, frames, generator=seeded) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    frame_values[pinned] = NEVER_EVICT
    candidates = torch.randint(-1, pages, (heads, width), generator=seeded)
    values = (torch.rand(heads, width, generator=seeded) * grain).round() / grain
    if draw(st.booleans()):
        values += 1.0
    return Residents(page_table, page_of, frame_values, candidates, values)


def triples(admitted: Admitted) -> list[tuple[int, int, int]]:
    """Head, page and frame of everything that was admitted."""
    counts = admitted.counts.tolist()
    return [
        (head, page, frame)
        for head, (pages, frames) in enumerate(
            zip(admitted.pages.tolist(), admitted.frames.tolist(), strict=True)
        )
        for page, frame in list(zip(pages, frames, strict=True))[: counts[head]]
    ]


@given(residents())
def test_pages_and_frames_stay_each_others_inverse(case: Residents) -> None:
    case.admit()
    heads, frames = (case.page_of >= 0).nonzero(as_tuple=True)
    assert torch.equal(case.page_table[heads, case.page_of[heads, frames].long()].long(), frames)
    assert int((case.page_table >= 0).sum()) == len(heads)


@given(residents())
def test_what_is_admitted_is_published_and_nothing_else_moved(case: Residents) -> None:
    before = case.copy()
    admitted = triples(case.admit())
    assert all(case.page_table[head, page] == frame for head, page, frame in admitted)
    moved = (case.page_of != before.page_of).nonzero().tolist()
    assert sorted(moved) == sorted([head, frame] for head, _, frame in admitted)


@given(residents())
def test_padding_residents_and_repeats_are_ignored(case: Residents) -> None:
    before = case.copy()
    admitted = case.admit()
    pairs = [(head, page) for head, page, _ in triples(admitted)]
    assert len(pairs) == len(set(pairs)), "a page listed twice was admitted twice"
    for head, page in pairs:
        assert page in before.offers(head)
    assert not (case.page_table[:, 0] >= 0).any(), "the padding page was admitted"


@given(residents())
def test_pinned_frames_are_never_taken(case: Residents) -> None:
    before = case.copy()
    case.admit()
    pinned = (before.frame_values == NEVER_EVICT) & (before.page_of >= 0)
    assert torch.equal(case.page_of[pinned], before.page_of[pinned])


@given(residents())
def test_free_frames_go_first_and_each_admission_is_worth_it(case: Residents) -> None:
    before = case.copy()
    case.admit()
    for head in range(case.page_of.shape[0]):
        stayed = before.value_of(head).keys() & set(case.page_of[head].tolist())
        evicted = {page: value for page, value in before.value_of(head).items() if page not in stayed}
        gained = set(case.page_of[head].tolist()) - stayed - {-1}
        if evicted:
            assert not (case.page_of[head] < 0).any(), "a page was evicted although a frame was free"
            worst_gain = sorted(max(before.offers(head)[page]) for page in gained)
            for gain, loss in zip(worst_gain[-len(evicted) :], sorted(evicted.values()), strict=False):
                assert gain > loss


@given(residents())
def test_the_best_candidates_win_and_the_least_valuable_pages_lose(case: Residents) -> None:
    distinct = case.copy()
    for head in range(case.candidates.shape[0]):
        seen: set[int] = set()
        for column, page in enumerate(case.candidates[head].tolist()):
            if page in seen:
                distinct.candidates[head, column] = -1
            seen.add(page)
    before = distinct.copy()
    distinct.admit()
    for head in range(before.page_of.shape[0]):
        values = before.value_of(head)
        offered = {page: offers[0] for page, offers in before.offers(head).items()}
        after = set(distinct.page_of[head].tolist()) - {-1}
        lost = [values[page] for page in values if page not in after]
        kept = [values[page] for page in values if page in after]
        gained = [offered[page] for page in offered if page in after]
        refused = [offered[page] for page in offered if page not in after]
        if lost and kept:
            assert max(lost) <= min(kept)
        if gained and refused:
            assert min(gained) >= max(refused)
        if refused:
            assert len(after) == before.page_of.shape[1], "a candidate was refused although a frame was free"
            assert max(refused) <= min([*kept, *gained])


def test_no_candidates_change_nothing() -> None:
    table = torch.tensor([[-1, 0, -1]], dtype=torch.int32)
    page_of = torch.tensor([[1, -1]], dtype=torch.int32)
    nothing = torch.empty(1, 0)
    admitted = admit(nothing.long(), nothing, table, page_of, torch.zeros(1, 2))
    assert admitted.counts.tolist() == [0]
    assert page_of.tolist() == [[1, -1]]
    assert table.tolist() == [[-1, 0, -1]]


def test_a_candidate_worth_no_more_than_the_least_page_is_refused() -> None:
    table = torch.tensor([[-1, 0, -1]], dtype=torch.int32)
    page_of = torch.tensor([[1]], dtype=torch.int32)
    admit(torch.tensor([[2]]), torch.tensor([[0.5]]), table, page_of, torch.tensor([[0.5]]))
    assert page_of.tolist() == [[1]]
    admit(torch.tensor([[2]]), torch.tensor([[0.6]]), table, page_of, torch.tensor([[0.5]]))
    assert page_of.tolist() == [[2]]
    assert table.tolist() == [[-1, -1, 0]]
