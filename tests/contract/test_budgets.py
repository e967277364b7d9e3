"""Every budget rule: exact caps within bounds, the same wherever they are read, never beyond a selection's width."""

from __future__ import annotations

import dataclasses
import inspect
import math
from fractions import Fraction

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from triton_cases import normal, to_device

from rheo_kernels import reference
from rheo_kernels.types import DecodeBatch
from rheo_sglang.budget import BUDGETS, BudgetRule, BudgetSettings, BudgetTable
from rheo_sglang.config import ConfigError, RheoConfig
from rheo_sglang.decode.batch import build_decode_batch
from rheo_sglang.decode.variant import make_variants
from rheo_sglang.pools.plan import KVShape, plan_pools
from rheo_sglang.selection import SUMMARIES
from rheo_sglang.selection.selector import Selector

MOST_PAGES = 2**17
RATIOS = [1e-5, 0.05, 0.1, 0.15, 0.2, 0.3, 1 / 3, 0.7, 0.1 + 0.2, 0.999999, 1.0]
"""What people write, and floats that only look like it: 0.1 + 0.2 is 0.30000000000000004."""
PLAIN = {"budget_min_pages": 1, "dense_threshold": 0}
FEW = {"budget_min_pages": 1, "budget_max_pages": 7}


@pytest.fixture(params=BUDGETS.names(), scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def settings_of(name: str) -> st.SearchStrategy[RheoConfig]:
    return st.builds(
        lambda least, extra, **others: RheoConfig(
            budget=name,
            budget_min_pages=least,
            budget_max_pages=None if extra is None else least + extra,
            **others,
        ),
        least=st.integers(1, 40),
        extra=st.none() | st.integers(0, 300),
        budget_ratio=st.sampled_from(RATIOS) | st.floats(1e-4, 1),
        sink_pages=st.integers(0, 8),
        window_pages=st.integers(1, 8),
        dense_threshold=st.integers(0, 5000),
    )


@pytest.mark.parametrize("ratio", RATIOS)
def test_caps_of_every_length_are_bounded_and_fit_the_width(name: str, ratio: float) -> None:
    table = RheoConfig(budget=name, budget_ratio=ratio).budget_table(16, MOST_PAGES)
    caps, pages = table.caps, torch.arange(MOST_PAGES + 1)
    assert caps.dtype == torch.int32
    assert caps.shape == pages.shape
    assert torch.equal(caps[:257].long(), pages[:257]), "4096 tokens select all their pages"
    assert bool((caps[1:] >= torch.minimum(pages[1:], torch.tensor(16))).all())
    assert bool((caps <= pages).all())
    widths = torch.tensor([table.width(count) for count in range(MOST_PAGES + 1)])
    assert bool((widths >= caps).all())
    assert torch.equal(widths, table.tensors.limits[0].long().cummax(0).values)


@given(data=st.data(), page_size=st.sampled_from([16, 32, 64]), pages=st.integers(1, 3000))
def test_bounds_apply_to_every_rule(name: str, data: st.DataObject, page_size: int, pages: int) -> None:
    config = data.draw(settings_of(name))
    table = config.budget_table(page_size, 3000)
    cap = int(table.caps[pages])
    forced = min(pages, config.sink_pages + config.window_pages)
    if pages <= -(-config.dense_threshold // page_size):
        assert cap == pages
        return
    assert max(forced, min(config.budget_min_pages, pages)) <= cap <= pages
    if config.budget_max_pages is not None:
        assert cap <= max(config.budget_max_pages, forced)
    asked = int(config.budget_rule().cap(torch.tensor([pages])))
    if config.budget_min_pages <= asked <= (config.budget_max_pages or pages) and forced <= asked <= pages:
        assert cap == asked, "nothing but the settings' bounds changes what a rule says"


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_fixed_share_is_the_decimal_times_the_pages_rounded_up(ratio: float) -> None:
    table = RheoConfig(budget_ratio=ratio, sink_pages=0, window_pages=1, **PLAIN).budget_table(16, MOST_PAGES)
    share = Fraction(repr(ratio))
    expected = [math.ceil(share * pages) for pages in range(0, MOST_PAGES + 1, 61)]
    assert table.caps[::61].tolist() == expected


@pytest.mark.parametrize(
    ("ratio", "pages", "cap"),
    [
        (0.3, 50, 15),
        (0.3, 51, 16),
        (0.15, 20, 3),
        (0.15, 21, 4),
        (0.1, 1000, 100),
        (0.7, 10, 7),
        (1 / 3, 3, 1),
    ],
)
def test_a_share_that_is_whole_is_not_rounded_up(ratio: float, pages: int, cap: int) -> None:
    config = RheoConfig(budget_ratio=ratio, sink_pages=0, window_pages=1, **PLAIN)
    assert int(config.budget_table(16, 4096).caps[pages]) == cap


def test_a_full_ratio_selects_every_page() -> None:
    caps = RheoConfig(budget_ratio=1.0, **PLAIN).budget_table(16, MOST_PAGES).caps
    assert torch.equal(caps.long(), torch.arange(MOST_PAGES + 1))


def test_the_dense_threshold_is_rounded_up_to_whole_pages() -> None:
    config = RheoConfig(budget_ratio=0.01, budget_min_pages=1, dense_threshold=1000)
    for page_size in (16, 32, 64):
        table = config.budget_table(page_size, 100)
        dense = -(-1000 // page_size)
        assert table.caps[dense - 1 : dense + 2].tolist() == [dense - 1, dense, 3]


@pytest.mark.parametrize(
    ("ratio", "pages"),
    [(0.15, [*range(1, 60)]), (0.3, [*range(1, 60)]), (0.3, [MOST_PAGES])],
    ids=["0.15", "0.3", "longest"],
)
def test_every_budget_on_the_gpu_is_the_references(
    name: str, ratio: float, pages: list[int], rng: torch.Generator
) -> None:
    from rheo_kernels import triton as kernels

    device, size, most = rng.device, 4, max(pages)
    lengths = torch.tensor([size * count - count % size for count in pages], device=device)
    batch = len(pages)
    config = RheoConfig(budget=name, budget_ratio=ratio, budget_min_pages=1, dense_threshold=40)
    table = config.budget_table(size, MOST_PAGES, device)
    tokens = torch.zeros((1, size * most), dtype=torch.int32, device=device)
    rows = torch.zeros(batch + 1, dtype=torch.int64, device=device)
    expected = build_decode_batch(tokens, rows[:batch], lengths, size * most, size, table)
    out = DecodeBatch.allocate(batch + 1, most, device)
    last_active = torch.zeros(4, dtype=torch.int32, device=device)
    summarised = torch.zeros(4, dtype=torch.bool, device=device)
    unsaved = torch.zeros((1, 4), dtype=torch.bool, device=device)
    step = torch.zeros((), dtype=torch.int32, device=device)
    padded = torch.cat((lengths, lengths.new_full((1,), 77)))
    marks = step, last_active, summarised, unsaved
    kernels.describe(tokens, rows, padded, batch, size, table.tensors, *marks, out)
    assert expected.num_pages.tolist() == pages
    assert torch.equal(out.budget[:batch], expected.budget)
    assert torch.equal(out.limit[:batch], expected.limit)
    assert out.budget[batch:].tolist() == [0], "a padded row"
    assert int(expected.budget.max()) <= table.width(most)


@pytest.mark.parametrize("context", [500, 8192, 131072])
def test_every_variant_is_as_wide_as_its_widest_budget(name: str, context: int) -> None:
    table = RheoConfig(budget=name, budget_ratio=0.07).budget_table(16, -(-context // 16))
    variants = make_variants(table)
    assert variants[-1].columns == table.max_pages
    for variant in variants:
        if variant.dense:
            assert variant.columns <= table.dense_pages
        else:
            assert variant.width == int(table.tensors.limits[0, : variant.columns + 1].max())


def score_rows(rng: torch.Generator, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithms of shares ``[B, H, M]`` of ragged requests, some flat, some with few high pages; and their pages."""
    counts = [columns, 1, 7, 40, 0, columns // 2]
    scores = normal((len(counts), 3, columns), torch.float32, rng) * 6
    scores[:, 1] *= 0.1
    num_pages = to_device(counts, rng)
    past = torch.arange(columns, device=rng.device) >= num_pages[:, None, None]
    shares = scores.masked_fill(past, -torch.inf).log_softmax(-1)
    return shares.masked_fill(past, -torch.inf), num_pages


@pytest.mark.parametrize("conservative", ["off", 0.95])
@pytest.mark.parametrize("columns", [40, 300])
def test_what_a_rule_allows_is_the_same_on_the_gpu_and_within_its_bounds(
    name: str, columns: int, conservative: str | float, rng: torch.Generator
) -> None:
    from rheo_kernels import triton as kernels

    config = RheoConfig(
        budget=name,
        budget_ratio=0.1,
        budget_limit_ratio=0.6,
        conservative=conservative,
        dense_threshold=128,
        **FEW,
    )
    table = config.budget_table(16, columns, rng.device)
    scores, num_pages = score_rows(rng, columns)
    budget, limit = (bound[0][num_pages.long()] for bound in table.tensors[:2])
    floor = table.tensors.floors.expand(len(num_pages)).contiguous()
    rule = table.rule.allow if table.rule.reads_scores else None
    bounds = num_pages, budget, limit, floor, config.sink_pages, config.window_pages
    allowed = reference.allow(rule, scores, *bounds)
    assert allowed.dtype == torch.int32
    assert bool((allowed <= limit[:, None]).all())
    assert bool((allowed >= budget[:, None]).all())
    dense = num_pages <= table.dense_pages
    assert torch.equal(allowed[dense], budget[dense][:, None].expand(-1, 3))
    assert table.reads_scores == config.budgets_grow
    if not table.reads_scores:
        assert torch.equal(limit, budget), "nothing raises it"
    else:
        assert bool((allowed > budget[:, None]).any()), "this test's scores raise no budget"
    out = torch.full_like(allowed, -7)
    kernels.allow(table.rule.allow_kernel, scores, *bounds, None, out)
    assert torch.equal(out, allowed)
    column = (num_pages - 1).clamp(min=0).long()[:, None, None].expand(-1, 3, 1)
    scores.scatter_(2, column, 1e9)
    assert torch.equal(reference.allow(rule, scores, *bounds), allowed), "the tail"
    out.fill_(-7)
    kernels.allow(table.rule.allow_kernel, scores, *bounds, None, out)
    assert torch.equal(out, allowed)


def small_batch(table: BudgetTable, num_pages: list[int], width: int) -> DecodeBatch:
    counts = torch.tensor(num_pages, dtype=torch.int32)
    batch = DecodeBatch.allocate(len(num_pages), width, "cpu")
    budget, limit = (bound[0][counts.long()] for bound in table.tensors[:2])
    return batch._replace(
        pages=torch.arange(1, width + 1, dtype=torch.int32).expand(len(num_pages), width),
        num_pages=counts,
        seq_lens=counts * 16,
        past=counts * 16 - 1,
        budget=budget,
        limit=limit,
        floor=table.tensors.floors.expand(len(num_pages)),
    )


def estimating_selector(config: RheoConfig, table: BudgetTable | None) -> tuple[Selector, torch.Tensor]:
    """A selector by estimates, and summaries of 65 random pages of two KV heads."""
    summary = SUMMARIES["subcentroids4"]()
    keys, values = torch.randn(2, 65, 64, 16) * 2, torch.randn(2, 65, 16, 64)
    summaries = summary.fold_chunk(keys, values, torch.full((65,), 16))
    return Selector(summary, 16, "mean", config.sink_pages, config.window_pages, table), summaries


@pytest.mark.parametrize("conservative", ["off", 0.9])
def test_a_selection_holds_as_many_pages_as_is_allowed(name: str, conservative: str | float) -> None:
    config = RheoConfig(
        budget=name,
        budget_ratio=0.1,
        budget_limit_ratio=0.7,
        conservative=conservative,
        dense_threshold=0,
        **FEW,
    )
    table = config.budget_table(16, 64)
    selector, summaries = estimating_selector(config, table)
    batch = small_batch(table, [64, 5, 30], 64)
    q = torch.randn(3, 4, 64)
    scores, selected, _ = selector(q, summaries, batch, table.width(64), 0.1)
    rule = table.rule.allow if table.rule.reads_scores else None
    bounds = batch.num_pages, batch.budget, batch.limit, batch.floor, config.sink_pages, config.window_pages
    allowed = reference.allow(rule, scores, *bounds)
    assert torch.equal((selected >= 0).sum(2).int(), allowed)
    if batch.floor[0] > 0 and conservative != "off":
        held = scores.double().exp().gather(2, selected.clamp(min=0).long()).where(selected >= 0, 0).sum(2)
        assert bool((held > 0.9 - 1e-5).all()), "conservative mode has no limit but all pages"


def test_no_floor_selects_what_the_fixed_budget_does_and_a_floor_of_one_everything() -> None:
    plain = RheoConfig(budget_ratio=0.1, dense_threshold=0, **FEW)
    selector, summaries = estimating_selector(plain, plain.budget_table(16, 64))
    q = torch.randn(3, 4, 64)

    def selected(config: RheoConfig, floor: float | None = None) -> list[set[int]]:
        table = config.budget_table(16, 64)
        selector.budget = table
        batch = small_batch(table, [64, 5, 30], 64)
        if floor is not None:
            batch = batch._replace(floor=torch.full((3,), floor))
        found = selector(q, summaries, batch, table.width(64), 0.1).selected
        return [set(row) - {-1} for row in found.flatten(0, 1).tolist()]

    fixed = selected(plain)
    assert selected(dataclasses.replace(plain, conservative=0.9), floor=0.0) == fixed
    assert selected(dataclasses.replace(plain, budget="coverage"), floor=0.0) == fixed
    everything = [set(range(count)) for count in (64, 64, 5, 5, 30, 30)]
    assert selected(dataclasses.replace(plain, conservative=1)) == everything
    limited = dataclasses.replace(plain, budget="coverage", budget_coverage=1, budget_limit_ratio=1)
    assert selected(limited) == everything


@pytest.mark.parametrize(
    "settings",
    [{"budget": "coverage"}, {"conservative": "on"}, {"conservative": 0.5}, {"request_limit_ratio": 0.5}],
)
def test_a_floor_with_a_summary_that_estimates_nothing_is_refused(settings: dict) -> None:
    shape = KVShape(1, 1, 64, torch.bfloat16, 32)
    config = RheoConfig(frame_pool_tokens=1024, summary="bound", **settings)
    (key, value) = next(iter(settings.items()))
    allowed = {"budget": "fixed", "conservative": "off", "request_limit_ratio": "not given"}[key]
    with pytest.raises(
        ConfigError,
        match=rf"{key}={value!r} is not supported; allowed: {allowed}, or a summary that estimates",
    ):
        plan_pools(config, shape, 1 << 40, 1 << 40, None, frames_in_dram=True)
    served = dataclasses.replace(config, summary="subcentroids4")
    plan_pools(served, shape, 1 << 40, 1 << 40, None, frames_in_dram=True)


def test_a_rule_that_reads_scores_needs_a_kernel_where_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(BUDGETS["fixed"], "allow", lambda self, scores, num_pages, budget, limit: scores)
    config = RheoConfig(frame_pool_tokens=1024)
    shape = KVShape(1, 1, 64, torch.bfloat16, 32)
    plan_pools(config, shape, 1 << 40, 1 << 40, None, frames_in_dram=True)
    with pytest.raises(ConfigError, match=r"budget='fixed' is not supported; allowed: .*kernel"):
        plan_pools(config, shape, 1 << 40, 1 << 40, None, frames_in_dram=False)


def test_a_rule_cannot_leave_the_bounds() -> None:
    class Wild(BudgetRule):
        name = "wild"

        def cap(self, num_pages: torch.Tensor) -> torch.Tensor:
            return (num_pages % 3 - 1) * 2**40

    caps = BudgetTable(Wild, 500, 16, BudgetSettings(Fraction(1), least=2, most=20), forced=3).caps
    pages = torch.arange(501)
    assert bool((caps <= torch.minimum(pages, torch.tensor(20))).all())
    assert bool((caps >= torch.minimum(pages, torch.tensor(3))).all())


def test_every_rule_says_what_it_is(name: str) -> None:
    assert inspect.getdoc(BUDGETS[name]) != inspect.getdoc(BudgetRule)
    assert dataclasses.asdict(RheoConfig(budget=name))["budget"] == name


def test_a_rule_with_a_kernel_and_no_reference_is_refused() -> None:
    """Its kernel would never be called, on either engine."""

    class KernelOnly(BUDGETS["fixed"]):  # type: ignore[misc]
        allow_kernel = object()

    with pytest.raises(ConfigError, match="rules whose allow_kernel has an allow"):
        KernelOnly(Fraction(1, 2))
