"""allow and cover: what a floor needs, exactly and no more; the same on every device; never out of bounds."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from triton_cases import integers, normal, to_device

from rheo_kernels import reference
from rheo_kernels.reference.cover import fixed_point
from rheo_kernels.types import Growth
from rheo_kernels.types.shares import FRACTION, LEVELS, STEPS

SINK, WINDOW = 1, 2
ROUNDING = 2 ** (1 / STEPS) * (1 + 2**-13)
"""How far a share may be rounded up."""


def rows_of(kind: str, shape: tuple[int, int, int], rng: torch.Generator) -> torch.Tensor:
    """Logarithms of shares that add up to 1, or to less where some are unknown."""
    noise = normal(shape, torch.float32, rng)
    if kind == "equal":
        noise.zero_()
    elif kind == "one page has everything":
        noise.zero_()[..., shape[2] // 2] = 200.0
    elif kind == "few levels":
        noise = noise.round()
    elif kind == "wide":
        noise *= 12
    scores = noise.log_softmax(-1)
    if kind == "nothing known":
        scores.fill_(-torch.inf)
    elif kind == "half unknown":
        scores[normal(shape, torch.float32, rng) > 0] = -torch.inf
    return scores.clamp(min=-80).where(scores > -torch.inf, scores)


KINDS = ("equal", "one page has everything", "few levels", "wide", "normal", "nothing known", "half unknown")


def left_out(scores: torch.Tensor, count: int) -> float:
    """Share of all but the ``count`` best of some pages."""
    best = scores.double().sort(descending=True).values
    return float(best[count:].exp().sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [1, 7, 300])
def test_a_floor_needs_pages_that_leave_little_enough_and_none_more(
    kind: str, columns: int, rng: torch.Generator
) -> None:
    floors = torch.tensor([1e-7, 0.3, 0.5, 0.9, 0.99, 0.999999], device=rng.device)
    scores = rows_of(kind, (len(floors), 2, columns), rng)
    needed = reference.cover(scores, floors)
    for request, floor in enumerate(floors.double().tolist()):
        for head in range(2):
            row, count = scores[request, head], int(needed[request, head])
            slack = 1e-6 + columns * 2.0**-FRACTION
            assert left_out(row, count) <= 1 - floor + slack
            if count:
                assert left_out(row, count - 1) * ROUNDING + slack > 1 - floor, "one page fewer would do"


@given(
    values=st.lists(
        st.floats(-90, 0, exclude_max=True, width=32) | st.just(-math.inf), min_size=1, max_size=40
    ),
    floor=st.floats(0, 1, width=32),
    copies=st.integers(1, 6),
)
@settings(max_examples=200)
def test_a_floor_counts_ties_as_arithmetic_does(values: list[float], floor: float, copies: int) -> None:
    scores = torch.tensor(values * copies).logsumexp(0)
    row = torch.tensor(values * copies) - (scores if scores > -math.inf else 0.0)
    level, share = fixed_point(row[None, None])
    order = sorted(zip(level.flatten().tolist(), share.flatten().tolist(), strict=True))
    allowance = math.floor(float(np.float32((1 - np.float32(floor)) * np.float32(2.0**FRACTION))))
    count, left = len(order), 0
    while count and order[count - 1][0] >= 0 and left + order[count - 1][1] <= allowance:
        count -= 1
        left += order[count][1]
    if floor >= 1:
        count = int((row > -torch.inf).sum())
    expected = count if floor > 0 else 0
    assert int(reference.cover(row[None, None], torch.tensor([floor]))) == expected


def test_levels_are_ordered_as_scores_and_round_shares_up(rng: torch.Generator) -> None:
    scores = -normal((1, 1, 4000), torch.float32, rng).abs() * 6
    level, share = fixed_point(scores)
    order = scores.flatten().argsort(descending=True)
    assert bool((level.flatten()[order].diff() >= 0).all())
    assert bool((share.flatten()[order].diff() <= 0).all())
    exact = scores.double().exp() * 2.0**FRACTION
    assert bool((share + 1 >= exact * (1 - 2**-12)).all())
    assert bool((share <= exact * ROUNDING + 1).all())
    assert int(level.max()) <= LEVELS


def both(
    rng: torch.Generator,
    scores: torch.Tensor,
    num_pages: torch.Tensor,
    floor: torch.Tensor,
    **bounds: torch.Tensor,
) -> torch.Tensor:
    """What the reference allows, once the kernel was seen to allow the same."""
    from rheo_kernels import triton as kernels

    settings = num_pages, bounds["budget"], bounds["limit"], floor, SINK, WINDOW
    expected = reference.allow(None, scores, *settings)
    out = torch.full_like(expected, -7)
    kernels.allow(None, scores, *settings, None, out)
    assert torch.equal(out, expected)
    return expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_allows_what_the_reference_does_on_ragged_requests(
    kind: str, rng: torch.Generator
) -> None:
    num_pages = to_device([300, 0, 1, 3, 4, 257, 300, 300, 300], rng)
    floor = torch.tensor([0.9, 0.9, 1.0, 0.5, 0.5, 0.97, 0.0, 1.0, math.nan], device=rng.device)
    scores = rows_of(kind, (len(num_pages), 3, 300), rng)
    past = torch.arange(300, device=rng.device) >= num_pages[:, None, None]
    scores = scores.masked_fill(past, -torch.inf)
    budget = torch.minimum(num_pages, to_device([9, 9, 9, 9, 9, 9, 9, 9, 9], rng))
    limit = torch.minimum(num_pages, to_device([300, 9, 9, 9, 9, 40, 300, 300, 300], rng))
    allowed = both(rng, scores, num_pages, floor, budget=budget, limit=limit)
    assert bool((allowed >= budget[:, None]).all())
    assert bool((allowed <= limit[:, None]).all())
    assert bool((allowed[[6, 8]] == 9).all()), "no floor"
    if kind != "nothing known" and kind != "half unknown":
        assert bool((allowed[7] == 300).all()), "all pages"


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf, 0.0, 1e30, -80.0, -1e-30])
def test_scores_that_are_no_shares_stay_within_the_bounds(value: float, rng: torch.Generator) -> None:
    num_pages = to_device([64, 64, 64], rng)
    scores = rows_of("normal", (3, 2, 64), rng)
    scores[0, :, 5:9] = value
    scores[1, 0] = value
    floor = torch.tensor([0.9, 0.9, 0.2], device=rng.device)
    budget, limit = to_device([5, 5, 5], rng), to_device([30, 64, 64], rng)
    allowed = both(rng, scores, num_pages, floor, budget=budget, limit=limit)
    assert bool((allowed >= 5).all())
    assert bool((allowed <= limit[:, None]).all())
    clean = both(rng, rows_of("normal", (3, 2, 64), rng), num_pages, floor, budget=budget, limit=limit)
    assert clean.shape == allowed.shape


def test_pages_that_are_selected_anyway_may_hold_anything(rng: torch.Generator) -> None:
    """Sink, window and tail page change nothing, whatever a half-written summary says of them."""
    num_pages = to_device([100, 80], rng)
    scores = rows_of("normal", (2, 2, 100), rng)
    floor = torch.tensor([0.8, 0.95], device=rng.device)
    budget, limit = to_device([4, 4], rng), num_pages
    before = both(rng, scores, num_pages, floor, budget=budget, limit=limit)
    for row, count in enumerate((100, 80)):
        scores[row, :, count - WINDOW : count] = math.nan
        scores[row, :, :SINK] = 1e9
    assert torch.equal(both(rng, scores, num_pages, floor, budget=budget, limit=limit), before)


def test_a_page_that_everybody_attends_is_enough_for_any_floor_below_one(rng: torch.Generator) -> None:
    num_pages = to_device([200], rng)
    scores = rows_of("one page has everything", (1, 1, 200), rng)
    floor = torch.tensor([0.999], device=rng.device)
    allowed = both(rng, scores, num_pages, floor, budget=to_device([1], rng), limit=num_pages)
    assert allowed.tolist() == [[SINK + WINDOW + 1]]


def test_equal_shares_need_the_floor_of_the_pages(rng: torch.Generator) -> None:
    """Of 1000 pages with a thousandth each, a tenth may be left out, rounded down: 97 with shares rounded up."""
    scores = torch.full((1, 1, 1000), -math.log(1000.0), device=rng.device)
    floor = torch.tensor([0.9], device=rng.device)
    count = int(reference.cover(scores, floor))
    assert 900 <= count <= 1000 - int(100 / ROUNDING)
    num_pages = to_device([1000], rng)
    allowed = both(rng, scores, num_pages, floor, budget=to_device([1], rng), limit=num_pages)
    assert allowed.tolist() == [[count]], "those selected anyway are among them"


def test_what_a_rule_wants_and_what_a_floor_needs_are_joined(rng: torch.Generator) -> None:
    num_pages = to_device([50, 50], rng)
    scores = rows_of("normal", (2, 2, 50), rng)
    budget, limit = to_device([3, 3], rng), to_device([50, 50], rng)

    def rule(known: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        assert bool(known[..., [0, 48, 49]].isneginf().all())
        return torch.full(known.shape[:2], 7, device=known.device)

    floor = torch.tensor([0.0, 0.999], device=rng.device)
    allowed = reference.allow(rule, scores, num_pages, budget, limit, floor, SINK, WINDOW)
    assert allowed[0].tolist() == [10, 10]
    assert bool((allowed[1] > 10).all())


def test_growth_counts_samples_and_pages_of_the_requests_own_rows(rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    num_pages = to_device([100, 100, 0], rng)
    scores = rows_of("normal", (3, 2, 100), rng)
    floor = torch.tensor([0.9, 0.0, 0.9], device=rng.device)
    budget, limit = to_device([10, 10, 0], rng), to_device([60, 60, 0], rng)
    slots = integers(0, 1, (3,), rng).long() + torch.tensor([4, 0, 2], device=rng.device)
    device = rng.device

    def counters() -> Growth:
        samples = torch.zeros((5, 3, 2), dtype=torch.int32, device=device)[:, 1]
        return Growth(samples, torch.zeros((5, 3, 2), dtype=torch.int64, device=device)[:, 1], slots)

    mine, theirs = counters(), counters()
    settings = num_pages, budget, limit, floor, SINK, WINDOW
    for _ in range(2):
        allowed = reference.allow(None, scores, *settings, theirs)
        kernels.allow(None, scores, *settings, mine, torch.empty_like(allowed))
    assert theirs.samples[4].tolist() == [2, 2]
    assert theirs.pages[4].tolist() == (2 * (allowed[0] - 10)).tolist()
    assert int(theirs.samples.sum()) == 4
    assert torch.equal(mine.samples, theirs.samples)
    assert torch.equal(mine.pages, theirs.pages)
