"""What buffers of decode steps take is known before they are made, and decides how many requests may run."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from engine_server import CONTEXT, HEAD_SHAPE, HEADS, LAYERS, PAGE_SIZE, ROWS, EngineServer
from hypothesis import given

from rheo_sglang.config import RheoConfig
from rheo_sglang.decode.memory import DecodeMemory
from rheo_sglang.decode.workspace_room import WorkspaceRoom
from rheo_sglang.errors import ConfigError
from rheo_sglang.pools import sizing
from rheo_sglang.pools.plan import DECODE_SHARE, GIB, DecodeBytes, KVShape, PoolPlan, plan_requests
from rheo_sglang.traces import Tracer
from rheo_sglang.traces.memory import trace_bytes
from rheo_sglang.traces.writer import TraceWriter

FRAMES = 24
SETTINGS: list[dict[str, Any]] = [
    {"miss_mode": "fetch"},
    {"miss_mode": "fetch", "conservative": "on"},
    {"miss_mode": "fetch", "request_limit_ratio": 0.5, "tail": False},
    {"miss_mode": "split", "budget_ratio": 0.5},
    {"miss_mode": "split", "summary": "bound", "dense_threshold": 4 * PAGE_SIZE},
]


def config_of(settings: dict[str, Any]) -> RheoConfig:
    common = {"budget_ratio": 0.1, "budget_min_pages": 3, "dense_threshold": 0, "cpu_threads": 1}
    common["plan_decode_buffers"] = True
    return RheoConfig(**{**common, **settings})


def memory_of(config: RheoConfig, captured: int = 0) -> DecodeMemory:
    shape = HEAD_SHAPE, LAYERS, PAGE_SIZE, torch.float32, CONTEXT // PAGE_SIZE
    return DecodeMemory(config, *shape, torch.device("cpu"), captured, frames=FRAMES)


def real_bytes(values: Any, skip: tuple[torch.Tensor, ...], seen: dict[int, int]) -> int:
    """Bytes of all memory of tensors of an object of the package, but for that of ``skip``."""
    pools = {tensor.untyped_storage().data_ptr() for tensor in skip}
    if isinstance(values, torch.Tensor):
        storage = values.untyped_storage()
        if storage.data_ptr() not in pools:
            seen[storage.data_ptr()] = storage.nbytes()
    elif isinstance(values, dict | list | tuple):
        for value in values.values() if isinstance(values, dict) else values:
            real_bytes(value, skip, seen)
    elif type(values).__module__.startswith("rheo_sglang."):
        real_bytes(vars(values), skip, seen)
    return sum(seen.values())


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("batch", [1, 5, 40])
def test_buffers_take_what_was_predicted_whatever_steps_use_them(
    settings: dict[str, Any], batch: int, device: str
) -> None:
    config = config_of(settings)
    engine = EngineServer(config, FRAMES, torch.device("cpu"), True).engine
    engine.reserve(batch)
    (buffers,) = engine._buffers
    for size in {1, max(batch // 2, 1) // 16 * 16 or 1, batch}:
        for variant in engine.variants:
            buffers.views(size, variant)
    expected = memory_of(config, batch)._of_buffers(batch)
    real = real_bytes(buffers, (engine.host, engine.frames), {})
    assert real == expected.device + expected.pinned
    assert (expected.pinned > 0) == (config.miss_mode == "split")


def test_there_are_buffers_for_captured_steps_and_for_all_that_may_run(device: str) -> None:
    config = config_of({"miss_mode": "fetch", "calibrate": False})
    engine = EngineServer(config, FRAMES, torch.device("cpu"), True).engine
    engine.reserve(2)
    engine.reserve(2)
    assert engine.buffers(1) is engine.buffers(2)
    assert engine.buffers(3) is engine.buffers(ROWS)
    assert [buffers.capacity for buffers in engine._buffers] == [2, ROWS]
    memory = memory_of(config, 2)
    both = [memory._of_buffers(size) for size in (2, ROWS)]
    assert memory.of(ROWS - 1).device == sum(one.device for one in both)
    assert memory.of(2) == both[0]
    assert memory.of(1).device < both[0].device
    assert memory_of(config).of(ROWS - 1) == both[1]


@pytest.mark.parametrize("gpu", [False, True])
def test_corrections_take_what_was_planned_for_the_requests_that_may_run(gpu: bool, device: str) -> None:
    config = config_of({"miss_mode": "fetch", "calibrate": True})
    engine = EngineServer(config, FRAMES, torch.device("cpu"), gpu).engine
    codes = engine.scoring.corrections if gpu else engine.corrections
    alone = replace(memory_of(config, 2), plans_buffers=False)
    assert alone.of(ROWS - 1) == DecodeBytes(codes.nbytes, 0)
    assert alone.share < memory_of(config, 2).share
    assert alone.of(ROWS).device == codes.nbytes * (ROWS + 1) // ROWS
    without = memory_of(replace(config, calibrate=False), 2)
    assert replace(without, plans_buffers=False).of(ROWS) == DecodeBytes(0, 0)
    for requests in (1, ROWS - 1, 9):
        more = memory_of(config, 2).of(requests).device - without.of(requests).device
        assert more == alone.of(requests).device


@pytest.mark.parametrize(
    "settings", [{}, {"calibrate": True}, {"calibrate": True, "summary": "subcentroids2"}]
)
@pytest.mark.parametrize("captured", [0, 2, ROWS - 1])
def test_all_that_is_made_for_requests_takes_what_was_planned(
    settings: dict[str, Any], captured: int, device: str, tmp_path: Path
) -> None:
    """Buffers of both kinds of steps, corrections, and what a trace copies, without the memory of both pools."""
    config = config_of({"miss_mode": "fetch", "trace": "somewhere", **settings})
    tracer = Tracer(
        TraceWriter(tmp_path, {"page_size": PAGE_SIZE}, 1 << 20), LAYERS, HEADS, torch.device("cpu")
    )
    server = EngineServer(config, FRAMES, torch.device("cpu"), True, tracer=tracer)
    engine = server.engine
    if captured:
        engine.reserve(captured)
    for batch in range(1, ROWS):
        for variant in engine.variants:
            engine.buffers(batch).views(batch, variant)
    made = [engine._buffers, engine.scoring.corrections, tracer.buffers]
    real = real_bytes(made, (engine.host, engine.frames), {})
    planned = memory_of(config, captured).of(ROWS - 1)
    assert real == planned.device
    assert planned.device > memory_of(replace(config, trace=None), captured).of(ROWS - 1).device
    tracer.close()


def test_copies_of_steps_are_pinned_as_planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    empty = torch.empty

    def unpinned(*size: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        assert pin_memory
        return empty(*size, **options)

    writer = TraceWriter(tmp_path, {"page_size": PAGE_SIZE}, 1 << 20, waiting_bytes=64_000)
    tracer = Tracer(writer, LAYERS, HEADS, torch.device("cpu"))
    tracer.ring.device = torch.device("cuda")
    monkeypatch.setattr(torch, "empty", unpinned)
    for batch, slots in ((2, 8), (40, 2), (5, 2), (400, 0)):
        tracer.reserve(batch, 30, 10)
        assert len(tracer.ring._free) == slots
        if batch != 5:
            planned = trace_bytes((2, batch), LAYERS, HEADS, 30, 10, 64_000)
            assert sum(slot.nbytes for slot in tracer.ring._free) == planned.pinned
    monkeypatch.undo()
    tracer.close()


def test_steps_that_are_not_traced_take_nothing() -> None:
    assert trace_bytes([1000], 36, 8, 4096, 164).device == 0
    both = trace_bytes([32, 1000], 4, 8, 4096, 164)
    assert both.device == trace_bytes([32], 4, 8, 4096, 164).device == 4 * 4 * 32 * 8 * (4096 + 164 + 2)


@pytest.mark.parametrize("conservative", ["off", "on"])
def test_wide_selections_take_as_much_as_the_pages_document_says(conservative: str) -> None:
    """The formula of docs/memory.md for one request more, of Qwen3-8B at 128K, as far as it is exact."""
    config = RheoConfig(conservative=conservative, miss_mode="fetch", calibrate=False)
    layers, heads, group, dim, columns = 36, 8, 4, 128, 4096
    shape = HEAD_SHAPE._replace(kv_heads=heads, group=group, dim=dim)
    memory = DecodeMemory(config, shape, layers, 32, torch.bfloat16, columns, torch.device("cpu"), 0)
    width = columns if conservative == "on" else 164
    growth = (memory.of(4096).device - memory.of(2048).device) / 2048
    lists = 4 * columns + 4.5 * group * columns + 16 * width + 4 * width
    staged, partials = 2 * dim * 32 * 2, 12 * group * dim
    assert growth == pytest.approx(heads * (lists + staged + partials) + 4 * columns, rel=0.01)


class Pair(NamedTuple):
    first: torch.Tensor
    counts: torch.Tensor


class Nested(NamedTuple):
    pair: Pair
    last: torch.Tensor


def shape_of(size: int) -> Nested:
    empty = [torch.empty(size, 2, device="meta"), torch.empty(size, dtype=torch.int32, device="meta")]
    return Nested(Pair(*empty), torch.empty(2 * size, device="meta"))


def test_workspaces_share_memory_and_keep_it_when_a_larger_one_comes() -> None:
    room = WorkspaceRoom([shape_of(3), shape_of(5)], "cpu")
    large, small = room.place(shape_of(5)), room.place(shape_of(3))
    assert isinstance(small, Nested) and isinstance(small.pair, Pair)
    assert small.pair.first.shape == (3, 2) and small.pair.counts.dtype == torch.int32
    for mine, theirs in zip((*large.pair, large.last), (*small.pair, small.last), strict=True):
        assert mine.data_ptr() == theirs.data_ptr()
        assert not mine.any()
    larger = room.place(shape_of(7))
    assert larger.last.shape == (14,) and not larger.last.any()
    large.last.fill_(1)
    assert not larger.last.any()
    assert room.place(shape_of(2)).last.data_ptr() == larger.last.data_ptr()


@given(
    each=st.integers(1, 50),
    fixed=st.integers(0, 500),
    asked=st.none() | st.integers(1, 3000),
    captured=st.integers(0, 600),
    most=st.integers(1, 4096),
    device=st.integers(0, 200_000),
)
def test_requests_are_as_asked_or_as_many_as_their_share_is_enough_for(
    each: int, fixed: int, asked: int | None, captured: int, most: int, device: int
) -> None:
    def bytes_of(requests: int) -> DecodeBytes:
        return DecodeBytes((fixed + each * requests) * (requests > 0), 0)

    needed = min(asked or max(captured, 1), most)
    if bytes_of(needed).device >= device:
        with pytest.raises(ConfigError) as refused:
            plan_requests(bytes_of, asked, captured, most, device)
        message = str(refused.value)
        flag = "--max-running-requests" if asked else "--cuda-graph-max-bs-decode"
        assert message.startswith("rheo: buffers of decode steps of ") and "\n" not in message
        assert f"{needed} requests ({flag})" in message
        found = re.search(rf"or {flag} up to (\d+)$", message)
        if found is not None:
            assert bytes_of(int(found[1])).device < device <= bytes_of(int(found[1]) + 1).device
        else:
            assert bytes_of(1).device >= device
        return
    requests = plan_requests(bytes_of, asked, captured, most, device)
    assert needed <= requests <= most
    if asked is not None:
        assert requests == needed
    elif requests > needed:
        share = int(device * DECODE_SHARE)
        assert bytes_of(requests).device <= share
        assert requests == most or bytes_of(requests + 1).device > share


def test_a_start_sets_memory_aside_for_decode_steps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shape = KVShape(layers=2, kv_heads=2, head_dim=64, dtype=torch.bfloat16, page_size=32)
    monkeypatch.setattr(sizing, "_plan", None)
    monkeypatch.setattr(sizing, "kv_shape", lambda configurator: shape)
    monkeypatch.setattr(sizing, "rank_dram", lambda nodes: 64 * GIB)

    class Buffers:
        captured, share = 8, 1 / 16

        def of(self, requests: int) -> DecodeBytes:
            return DecodeBytes(requests * 1024 * shape.page_bytes // 16, 0)

    def start(asked: int | None, buffers: Any) -> PoolPlan:
        arguments = SimpleNamespace(
            nnodes=1, max_total_tokens=None, max_running_requests=asked, enable_dp_attention=False
        )
        model = SimpleNamespace(context_len=1024)
        sizing.make_plan(
            SimpleNamespace(server_args=arguments, device="cuda", model_config=model),
            shape.staging_bytes(1024) + 8192 * shape.page_bytes,
            buffers,
        )
        plan = sizing.planned()
        assert plan is not None
        return plan

    whole = start(None, None)
    assert whole.requests is None
    less = start(32, Buffers())
    assert less.requests == 32
    used = [
        plan.frame_pages * shape.page_bytes + plan.host_pages * shape.table_bytes("subcentroids4")
        for plan in (whole, less)
    ]
    assert used[0] - used[1] == pytest.approx(32 * 1024 // 16 * shape.page_bytes, rel=0.01)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert start(None, Buffers()).requests == 8, (
            "a sixteenth, which is no more than the captured ones take"
        )
    assert "kept for decode steps of up to 8 requests" in caplog.text
    with pytest.raises(ConfigError, match=r"\(--max-running-requests\) take .*; allowed: .* up to 127$"):
        start(200, Buffers())


def test_without_a_gpu_what_requests_take_is_dram_that_pools_do_not_get(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shape = KVShape(layers=2, kv_heads=2, head_dim=64, dtype=torch.bfloat16, page_size=32)
    dram = 100_000 * shape.page_bytes
    monkeypatch.setattr(sizing, "_plan", None)
    monkeypatch.setattr(sizing, "kv_shape", lambda configurator: shape)
    monkeypatch.setattr(sizing, "rank_dram", lambda nodes: dram)

    class Corrections:
        captured, share = 0, 1 / 16

        def of(self, requests: int) -> DecodeBytes:
            return DecodeBytes(requests * 1000 * shape.page_bytes, 0)

    def start(asked: int | None, buffers: Any) -> PoolPlan:
        arguments = SimpleNamespace(
            nnodes=1, max_total_tokens=None, max_running_requests=asked, enable_dp_attention=False
        )
        sizing.make_plan(SimpleNamespace(server_args=arguments, device="cpu"), 0, buffers)
        plan = sizing.planned()
        assert plan is not None
        return plan

    whole, less = start(None, None), start(20, Corrections())
    assert whole.requests is None and less.requests == 20
    assert less.host_pages == pytest.approx(0.8 * whole.host_pages, rel=0.01)
    with caplog.at_level(logging.INFO):
        assert start(None, Corrections()).requests == 6, "a sixteenth of the DRAM"
    assert "GiB of DRAM and" in caplog.text
    with pytest.raises(ConfigError, match=r"GiB of available DRAM have no room .* up to 99$"):
        start(100, Corrections())


class Arguments(NamedTuple):
    max_running_requests: int | None


class Configurator(NamedTuple):
    server_args: Arguments


@pytest.mark.parametrize(
    ("planned", "requests", "expected"),
    [(None, 50, 50), (None, 300, 100), (40, 300, 40), (40, 30, 30), (200, 300, 100)],
)
def test_no_more_requests_run_than_have_frames_and_buffers(
    planned: int | None, requests: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizing, "_plan", PoolPlan(1000, 100, planned))
    assert sizing.running_limit(Configurator(Arguments(None)), requests) == expected
    if requests > 100:
        with pytest.raises(ConfigError, match=r"--max-running-requests=300 needs as many frames"):
            sizing.running_limit(Configurator(Arguments(300)), requests)
