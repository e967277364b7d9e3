"""What a server tells about itself is JSON, whatever its requests hold, and asking changes nothing."""

from __future__ import annotations

import dataclasses
import io
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from property.serving import Server
from property.tokens import Shape
from rheo_sglang.config import RheoConfig
from rheo_sglang.recorder.report import render_report
from rheo_sglang.state import describe_scheduler, without_not_finite

PAGE = 16
CONFIG = RheoConfig(budget_ratio=0.5, budget_min_pages=2, dense_threshold=0, tail=False, recorder="mass")
"""Without the tail partial, which the expected outputs do not have."""
POISON, HEALTHY = [5] * PAGE, [1, 2, 3, 4] * (PAGE // 4)
"""Prompts of two requests; they share no token."""


class PoisonedServer(Server):
    """A server on which one token's keys are not finite.

    What attends them has no right selection and no right output, and is not checked.
    """

    def poison(self, token: int, value: float) -> None:
        self.content.k[:, token] = value

    def selected_tokens(self, row: int, length: int) -> torch.Tensor:
        if self.content.k[:, self.running[row].tokens[0]].isfinite().all():
            return super().selected_tokens(row, length)
        return torch.ones(self.shape.kv_heads, length, dtype=torch.bool)

    def assert_close(self, out: torch.Tensor, expected: torch.Tensor) -> None:
        if expected.isfinite().all():
            super().assert_close(out, expected)


def server_info(server: Server) -> dict[str, Any]:
    """The ``rheo`` object as a client gets it."""
    runner = SimpleNamespace(attn_backend=server.backend)
    scheduler = SimpleNamespace(
        token_to_kv_pool_allocator=server.allocator,
        tree_cache=server.tree,
        tp_worker=SimpleNamespace(model_runner=runner),
    )
    return json.loads(json.dumps(describe_scheduler(scheduler), allow_nan=False))


def running_server(value: float | None) -> Server:
    server = PoisonedServer(Shape(page_size=PAGE, group=2, dtype=torch.float32), CONFIG)
    if value is not None:
        server.poison(POISON[0], value)
    requests = [server.admit(list(prompt) * 3) for prompt in (POISON, HEALTHY)]
    assert all(requests)
    server.prefill(requests, chunk=3 * PAGE)
    for _ in range(3):
        server.decode(requests, [POISON[0], HEALTHY[0]])
    return server


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_keys_that_are_not_finite_spoil_no_other_request_and_no_report(value: float) -> None:
    """While the request runs, after it ended, and after everything was flushed."""
    server, clean = running_server(value), running_server(None)
    expected = server_info(clean)["recorder"]["requests"][1]
    for _ in range(3):
        state = server_info(server)
        bad, healthy = state["recorder"]["requests"]
        assert bad["mass_covered"] is None
        assert bad["mass_not_finite"] == bad["samples"]
        assert (healthy["mass_covered"], healthy["mass_not_finite"]) == (expected["mass_covered"], 0)
        assert state["recorder"]["overall"]["mass_covered"] == expected["mass_covered"]
        assert state["recorder"]["overall"]["mass_not_finite"] == bad["samples"]
        Console(file=io.StringIO()).print(render_report(state))
        for request in list(server.running)[:1]:
            server.finish(request)
        if not server.running:
            server.tree.reset()
            server.allocator.clear()


def test_asking_changes_nothing() -> None:
    """Also not what the scheduler noted and the next forward pass carries out."""
    server = running_server(None)
    server.finish(server.running[0])
    table = server.table
    assert table._notes, "nothing is noted: the test would show nothing"
    notes = list(table._notes)
    tensors = [
        table.frame_of,
        table.page_of,
        table.unsaved,
        table.summarised,
        table.summaries,
        table.policy.worth,
        table.stamped,
    ]
    counts = [counter for counter in server.backend.engine.recorder.counts if counter is not None]
    before = [tensor.clone() for tensor in (*tensors, *counts)]
    assert server_info(server) == server_info(server)
    assert all(torch.equal(one, other) for one, other in zip(before, (*tensors, *counts), strict=True))
    assert table._notes == notes


def test_the_config_is_an_object() -> None:
    config = server_info(running_server(None))["config"]
    assert config == json.loads(json.dumps(dataclasses.asdict(CONFIG)))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), (None, 1)),
        (
            {"a": [1, float("inf"), (2.5, float("-inf"))], "b": {"c": "NaN"}},
            ({"a": [1, None, [2.5, None]], "b": {"c": "NaN"}}, 2),
        ),
        ([True, None, 10**400, 0.0], ([True, None, 10**400, 0.0], 0)),
    ],
)
def test_numbers_that_are_not_finite_are_null_and_counted(value: Any, expected: tuple[Any, int]) -> None:
    assert without_not_finite(value) == expected
