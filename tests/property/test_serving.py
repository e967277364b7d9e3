"""Whatever is evicted, shared or aborted on the way, every output is attention over the selected tokens."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pairwise import combinations

from property.serving import DECODE_BATCH, Request, Server
from property.tokens import VOCABULARY, Shape
from rheo_sglang.config import RheoConfig
from rheo_sglang.tiering import POLICIES

DENSE = {"budget_ratio": 1.0}
SPARSE = {"budget_ratio": 0.2, "budget_min_pages": 1, "dense_threshold": 0, "window_pages": 1}
BUDGETS = {"dense": DENSE, "sparse": SPARSE}
token_ids = st.integers(0, VOCABULARY - 1)


def prompt(kinds: list[int], page_size: int, tokens: int) -> list[int]:
    """A prompt whose pages repeat one token id each, so that prompts share prefixes of whole pages."""
    return [kind for kind in kinds for _ in range(page_size)][:tokens]


@pytest.mark.parametrize(
    ("page_size", "summary", "dtype", "policy", "miss_mode", "budget"),
    combinations(
        [16, 32, 64],
        ["bound", "mean"],
        [torch.float32, torch.bfloat16],
        sorted(POLICIES.names()),
        ["split", "fetch"],
        sorted(BUDGETS),
    ),
)
def test_requests_that_share_a_prefix_and_outgrow_the_frames(
    page_size: int, summary: str, dtype: torch.dtype, policy: str, miss_mode: str, budget: str
) -> None:
    config = RheoConfig(
        policy=policy, miss_mode=miss_mode, summary=summary, recorder="mass", **BUDGETS[budget]
    )
    server = Server(Shape(page_size=page_size, group=3, dtype=dtype), config)
    first = server.admit(prompt([1, 2, 3, 4, 5], page_size, 4 * page_size + 5))
    assert first is not None
    server.prefill([first], chunk=2 * page_size)
    server.prefill([first], chunk=3 * page_size)
    second = server.admit(prompt([1, 2, 3, 6, 7], page_size, 5 * page_size - 2))
    assert second is not None
    assert second.protected == 3 * page_size, "the shared prefix was not found"
    server.prefill([second], chunk=5 * page_size)
    for step in range(5):
        server.decode([first, second], [step % VOCABULARY, 7 - step % VOCABULARY])
        server.check()
    server.finish(first)
    server.decode([second], [0])
    server.check()
    report = server.backend.engine.recorder.report()
    assert report["overall"]["samples"] == 11 * server.shape.layers * server.shape.kv_heads
    for entry in report["requests"]:
        assert entry["mass_covered"] == pytest.approx(server.mean_mass(entry["rid"]), abs=2e-4)
        assert (entry["mass_covered"] == 1.0) is (budget == "dense")
    server.drain()


class ServingMachine(RuleBasedStateMachine):
    """Random admissions, chunks, decode batches, ends, aborts, evictions and flushes on a tiny frame pool."""

    @initialize(
        page_size=st.sampled_from([16, 16, 32, 64]),
        group=st.sampled_from([1, 3, 4]),
        frames=st.integers(DECODE_BATCH, 6),
        dtype=st.sampled_from([torch.float32, torch.bfloat16]),
        policy=st.sampled_from(sorted(POLICIES.names())),
        miss_mode=st.sampled_from(["split", "fetch"]),
        summary=st.sampled_from(["bound", "mean"]),
        budget=st.sampled_from(sorted(BUDGETS)),
    )
    def start(
        self, page_size: int, group: int, frames: int, dtype: torch.dtype, budget: str, **choices: str
    ) -> None:
        self.server = Server(
            Shape(page_size=page_size, group=group, frames=frames, dtype=dtype, pages=14),
            RheoConfig(**choices, **BUDGETS[budget]),
        )

    def prefilling(self) -> list[Request]:
        return [request for request in self.server.running if request.computed < len(request.tokens)]

    def decoding(self) -> list[Request]:
        return [request for request in self.server.running if request.computed == len(request.tokens)]

    @precondition(lambda self: len(self.server.running) < DECODE_BATCH)
    @rule(kinds=st.lists(st.integers(0, 2), min_size=1, max_size=5), short=st.integers(0, 15))
    def admit(self, kinds: list[int], short: int) -> None:
        size = self.server.shape.page_size
        self.server.admit(prompt(kinds, size, len(kinds) * size - short))

    @precondition(lambda self: self.prefilling())
    @rule(tokens=st.one_of(st.integers(1, 90), st.just(500)), together=st.booleans())
    def prefill(self, tokens: int, together: bool) -> None:
        """Chunks end anywhere, also inside a page."""
        waiting = self.prefilling()
        self.server.prefill(waiting if together else waiting[:1], tokens)

    @precondition(lambda self: self.decoding())
    @rule(steps=st.lists(token_ids, min_size=1, max_size=18), alone=st.booleans())
    def decode(self, steps: list[int], alone: bool) -> None:
        for token in steps:
            batch = self.decoding()[: 1 if alone else DECODE_BATCH]
            self.server.decode(batch, [(token + row) % VOCABULARY for row in range(len(batch))])

    @precondition(lambda self: self.decoding())
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.server.finish(data.draw(st.sampled_from(self.decoding())))

    @precondition(lambda self: self.server.running)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        """A client goes away, or the scheduler retracts: also in the middle of a prompt."""
        self.server.abort(data.draw(st.sampled_from(self.server.running)))

    @precondition(lambda self: not self.server.running)
    @rule()
    def flush(self) -> None:
        self.server.drain()

    @invariant()
    def pages_tree_and_allocator_agree(self) -> None:
        self.server.check()

    def teardown(self) -> None:
        if hasattr(self, "server"):
            for request in self.prefilling():
                self.server.abort(request)
            self.server.drain()


TestServing = ServingMachine.TestCase
TestServing.settings = settings(max_examples=40, stateful_step_count=30)
