"""Admission control over both engines: what requests need is measured and predicted; decisions reach budgets."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
from engine_server import CONTEXT, DIM, GROUP, HEADS, LAYERS, PAGE_SIZE, PAGES, EngineServer
from hypothesis import given
from hypothesis import strategies as st

from rheo_sglang.admission.control import GROWTH, AdmissionControl, Request
from rheo_sglang.admission.controller import PATIENCE
from rheo_sglang.budget import BudgetSettings
from rheo_sglang.config import RheoConfig

SETTINGS = {
    "budget_ratio": 0.4,
    "budget_min_pages": 4,
    "dense_threshold": 0,
    "summary": "bound",
    "working_set_steps": 3,
    "cpu_threads": 1,
}


@pytest.fixture(autouse=True)
def counted_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("working_sets", "admission.control"):
        monkeypatch.setattr(f"rheo_sglang.{module}.COUNTED_EVERY", 1)


@pytest.fixture(params=["reference", "gpu"])
def gpu(request: pytest.FixtureRequest, device: str) -> Iterator[bool]:
    yield request.param == "gpu"


class Trace:
    """An engine, requests that run on it, and what admission control is told of them."""

    def __init__(
        self,
        gpu: bool,
        device: str,
        lengths: dict[int, int],
        frames: int = 12,
        seed: int = 3,
        **settings: Any,
    ) -> None:
        config = RheoConfig(**{**SETTINGS, **settings})
        where = torch.device(device if gpu else "cpu")
        self.server = EngineServer(config, frames, where, gpu)
        self.control = AdmissionControl(self.server.engine, config)
        self.lengths = dict(lengths)
        self.random = torch.Generator().manual_seed(seed)
        self.content = torch.randn(self.server.host.shape, generator=self.random)
        self.free = list(range(1, PAGES))

    def prefill(self, row: int, shared: list[int] | None = None) -> list[int]:
        """Give a request pages for its whole context, the first of them those of another one."""
        pages = list(shared or [])
        pages += [self.free.pop(0) for _ in range(CONTEXT // PAGE_SIZE - len(pages))]
        self.server.prefill(row, pages, self.content, torch.randn(self.server.table.summaries.shape).abs())
        return pages

    @property
    def running(self) -> list[Request]:
        return [Request(str(row), length) for row, length in self.lengths.items()]

    def step(self) -> int:
        """One decode step of every request, then an observation: how many are to pause."""
        for row in self.lengths:
            self.lengths[row] += 1
        shape = LAYERS, len(self.lengths)
        q = torch.randn((*shape, GROUP * HEADS, DIM), generator=self.random)
        k, v = (torch.randn((*shape, HEADS, DIM), generator=self.random) for _ in range(2))
        self.server.step(self.lengths, q, k, v)
        if self.server.device.type == "cuda":
            torch.cuda.synchronize()
        assert self.control.due
        return self.control.observe(self.running)


def test_needs_are_predicted_by_the_budget_until_they_have_been_measured(gpu: bool, device: str) -> None:
    trace = Trace(gpu, device, {1: 170, 2: 100})
    for row in trace.lengths:
        trace.prefill(row)
    first, second = trace.running
    cap = trace.control.cap(first)
    assert cap == 5
    assert trace.control.needs(first) == GROWTH * cap
    for _ in range(5):
        trace.step()
    latest = trace.server.engine.working_sets.latest
    assert latest is not None
    means = latest.requests.mean((1, 2)).tolist()
    assert [trace.control.needs(request) for request in trace.running] == means
    assert trace.control.growth != GROWTH
    assert trace.control.total == latest.total.mean(1).max()
    arriving = Request("new", 170)
    assert trace.control.needs(arriving) == pytest.approx(trace.control.growth * trace.control.cap(arriving))
    assert trace.control.hit_rate is not None and 0 < trace.control.hit_rate < 1
    report = trace.control.report(trace.running)
    assert [entry["frames_needed"] for entry in report["requests"]] == [round(mean, 1) for mean in means]
    assert second.rid == "2"


def test_requests_that_select_everything_need_all_their_pages(gpu: bool, device: str) -> None:
    trace = Trace(gpu, device, {1: 170}, dense_threshold=CONTEXT)
    trace.prefill(1)
    (request,) = trace.running
    assert trace.control.needs(request) == 170 // PAGE_SIZE + 1
    for _ in range(5):
        trace.step()
    assert trace.control.needs(*trace.running) == 174 // PAGE_SIZE + 1


def test_pages_that_requests_share_are_needed_once(gpu: bool, device: str) -> None:
    apart, together = (Trace(gpu, device, {1: 170, 2: 171}, dense_threshold=CONTEXT) for _ in range(2))
    apart.prefill(1)
    apart.prefill(2)
    together.prefill(2, together.prefill(1)[:9])
    for _ in range(4):
        apart.step()
        together.step()
    assert apart.control.scale == pytest.approx(1)
    assert together.control.scale == pytest.approx((2 * 11 - 9) / (2 * 11))


def test_who_does_not_fit_is_refused_unless_nobody_runs_or_every_page_has_a_frame(
    gpu: bool, device: str
) -> None:
    trace = Trace(gpu, device, {1: 170}, frames=12, admission_overcommit=1.0)
    large, small = Request("large", 200), Request("small", 10)
    assert trace.control.admits(large, [])
    assert not trace.control.admits(large, trace.running)
    assert trace.control.admits(small, trace.running)
    assert trace.control.counters["refused"] == 1
    roomy = Trace(gpu, device, {1: 170}, frames=PAGES - 1, admission_overcommit=0.1)
    assert roomy.control.admits(large, roomy.running)


def test_under_thrash_budgets_shrink_and_then_a_request_pauses(gpu: bool, device: str) -> None:
    trace = Trace(
        gpu,
        device,
        {1: 170, 2: 165, 3: 160},
        frames=6,
        thrash_hit_rate=1.0,
        thrash_budget=0.5,
        budget_ratio=0.8,
        budget_min_pages=8,
        sink_pages=0,
        window_pages=1,
    )
    for row in trace.lengths:
        trace.prefill(row)
    widths, pauses = [], []
    for _ in range(4 * PATIENCE + 2):
        pauses.append(trace.step())
        step = trace.server.engine.step
        widths.append(int(step.batch.budget[: len(trace.lengths)].max()))
    assert widths[0] == 9
    assert min(widths) == widths[-1] == 5, "the window and four pages, fewer than budget_min_pages"
    assert sum(pauses) >= 1 and trace.control.controller.limit is not None
    assert pauses.index(1) >= 3 * PATIENCE - 1, "budgets shrink first"
    assert trace.control.counters["shrink"] == 2


@given(
    st.sampled_from([0.07, 0.3, 1.0]),
    st.integers(1, 70),
    st.none() | st.integers(70, 90),
    st.integers(0, 600),
    st.floats(0.01, 1),
    st.sampled_from(["off", "on", 0.5]),
)
def test_shrunk_caps_and_limits_keep_their_bounds_and_are_the_hosts(
    ratio: float, least: int, most: int | None, dense: int, factor: float, conservative: str | float
) -> None:
    config = RheoConfig(
        budget_ratio=ratio,
        budget_min_pages=least,
        budget_max_pages=most,
        dense_threshold=dense,
        conservative=conservative,
    )
    table = config.budget_table(16, 200)
    whole = [bound[0].clone() for bound in table.tensors[:2]]
    widths = [table.width(count) for count in range(201)]
    table.shrink(factor)
    assert torch.equal(table.caps, whole[0]), "before a step takes it over"
    table.settle()
    caps, limits = (bound[0] for bound in table.tensors[:2])
    short = torch.arange(201) <= table.dense_pages
    assert caps.tolist() == [table.cap_of(count, factor) for count in range(201)]
    assert list(zip(caps.tolist(), limits.tolist(), strict=True)) == [
        table.bounds_of(count, factor) for count in range(201)
    ]
    for shrunk, before in zip((caps, limits), whole, strict=True):
        least_of = torch.minimum(before, torch.tensor(table.forced + 4))
        assert bool((shrunk <= before).all() and (shrunk >= least_of).all())
        assert bool(((shrunk <= before * factor) | (shrunk == least_of) | short).all())
        assert torch.equal(shrunk[short], before[short])
    assert bool((caps <= limits).all())
    assert [table.width(count) for count in range(201)] == widths, "graphs stay as wide as they are"
    table.shrink(1.0)
    table.settle()
    assert torch.equal(table.caps, whole[0]) and torch.equal(table.tensors.limits[0], whole[1])


def test_under_thrash_a_floor_raises_budgets_no_further_than_the_shrunk_limit(gpu: bool, device: str) -> None:
    trace = Trace(
        gpu,
        device,
        {1: 170, 2: 165, 3: 160},
        frames=6,
        thrash_hit_rate=1.0,
        thrash_budget=0.5,
        budget_ratio=0.1,
        budget_min_pages=3,
        sink_pages=0,
        window_pages=1,
        conservative=1.0,
        summary="subcentroids4",
    )
    for row in trace.lengths:
        trace.prefill(row)
    before = 0
    for _ in range(3 * PATIENCE + 2):
        factor = trace.control.controller.factor
        trace.step()
        pages = -(-trace.lengths[1] // PAGE_SIZE)
        total = int(trace.server.recorder.counts.selected.max())
        assert total - before == int(pages * factor), "a floor of 1 needs everything"
        before = total
    assert trace.control.counters["shrink"] == 3, "caps are as small as they may be from the start"
    assert trace.control.controller.factor == 0.5


def test_budgets_at_their_minimum_shrink_as_others_do() -> None:
    """48 requests of the default settings, whose selections exceed 2,925 frames."""
    table = RheoConfig().budget_table(32, 4096)
    assert [table.cap_of(pages) for pages in (200, 1600, 4000)] == [64, 64, 160]
    assert [table.cap_of(pages, 0.5) for pages in (200, 1600, 4000)] == [32, 32, 80]
    assert [table.cap_of(pages, 0.01) for pages in (200, 1600, 4000)] == [3 + 4] * 3
    assert 48 * table.cap_of(600) > 2925 > 48 * table.cap_of(600, 0.75)


def test_settings_of_requests_shrink_alike_whenever_they_come() -> None:
    table = RheoConfig(budget_ratio=0.9, budget_min_pages=8, dense_threshold=0).budget_table(
        16, 100, requests=4
    )
    early, late = BudgetSettings(Fraction(4, 5), 70), BudgetSettings(Fraction(3, 5), 10)
    table.assign([2], [early])
    table.shrink(0.5)
    table.settle()
    table.assign([3], [late])
    tensors = table.tensors
    caps = [int(tensors.caps[int(tensors.setting_of[request]), 100]) for request in range(4)]
    assert caps == [45, 45, 40, 30], "what a request asks for as its fewest pages shrinks, too"
    limits = [int(tensors.limits[int(tensors.setting_of[request]), 100]) for request in range(4)]
    assert limits == [45, 45, 40, 30], "a limit is never less than its cap"


def test_ranks_that_measure_differently_decide_alike() -> None:
    """Two ranks of different content, whose values are exchanged at every observation, as a collective does."""
    meet, told, decisions = threading.Barrier(2, timeout=60), {}, {}
    errors: list[BaseException] = []

    def rank(number: int) -> None:
        def agree(values: torch.Tensor) -> torch.Tensor:
            told[number] = values
            meet.wait()
            largest = torch.maximum(told[0], told[1])
            meet.wait()
            return largest

        try:
            lengths = {1: 170, 2: 165, 3: 160}
            settings = {"thrash_hit_rate": 0.6, "admission_overcommit": 1.5}
            trace = Trace(False, "cpu", lengths, frames=8, seed=number, **settings)
            trace.control.agree = agree
            for row in lengths:
                trace.prefill(row)
            decisions[number] = [
                (
                    trace.step(),
                    trace.control.controller.factor,
                    trace.control.hit_rate,
                    trace.control.growth,
                    trace.control.admits(Request("new", 60), trace.running[:1]),
                )
                for _ in range(12)
            ]
            decisions[number + 2] = trace.server.engine.working_sets.latest
        except BaseException as error:
            errors.append(error)
            meet.abort()

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert decisions[0] == decisions[1]
    assert (decisions[2].requests != decisions[3].requests).any(), "the ranks measured the same"
