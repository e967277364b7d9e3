"""Both engines leave a trace that says what they told the policy, also of padded batches and of dense steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_server import DIM, GROUP, HEADS, LAYERS, PAGE_SIZE, PAGES, EngineServer

from rheo_kernels.types import Selected
from rheo_sglang.config import RheoConfig
from rheo_sglang.traces import Trace, TracedShape, open_trace
from rheo_sglang.traces.events import Noted, Step

LENGTHS = {1: 11 * PAGE_SIZE - 3, 2: 30, 3: 6 * PAGE_SIZE - 1}
STEPS = 3
FRAMES = 12
SHAPE = TracedShape("model", PAGE_SIZE, LAYERS, 0, HEADS, GROUP, DIM, PAGES, FRAMES, "bound", 14 * PAGE_SIZE)


class Observed:
    """An engine's steps, and what the policy was told of them."""

    def __init__(self, config: RheoConfig, device: torch.device, gpu: bool, folder: Path) -> None:
        tracer = open_trace(folder, config, SHAPE, device)
        self.tracer, self.told = tracer, []  # type: ignore[var-annotated]
        self.server = EngineServer(config, FRAMES, device, gpu, tracer=tracer)
        policy = self.server.table.policy
        on_step: Callable[..., None] = policy.on_step

        def observed(layer: int, scores: torch.Tensor, selected: Selected, *lists: Any) -> None:
            self.told.append((scores.cpu().clone(), Selected(*(field.cpu().clone() for field in selected))))
            on_step(layer, scores, selected, *lists)

        policy.on_step = observed  # type: ignore[method-assign]

    def run(self, rng: torch.Generator, padding: int, lengths: dict[int, int] = LENGTHS) -> None:
        draw = torch.Generator().manual_seed(3)
        content = torch.randn(self.server.host.shape, generator=draw)
        boxes = torch.randn(self.server.table.summaries.shape, generator=draw).abs()
        boxes = boxes * torch.tensor([-1.0, 1.0])[:, None]
        free = torch.randperm(PAGES - 1, generator=draw) + 1
        for row, length in lengths.items():
            count = -(-(length + STEPS) // PAGE_SIZE)
            pages, free = free[:count].tolist(), free[count:]
            self.server.prefill(row, pages, content, boxes)
        for number in range(STEPS):
            now = {row: length + number + 1 for row, length in lengths.items()}
            batch = len(now) + padding
            q, k, v = (
                torch.randn((LAYERS, batch, heads, DIM), generator=draw)
                for heads in (GROUP * HEADS, HEADS, HEADS)
            )
            self.server.step(now, q, k, v)
        self.server.table.release(free[:2].to(self.server.table.frame_of.device))
        self.server.engine.settle()
        self.tracer.close()


@pytest.mark.parametrize("gpu", [False, True], ids=["reference", "gpu"])
def test_a_trace_says_what_the_policy_was_told(gpu: bool, rng: torch.Generator, tmp_path: Path) -> None:
    device = rng.device if gpu else torch.device("cpu")
    config = RheoConfig(
        budget_ratio=0.4, budget_min_pages=4, dense_threshold=0, summary="bound", miss_mode="fetch"
    )
    observed = Observed(config, device, gpu, tmp_path / "trace")
    observed.run(rng, padding=1)
    events = list(Trace(tmp_path / "trace").events())
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.number for step in steps] == [1, 2, 3]
    assert len(observed.told) == STEPS * LAYERS
    for number, (scores, selected) in enumerate(observed.told):
        step, layer = steps[number // LAYERS], number % LAYERS
        assert step.requests == [str(row) for row in LENGTHS]
        assert step.tokens.tolist() == [length + number // LAYERS + 1 for length in LENGTHS.values()]
        assert step.scores is not None and step.selected is not None
        assert step.num_hits is not None and step.num_selected is not None
        live = len(LENGTHS)
        assert step.num_hits[layer].tolist() == selected.num_hits[:live].tolist()
        assert step.num_selected[layer].tolist() == selected.num_selected[:live].tolist()
        for row, tokens in enumerate(step.tokens.tolist()):
            count = -(-tokens // PAGE_SIZE)
            np.testing.assert_array_equal(step.scores[layer, row, :, :count], scores[row, :, :count].numpy())
            for head, chosen in enumerate(selected.num_selected[row].tolist()):
                indices = step.selected[layer, row, head, :chosen]
                pages = step.pages[row][indices]
                assert pages.tolist() == selected.pages[row, head, :chosen].tolist()
    freed = [event.pages.tolist() for event in events if isinstance(event, Noted)]
    assert len(freed) == 1 and len(freed[0]) == 2


def test_the_dense_shortcut_is_traced_without_a_selection(rng: torch.Generator, tmp_path: Path) -> None:
    config = RheoConfig(
        budget_ratio=0.4, budget_min_pages=4, dense_threshold=40, summary="bound", miss_mode="fetch"
    )
    observed = Observed(config, rng.device, True, tmp_path / "trace")
    observed.run(rng, padding=0, lengths={1: 30})
    steps = [event for event in Trace(tmp_path / "trace").events() if isinstance(event, Step)]
    assert [step.number for step in steps] == [1, 2, 3]
    selecting = [step.scores is not None for step in steps]
    assert not selecting[0]
    assert len(observed.told) == sum(selecting) * LAYERS
    assert [step.tokens.tolist() for step in steps] == [[31], [32], [33]]
