"""Both engines over one trace: the same budgets, of requests of their own, and raised by scores and margins."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from engine_pair import LENGTHS, Pair, config_of
from engine_server import DIM, GROUP, HEADS, PAGE_SIZE, ROWS, SCALE, EngineServer
from triton_cases import normal

from rheo_sglang.budget import BUDGETS, BudgetSettings
from rheo_sglang.config import RheoConfig
from rheo_sglang.request_settings import read_settings
from rheo_sglang.tiering.counting import SEEN


def test_requests_of_one_batch_select_by_their_own_budgets(rng: torch.Generator) -> None:
    config = config_of("importance", miss_mode="fetch", request_budget_ratio=0.9)
    pair = Pair(config, 16, rng.device, torch.float32, runners_up=0)
    few, many = BudgetSettings(Fraction(1, 10), least=3), BudgetSettings(Fraction(5, 6), least=1)
    for number, (settings, counts) in enumerate(
        [
            ({}, [5, 2, 4]),
            ({1: few, 3: many}, [3, 2, 6]),
            ({1: many, 2: few, 3: few}, [10, 3, 3]),
            ({1: None}, [5, 3, 3]),
        ]
    ):
        for server in pair.servers:
            server.engine.budget.assign(list(settings), list(settings.values()))
        pair.step(number)
        pair.check_selections()
        pair.check_outputs()
        for found in pair.selections[pair.reference]:
            assert found.num_selected.tolist() == [[count] * HEADS for count in counts]
        pair.align()


def test_requests_of_one_batch_have_their_own_floors_and_limits(rng: torch.Generator) -> None:
    """The server itself runs without a floor: its own requests select what they would on a server that allows none."""
    common = {
        "summary": "subcentroids4",
        "budget_ratio": 0.1,
        "budget_min_pages": 3,
        "dense_threshold": 0,
        "miss_mode": "fetch",
        "cpu_threads": 1,
    }
    config = RheoConfig(request_limit_ratio=0.8, **common)
    pair = Pair(config, 16, rng.device, torch.float32, runners_up=0, padding=1)
    everything = read_settings({"rheo": {"conservative": 1}}, config)
    half = read_settings({"rheo": {"budget_coverage": 0.9, "budget_limit_ratio": 0.5}}, config)
    rows = list(LENGTHS)
    for number, own in enumerate([(None, None, None), (everything, None, half), (half, everything, None)]):
        for server in pair.servers:
            server.engine.budget.assign(rows, own)
        pair.step(number)
        pair.check_selections()
        pair.check_outputs()
        for found in pair.selections[pair.reference]:
            for row, settings, selected in zip(rows, own, found.num_selected.tolist(), strict=True):
                pages = -(-(LENGTHS[row] + number + 1) // PAGE_SIZE)
                least = min(pages, 3)
                most = {None: least, everything: math.ceil(0.8 * pages), half: math.ceil(0.5 * pages)}[
                    settings
                ]
                assert all(least <= count <= max(most, least) for count in selected)
                if settings is not half:
                    assert selected == [max(most, least)] * HEADS
        pair.align()
    plain = RheoConfig(**common)
    alone = Pair(plain, 16, rng.device, torch.float32, runners_up=0, padding=1)
    again = Pair(config, 16, rng.device, torch.float32, runners_up=0, padding=1)
    for one in (alone, again):
        one.step(0)
    for mine, theirs in zip(alone.outputs, again.outputs, strict=True):
        assert torch.equal(mine, theirs), "what a server allows changes nothing for who does not ask"


@pytest.mark.parametrize("summary", ["subcentroids4", "bound"])
def test_a_small_margin_raises_the_next_step_of_its_request_to_the_limit(
    summary: str, rng: torch.Generator
) -> None:
    config = RheoConfig(
        summary=summary,
        budget_ratio=0.1,
        budget_min_pages=3,
        budget_limit_ratio=0.8,
        conservative_margin=0.5,
        dense_threshold=0,
        miss_mode="fetch",
        cpu_threads=1,
    )
    pair = Pair(config, 16, rng.device, torch.float32, runners_up=0, padding=1)
    bold = read_settings({"rheo": {"conservative_margin": 0.2}}, config)
    margins = [(torch.inf,) * 3, (0.4, 0.6, 0.4), (0.3, 0.1, 0.1), (0.6, 0.5, 0.2)]
    levels, grown = (0.5, 0.5, 0.2), []
    for number, noted in enumerate(margins):
        for server in pair.servers:
            server.engine.budget.assign([list(LENGTHS)[2]], [bold])
        pair.step(number)
        pair.check_selections()
        pair.check_outputs()
        more = []
        for row, margin, level in zip(LENGTHS, noted, levels, strict=True):
            pages = -(-(LENGTHS[row] + number + 1) // PAGE_SIZE)
            least = min(pages, 3)
            more.append(max(math.ceil(0.8 * pages), least) - least if margin < level else 0)
        for found in pair.selections[pair.reference]:
            counts = [[min(-(-(LENGTHS[row] + number + 1) // PAGE_SIZE), 3)] * HEADS for row in LENGTHS]
            assert (found.num_selected - torch.tensor(counts)).tolist() == [[extra] * HEADS for extra in more]
        grown.append(more)
        if number + 1 < len(margins):
            logits = torch.zeros(len(LENGTHS) + 1, 50)
            logits[:3, 7] = torch.tensor(margins[number + 1])
            for server in pair.servers:
                server.engine.note_margins(logits.to(server.device))
        pair.align()
    assert any(map(sum, grown))
    for server in pair.servers:
        entries = server.recorder.report()["requests"]
        by_request = torch.tensor(grown, dtype=torch.float32)
        assert [entry["grown_share"] for entry in entries] == pytest.approx(
            (by_request > 0).float().mean(0).tolist()
        )
        assert [entry["grown_pages"] for entry in entries] == pytest.approx(by_request.mean(0).tolist())


@pytest.mark.parametrize("gpu", [False, True])
def test_margins_of_prompts_are_noted_by_their_rows_and_of_nobody_else(
    gpu: bool, rng: torch.Generator
) -> None:
    server = EngineServer(config_of("lru", conservative_margin=0.5), 16, rng.device, gpu)
    slots = torch.arange(PAGE_SIZE, 3 * PAGE_SIZE, dtype=torch.int32, device=rng.device)
    server.tokens[3, : len(slots)] = slots
    rows = torch.tensor([3], device=rng.device)
    server.engine.begin_prefill(rows, [0], [len(slots)], slots.long(), goes_on=False)
    server.engine.note_margins(torch.tensor([[1.0, 0.75, -3.0]], device=rng.device))
    expected = torch.full((ROWS,), torch.inf)
    expected[3] = 0.25
    assert torch.equal(server.engine.budget.tensors.margins.cpu(), expected)
    server.engine.latest = None
    server.engine.note_margins(torch.zeros(1, 3, device=rng.device))
    assert torch.equal(server.engine.budget.tensors.margins.cpu(), expected), "a pass without requests"


def test_margins_cost_nothing_where_no_setting_asks_for_them(rng: torch.Generator) -> None:
    for gpu in (False, True):
        engine = EngineServer(config_of("lru"), 16, rng.device, gpu).engine
        assert engine.budget.tensors.levels is engine.budget.tensors.margins is None
        engine.note_margins(torch.zeros(0))


@pytest.mark.parametrize("gpu", [False, True])
def test_a_prompt_counts_as_used_what_its_own_budget_would_select(gpu: bool, rng: torch.Generator) -> None:
    config = config_of("lfu", request_budget_ratio=0.9)
    server = EngineServer(config, 16, rng.device, gpu)
    lengths = [6 * PAGE_SIZE, 5 * PAGE_SIZE]
    pages = torch.arange(1, 12, dtype=torch.int32, device=rng.device)
    slots = (pages[:, None] * PAGE_SIZE + torch.arange(PAGE_SIZE, device=rng.device)).to(torch.int32)
    server.tokens[1, : lengths[0]] = slots[:6].flatten()
    server.tokens[3, : lengths[1]] = slots[6:].flatten()
    server.engine.budget.assign([3], [BudgetSettings(Fraction(1, 100), least=1)])
    rows = torch.tensor([1, 3], device=rng.device)
    batch = server.engine.begin_prefill(rows, [0, 0], lengths, slots.flatten().long(), goes_on=False)
    q, k, v = (
        normal((sum(lengths), heads, DIM), torch.float32, rng) for heads in (GROUP * HEADS, HEADS, HEADS)
    )
    server.engine.prefill(0, q, k, v, slots.flatten().long(), batch, SCALE)
    used = server.table.policy.worth[0] > SEEN
    assert used[:, pages[:6].long()].sum(1).tolist() == [4] * HEADS, "the server's budget"
    assert used[:, pages[6:].long()].sum(1).tolist() == [3] * HEADS, "sink and window"


@pytest.mark.parametrize("conservative", ["off", 0.8])
@pytest.mark.parametrize("budget", BUDGETS.names())
def test_budgets_that_scores_raise_are_the_same_in_both_engines(
    budget: str, conservative: str | float, rng: torch.Generator
) -> None:
    config = RheoConfig(
        summary="subcentroids4",
        budget=budget,
        budget_ratio=0.1,
        budget_min_pages=3,
        budget_max_pages=4,
        budget_coverage=0.7,
        budget_limit_ratio=0.8,
        conservative=conservative,
        dense_threshold=0,
        miss_mode="fetch",
        cpu_threads=1,
    )
    pair = Pair(config, 16, rng.device, torch.float32, runners_up=0, padding=1)
    caps, more = pair.reference.engine.budget.caps, []
    for number in range(2):
        pair.step(number)
        pair.check_selections()
        pair.check_outputs()
        counts = torch.tensor([-(-(length + number + 1) // PAGE_SIZE) for length in LENGTHS.values()])
        more += [found.num_selected - caps[counts][:, None] for found in pair.selections[pair.reference]]
        pair.align()
    reports = [server.recorder.report() for server in pair.servers]
    for key in ("grown_share", "grown_pages"):
        assert [entry.get(key) for entry in reports[0]["requests"]] == [
            entry.get(key) for entry in reports[1]["requests"]
        ]
    grown = config.budgets_grow
    assert ("grown_share" in reports[0]["overall"]) == grown
    if grown:
        assert bool((torch.stack(more) >= 0).all())
        assert reports[0]["overall"]["grown_pages"] == pytest.approx(
            float(torch.stack(more).float().mean()), abs=1e-3
        )
        assert 0 < reports[0]["overall"]["grown_share"] <= 1


def test_a_floor_of_one_attends_everything_in_both_engines(rng: torch.Generator) -> None:
    """Bit by bit what a budget of all pages does."""
    common = {"summary": "subcentroids4", "dense_threshold": 0, "miss_mode": "fetch", "cpu_threads": 1}
    raised = RheoConfig(budget_ratio=0.1, budget_min_pages=3, conservative=1, **common)
    whole = RheoConfig(budget_ratio=1.0, **common)
    pairs = [Pair(config, 16, rng.device, torch.float32, runners_up=0) for config in (raised, whole)]
    for pair in pairs:
        pair.step(0)
        pair.check_selections()
    for one, other in zip(*(pair.outputs for pair in pairs), strict=True):
        assert torch.equal(one, other)
