"""Pair: both engines, driven over one trace, and what must be the same in them.

"Same" is up to ties between pages of equal worth, and up to the rank error of Triton's importance, which is bounded in
`rheo_kernels.triton.update_importance`. Every step begins with the reference's state in both engines, so that what one
step may do differently within these limits is not counted against the steps that follow.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from engine_server import DIM, GROUP, HEADS, LAYERS, PAGE_SIZE, PAGES, EngineServer
from triton_cases import GPU

from rheo_kernels.reference import block_keys, block_values
from rheo_kernels.types import Selected
from rheo_sglang.config import RheoConfig
from rheo_sglang.selection import EstimatingSummary

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
