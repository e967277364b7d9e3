"""Both engines, driven over one trace: the same selection, hits and output, the same pages resident afterwards.

"Same" is up to ties between pages of equal worth, and up to the rank error of Triton's importance, which is bounded in
`rheo_kernels.triton.update_importance`. Every step begins with the reference's state in both engines, so that what one
step may do differently within these limits is not counted against the steps that follow.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from engine_server import DIM, GROUP, HEADS, LAYERS, PAGE_SIZE, PAGES, ROWS, SCALE, EngineServer
from triton_cases import GPU, normal

from rheo_kernels.reference import block_keys, block_values
from rheo_kernels.types import KVScales, Selected
from rheo_kernels.types.kv_scales import EIGHT_BITS
from rheo_sglang.budget import BUDGETS, BudgetSettings
from rheo_sglang.config import RheoConfig
from rheo_sglang.decode.cuda_attention import CudaAttention
from rheo_sglang.request_settings import read_settings
from rheo_sglang.selection import SUMMARIES, EstimatingSummary
from rheo_sglang.tiering import POLICIES
from rheo_sglang.tiering.counting import SEEN

LENGTHS = {1: 11 * PAGE_SIZE - 3, 2: 30, 3: 6 * PAGE_SIZE - 1}
STEPS = 4
CHECKED_STEPS = STEPS if GPU else 2
"""Request 3 begins a page in the second one."""
RANK_ERROR = {"importance": 0.14, "recency": 0.07, "predicted": 0.23, "window": 0.05}
"""By which a page's worth may differ after one step: the weight of a step's rank, times five pages of a row of eleven
in one bin; in a window, one step. Other policies are exact."""


def config_of(policy: str, **settings: Any) -> RheoConfig:
    """Budgets of more than sink and window: CUDA C++ lists no runners-up of a request that selects just these."""
    settings = {"summary": "bound", **settings}
    return RheoConfig(
        budget_ratio=0.4, budget_min_pages=4, dense_threshold=0, policy=policy, cpu_threads=1, **settings
    )


class Pair:
    """The reference and the GPU's engine over the same requests, and what each layer of the latest step selected."""

    def __init__(
        self,
        config: RheoConfig,
        frames: int,
        device: torch.device,
        dtype: torch.dtype,
        runners_up: int,
        padding: int = 0,
        **storage: Any,
    ) -> None:
        self.padding = padding
        self.random = torch.Generator().manual_seed(11)
        cpu = torch.device("cpu")
        self.reference = EngineServer(config, frames, cpu, False, dtype, runners_up=runners_up, **storage)
        self.gpu = EngineServer(config, frames, device, True, dtype, **storage)
        self.selections: dict[EngineServer, list[Selected]] = {}
        self.outputs: list[torch.Tensor] = []
        self._prefill()
        for server in self.servers:
            self._observe(server)

    @property
    def servers(self) -> tuple[EngineServer, EngineServer]:
        return self.reference, self.gpu

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.random)

    def _prefill(self) -> None:
        content = self.normal(*self.reference.host.shape)
        summaries = self._summaries(content)
        worth = torch.rand(self.reference.table.policy.worth.shape, generator=self.random)
        free = torch.randperm(PAGES - 1, generator=self.random) + 1
        for row, length in LENGTHS.items():
            count = -(-(length + STEPS) // PAGE_SIZE)
            pages, free = free[:count].tolist(), free[count:]
            summaries[:, :, pages[-(-length // PAGE_SIZE) :]] = 0
            for server in self.servers:
                server.prefill(row, pages, content, summaries)
                server.table.policy.worth[:, :, pages] = worth[:, :, pages].to(server.device)

    def _summaries(self, content: torch.Tensor) -> torch.Tensor:
        """Boxes that hold keys of 0, or what full pages of the content are summarised by."""
        table = self.reference.table
        if not isinstance(table.summary, EstimatingSummary):
            summaries = self.normal(*table.summaries.shape)
            return summaries.abs() * torch.tensor([-1.0, 1.0])[:, None]
        counts = torch.full((PAGES,), PAGE_SIZE)
        return torch.stack(
            [
                table.summary.fold_chunk(
                    block_keys(layer.transpose(0, 1), PAGE_SIZE),
                    block_values(layer.transpose(0, 1), PAGE_SIZE),
                    counts,
                )
                for layer in content
            ]
        )

    def _observe(self, server: EngineServer) -> None:
        """Keep a copy of what the policy is told, which is what the step selected."""
        policy = server.table.policy
        on_step: Callable[..., None] = policy.on_step
        self.selections[server] = []

        def observed(layer: int, scores: torch.Tensor, selected: Selected, *args: Any) -> None:
            live = (field[: len(LENGTHS)].clone().cpu() for field in selected)
            self.selections[server].append(Selected(*live))
            on_step(layer, scores, selected, *args)

        policy.on_step = observed  # type: ignore[method-assign]

    def step(self, number: int, servers: Sequence[EngineServer] | None = None) -> None:
        """One step, of both unless some are named.

        The GPU may score a tail page before or after its new key is folded in. Keys of 0, in boxes that hold it, make
        no difference to any score.
        """
        lengths = {row: length + number + 1 for row, length in LENGTHS.items()}
        batch = len(lengths) + self.padding
        q, v = (self.normal(LAYERS, batch, heads, DIM) for heads in (GROUP * HEADS, HEADS))
        inputs = q, torch.zeros_like(v), v
        self.outputs.clear()
        for server in servers or self.servers:
            self.selections[server].clear()
            self.outputs.append(server.step(lengths, *inputs))

    def align(self) -> None:
        """Give the GPU's engine the reference's state.

        One frame of each KV head is free in it, so that no tail page is claimed at the cost of one of several pages of
        equal worth: what a step hits is the same in both.
        """
        mine, theirs = self.reference, self.gpu
        mine.engine.settle()
        theirs.engine.settle()
        for layer, head in itertools.product(range(LAYERS), range(HEADS)):
            self._free_a_frame(layer, head)
        for name in ("frame_of", "page_of", "unsaved", "summaries"):
            getattr(theirs.table, name).copy_(getattr(mine.table, name))
        theirs.table.policy.worth.copy_(mine.table.policy.worth)
        theirs.frames.copy_(mine.frames)
        theirs.host.copy_(mine.host)

    def _free_a_frame(self, layer: int, head: int) -> None:
        """Take a frame from the page of least worth, if all are taken."""
        table = self.reference.table
        held = table.page_of[layer, head].long()
        if bool((held < 0).any()):
            return
        worth = table.policy.worth[layer, head, held].masked_fill(table.unsaved[layer, held], torch.inf)
        frame = int(worth.argmin())
        table.frame_of[layer, head, held[frame]] = -1
        table.page_of[layer, head, frame] = -1

    def residents(self) -> dict[tuple[int, int], set[int]]:
        """Pages with a frame in the reference, by layer and KV head."""
        page_of = self.reference.table.page_of
        return {
            (layer, head): set(page_of[layer, head].tolist()) - {-1}
            for layer, head in itertools.product(range(LAYERS), range(HEADS))
        }

    def check_selections(self) -> None:
        """The same pages, hits before misses, in the same order, in every layer; which frame a hit has may differ."""
        mine, theirs = (self.selections[server] for server in self.servers)
        assert len(mine) == len(theirs) == LAYERS
        for expected, actual in zip(mine, theirs, strict=True):
            count = int(expected.num_selected.max())
            for name in ("pages", "misses", "valid", "indices"):
                left, right = (getattr(found, name)[:, :, :count] for found in (expected, actual))
                assert torch.equal(left, right), name
            assert torch.equal(expected.num_hits, actual.num_hits)
            assert torch.equal(expected.num_selected, actual.num_selected)

    def check_outputs(self) -> None:
        """What was attended, whatever holds it: frames, host pages, or summaries, which are weighted in 16 bits."""
        expected, actual = self.outputs
        exact = self.gpu.dtype == torch.float32 and not self.gpu.engine.scoring.attends_tail
        allowed = 1e-3 if exact else 2e-2
        assert float((actual - expected).abs().max()) <= allowed * float(expected.abs().max())

    def check_residency(self, tolerance: float) -> None:
        """The same pages have frames, but for pages whose worth is within the tolerance of another's."""
        worth = self.reference.table.policy.worth
        difference = (self.gpu.table.policy.worth.cpu() - worth).abs().max()
        assert difference <= tolerance
        for layer in range(LAYERS):
            for head in range(HEADS):
                mine, theirs = (set(server.table.page_of[layer, head].tolist()) for server in self.servers)
                assert len(mine) == len(theirs)
                lost, won = (
                    sorted(worth[layer, head, sorted(pages)].tolist())
                    for pages in (mine - theirs, theirs - mine)
                )
                for one, other in zip(lost, won, strict=True):
                    assert abs(one - other) <= 2 * tolerance, "a page of less worth was kept"


def check(pair: Pair, policy: str) -> int:
    """Drive both for some steps; how many pages got a frame that no head had selected."""
    misses = hits = unselected = 0
    for number in range(CHECKED_STEPS):
        before = pair.residents()
        pair.step(number)
        pair.check_selections()
        pair.check_outputs()
        pair.check_residency(RANK_ERROR.get(policy, 1e-6))
        selections = pair.selections[pair.reference]
        hits += sum(int(found.num_hits.sum()) for found in selections)
        misses += sum(int((found.num_selected - found.num_hits).sum()) for found in selections)
        for (layer, head), held in pair.residents().items():
            chosen = set(selections[layer].pages[:, head].flatten().tolist())
            unselected += len(held - before[layer, head] - chosen)
        pair.align()
    assert hits > 0, "the trace says nothing about hits"
    assert misses > 0, "the trace says nothing about misses"
    first, second = (server.recorder.report()["overall"] for server in pair.servers)
    assert first["samples"] == second["samples"]
    assert first["hit_rate"] == pytest.approx(second["hit_rate"])
    attends_tail = pair.gpu.engine.scoring.attends_tail
    assert ("estimated_coverage" in first) == ("estimated_coverage" in second) == attends_tail
    if attends_tail:
        assert 0.3 < first["estimated_coverage"] < 0.9
        assert first["estimated_coverage"] == pytest.approx(second["estimated_coverage"], abs=2e-3)
        for server in pair.servers:
            counted = server.recorder.counts.coverage[: server.recorder.padding_row]
            assert int((counted > 0).any(2).any(1).sum()) == len(LENGTHS), "padding counts for a request"
    return unselected


@pytest.mark.parametrize(
    ("summary", "tail", "miss_mode"),
    [
        ("subcentroids4", True, "split"),
        ("subcentroids4", False, "fetch"),
        *(
            (name, True, "fetch")
            for name in SUMMARIES.names()
            if issubclass(SUMMARIES[name], EstimatingSummary)
        ),
    ],
)
def test_triton_attends_what_is_left_out_as_the_reference_does(
    summary: str, tail: bool, miss_mode: str, rng: torch.Generator
) -> None:
    planned = miss_mode == "split"
    config = config_of(
        "importance", summary=summary, tail=tail, miss_mode=miss_mode, plan_decode_buffers=planned
    )
    pair = Pair(config, 10, rng.device, torch.float32, runners_up=0, padding=1)
    check(pair, "importance")


@pytest.mark.parametrize(
    ("summary", "miss_mode", "dense"),
    [("bound", "fetch", 0), ("bound", "split", 0), ("bound", "fetch", 1 << 20)],
)
def test_triton_attends_eight_bits_with_a_layers_scales_as_the_reference_does(
    summary: str, miss_mode: str, dense: int, rng: torch.Generator
) -> None:
    config = replace(config_of("importance", summary=summary, miss_mode=miss_mode), dense_threshold=dense)
    scales = [KVScales(0.75, 2.5), KVScales(1.0, 0.3)]
    pair = Pair(config, 10, rng.device, EIGHT_BITS, 0, 1, compute_dtype=torch.float32, scales=scales)
    for number in range(2):
        pair.step(number)
        pair.check_outputs()
        if not dense:
            pair.check_selections()
        pair.align()


@pytest.mark.parametrize(("summary", "planned"), [("subcentroids2", True), ("subcentroids4", False)])
def test_cuda_attends_what_is_left_out_as_the_reference_does(
    summary: str, planned: bool, rng: torch.Generator, cuda_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the workspaces share their memory."""
    if not GPU:
        monkeypatch.setattr("rheo_sglang.decode.gpu_engine.make_attention", CudaAttention)
    config = config_of("importance", summary=summary, miss_mode="fetch", plan_decode_buffers=planned)
    pair = Pair(config, 16, rng.device, torch.bfloat16, runners_up=PAGES, padding=1)
    check(pair, "importance")


def test_cuda_attends_eight_bits_with_a_layers_scales_as_the_reference_does(
    rng: torch.Generator, cuda_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is left out with them, which runners-up are a part of."""
    if not GPU:
        monkeypatch.setattr("rheo_sglang.decode.gpu_engine.make_attention", CudaAttention)
    config = config_of("importance", summary="subcentroids4", miss_mode="fetch")
    scales = [KVScales(0.75, 2.5), KVScales(1.0, 0.3)]
    storage = {"compute_dtype": torch.bfloat16, "scales": scales}
    pair = Pair(config, 16, rng.device, EIGHT_BITS, PAGES, padding=1, **storage)
    assert isinstance(pair.gpu.engine.attention, CudaAttention)
    assert check(pair, "importance") > 0, "no runner-up got a frame"


@pytest.mark.parametrize("language", ["triton", "cuda"])
def test_both_engines_prefer_pages_with_a_frame_alike(
    language: str, rng: torch.Generator, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they attend, cover and make resident, importance by scores without the bonus among it."""
    cuda = language == "cuda"
    if cuda:
        request.getfixturevalue("cuda_kernels")
        if not GPU:
            monkeypatch.setattr("rheo_sglang.decode.gpu_engine.make_attention", CudaAttention)
    config, floored = favouring(0.3)
    dtype = torch.bfloat16 if cuda else torch.float32
    pair = Pair(config, 16 if cuda else 10, rng.device, dtype, PAGES if cuda else 0, padding=1)
    for server in pair.servers:
        server.engine.budget.assign([3], [floored])
    check(pair, "importance")


def favouring(bonus: float) -> tuple[RheoConfig, BudgetSettings]:
    """Settings with a bonus, and those of a request with a floor."""
    common = {"summary": "subcentroids4", "miss_mode": "fetch", "request_limit_ratio": 0.6}
    config = config_of("importance", residency_bonus=bonus, **common)
    floored = read_settings({"rheo": {"budget_coverage": 0.5, "budget_limit_ratio": 0.6}}, config)
    assert floored is not None
    return config, floored


def test_a_bonus_selects_what_has_a_frame_except_for_requests_with_a_floor(rng: torch.Generator) -> None:
    """The reference engine; the GPU's selects as it does, see above. In the first step nothing has a frame."""
    found: list[list[Selected]] = []
    for bonus in (0.0, 100.0):
        config, floored = favouring(bonus)
        pair = Pair(config, 10, rng.device, torch.float32, runners_up=0)
        pair.reference.engine.budget.assign([3], [floored])
        for number in range(2):
            pair.align()
            pair.step(number, (pair.reference,))
        found.append(pair.selections[pair.reference])
    for plain, favoured in zip(*found, strict=True):
        assert torch.equal(plain.num_selected, favoured.num_selected)
        assert torch.equal(plain.indices[2], favoured.indices[2]), "a request with a floor"
        assert (favoured.num_hits >= plain.num_hits).all()
    assert sum(int((two.num_hits - one.num_hits).sum()) for one, two in zip(*found, strict=True)) > 0


@pytest.mark.parametrize(
    ("policy", "miss_mode"),
    [
        ("importance", "split"),
        *((policy, "fetch") for policy in sorted(POLICIES.names())),
        *(
            pytest.param(policy, "split", marks=pytest.mark.full)
            for policy in sorted(set(POLICIES.names()) - {"importance"})
        ),
    ],
)
def test_triton_leaves_the_same_pages_resident(policy: str, miss_mode: str, rng: torch.Generator) -> None:
    """Triton's selection lists no runners-up. There are frames for all misses, though not for all pages."""
    pair = Pair(config_of(policy, miss_mode=miss_mode), 10, rng.device, torch.float32, runners_up=0)
    assert check(pair, policy) == 0


@pytest.mark.parametrize("policy", sorted(POLICIES.names()))
def test_cuda_leaves_the_same_pages_resident_and_offers_runners_up_frames(
    policy: str, rng: torch.Generator, cuda_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are frames for more pages than a step selects, and for all that it offers frames.

    A GPU looks at no more candidates than there are frames, misses first, and may leave out runners-up of the last
    requests that are worth more than others'.
    """
    if not GPU:
        monkeypatch.setattr("rheo_sglang.decode.gpu_engine.make_attention", CudaAttention)
    pair = Pair(config_of(policy, miss_mode="fetch"), 16, rng.device, torch.bfloat16, runners_up=PAGES)
    assert check(pair, policy) > 0, "no runner-up got a frame"


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
