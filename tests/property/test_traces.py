"""A trace says what the engine did: read back it is what was selected, and replayed it has the engine's own hits."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from property.serving import DECODE_BATCH, Server
from property.test_serving import SPARSE, prompt
from property.tokens import VOCABULARY, Shape
from rheo_kernels.types import Selected
from rheo_sglang.config import RheoConfig
from rheo_sglang.decode.reference_engine import RUNNERS_UP
from rheo_sglang.replay.compact import compact
from rheo_sglang.replay.sweep import BELADY, Case, Outcome, replay
from rheo_sglang.tiering import POLICIES
from rheo_sglang.traces import Trace
from rheo_sglang.traces.events import Noted, Prompts, Step

SHAPE = Shape(page_size=16, group=2, frames=7, pages=40)
ALPHA = 0.3


def traced_server(folder: Path, policy: str) -> Server:
    config = RheoConfig(**{**SPARSE, "budget_ratio": 0.4}, policy=policy, summary="bound", trace=str(folder))
    return Server(SHAPE, config)


def serve(server: Server, seed: int, operations: int = 20) -> None:
    """Requests that share prefixes come, are prefilled in chunks, decode, end, and are flushed, at random."""
    draw = random.Random(seed)
    begin = ["admit", "admit", "prefill", "admit", "prefill", "decode", "decode"]
    later = ["admit", "prefill", "decode", "decode", "decode", "finish", "flush"]
    for action in [*begin, *draw.choices(later, k=operations)]:
        waiting = [one for one in server.running if one.computed < len(one.tokens)]
        decoding = [one for one in server.running if one.computed == len(one.tokens)][:DECODE_BATCH]
        if action == "admit" and len(server.running) < DECODE_BATCH:
            kinds = [draw.randrange(2) for _ in range(draw.randint(3, 9))]
            server.admit(prompt(kinds, SHAPE.page_size, len(kinds) * SHAPE.page_size - draw.randrange(15)))
        elif action == "prefill" and waiting:
            server.prefill(waiting, draw.randint(16, 200))
        elif action == "decode" and decoding:
            for _ in range(draw.randint(1, 9)):
                server.decode(
                    [one for one in decoding if one in server.running],
                    [draw.randrange(VOCABULARY) for one in decoding if one in server.running],
                )
                if not any(one in server.running for one in decoding):
                    break
        elif action == "finish" and len(decoding) > 1:
            server.finish(decoding[0])
        elif action == "flush" and not server.running:
            server.drain()


def close(server: Server) -> None:
    tracer = server.backend.engine.tracer
    assert tracer is not None
    tracer.close()


def replayed(trace: Trace, policy: str, frames: int, runners_up: int = RUNNERS_UP) -> Outcome:
    return replay(compact(trace), Case(policy, None, runners_up), frames, ALPHA)


@pytest.mark.parametrize("policy", sorted(POLICIES.names()))
@pytest.mark.parametrize("seed", range(2))
def test_a_replay_at_the_servers_capacity_has_the_servers_own_hits(
    policy: str, seed: int, tmp_path: Path
) -> None:
    server = traced_server(tmp_path / "trace", policy)
    serve(server, seed)
    recorder = server.backend.engine.recorder
    assert recorder is not None
    report = recorder.report()
    close(server)
    trace = Trace(tmp_path / "trace")
    assert trace.dropped == 0
    found = replayed(trace, policy, SHAPE.frames)
    assert 0 < found.hits.sum() < found.selected.sum(), "the trace says nothing about misses"
    rows = SHAPE.layers * SHAPE.kv_heads
    for index, request in enumerate(found.requests):
        entry = next(entry for entry in report["requests"] if entry["rid"] == request)
        assert entry["samples"] == found.steps[index] * rows
        assert entry["page_hit_rate"] == pytest.approx(
            found.hits[index].sum() / found.selected[index].sum(), abs=5.1e-5
        )
    counts = recorder.counts
    hits, selected = int(counts.hits.sum()), int(counts.selected.sum())
    assert (hits, selected) == (found.hits.sum(), found.selected.sum())


def test_a_trace_holds_what_the_engine_selected_and_how_it_scored(tmp_path: Path) -> None:
    server = traced_server(tmp_path / "trace", "lru")
    policy, seen = server.table.policy, []
    on_step = policy.on_step

    def observed(
        layer: int, scores: torch.Tensor, selected: Selected, pages: torch.Tensor, num_pages: torch.Tensor
    ) -> None:
        seen.append((layer, scores.clone(), selected, pages.clone(), num_pages.clone()))
        on_step(layer, scores, selected, pages, num_pages)

    policy.on_step = observed  # type: ignore[assignment, method-assign]
    serve(server, seed=5)
    close(server)
    events = list(Trace(tmp_path / "trace").events())
    steps = [event for event in events if isinstance(event, Step)]
    assert len(steps) == server.table.activity.steps == len(seen) / SHAPE.layers > 10
    for number, (layer, scores, selected, pages, num_pages) in enumerate(seen):
        step = steps[number // SHAPE.layers]
        assert step.scores is not None and step.selected is not None and step.num_hits is not None
        for row, count in enumerate(num_pages.tolist()):
            assert step.pages[row, :count].tolist() == pages[row, :count].tolist()
            np.testing.assert_array_equal(step.scores[layer, row, :, :count], scores[row, :, :count].numpy())
            for head, chosen in enumerate(selected.num_selected[row].tolist()):
                indices = step.selected[layer, row, head, :chosen]
                assert indices.tolist() == selected.indices[row, head, :chosen].tolist()
        assert step.num_hits[layer].tolist() == selected.num_hits.tolist()
    assert {event.kind for event in events if isinstance(event, Noted)} >= {"free"}
    assert any(len(event.caps) for event in events if isinstance(event, Prompts))


@pytest.mark.parametrize("seed", range(2))
def test_no_policy_hits_more_than_belady(seed: int, tmp_path: Path) -> None:
    server = traced_server(tmp_path / "trace", "importance")
    serve(server, seed)
    close(server)
    trace = Trace(tmp_path / "trace")
    for frames, runners_up in itertools.product((DECODE_BATCH, 7, 12), (0, RUNNERS_UP)):
        most = replayed(trace, BELADY, frames, runners_up).hits.sum(0)
        for policy in POLICIES.names():
            found = replayed(trace, policy, frames, runners_up).hits.sum(0)
            assert (found <= most).all(), (policy, frames, runners_up)
