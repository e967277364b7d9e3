"""Both pools get what was asked for or a share of what is there, and never more than there is."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from rheo_kernels.types.kv_scales import EIGHT_BITS
from rheo_sglang.config import RheoConfig
from rheo_sglang.errors import ConfigError
from rheo_sglang.pools.plan import GIB, MOST_FRAMES, KVShape, PoolPlan, plan_pools
from rheo_sglang.selection import SUMMARIES

SHAPE = KVShape(layers=2, kv_heads=2, head_dim=64, dtype=torch.bfloat16, page_size=32)
PAGE = SHAPE.page_bytes


def plan(
    config: RheoConfig,
    device: float = 1000 * PAGE,
    dram: float = 100_000 * PAGE,
    tokens: int | None = None,
    in_dram: bool = False,
) -> PoolPlan:
    return plan_pools(config, SHAPE, int(device), int(dram), tokens, in_dram)


def refusal(config: RheoConfig, **room: float) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(config, **room)
    message = str(caught.value)
    assert message.startswith("rheo: ")
    assert "; allowed: " in message
    assert "\n" not in message
    return message


def test_a_page_holds_k_and_v_of_all_layers_and_heads() -> None:
    assert SHAPE.token_bytes == 2 * 2 * 2 * 64 * 2
    assert SHAPE.page_bytes == 32 * SHAPE.token_bytes
    assert SHAPE.table_bytes("bound") == 2 * 2 * (2 * 64 * 2 + 16)
    assert SHAPE.table_bytes("mean") == 2 * 2 * (64 * 2 + 16)


def test_eight_bits_halve_a_page_and_leave_summaries_and_staging_as_they_are() -> None:
    narrow = replace(SHAPE, dtype=EIGHT_BITS, compute_dtype=torch.bfloat16)
    assert narrow.page_bytes == SHAPE.page_bytes // 2
    for summary in SUMMARIES.names():
        assert narrow.table_bytes(summary) == SHAPE.table_bytes(summary)
    assert narrow.staging_bytes(1000) == SHAPE.staging_bytes(1000)
    config = RheoConfig(host_pool_gib=4000 * PAGE / GIB, frame_pool_gib=200 * PAGE / GIB)
    assert plan_pools(config, narrow, 1000 * PAGE, 100_000 * PAGE, None, False) == PoolPlan(8000, 400)


def test_sizes_that_were_asked_for_are_given() -> None:
    config = RheoConfig(host_pool_gib=4000 * PAGE / GIB, frame_pool_gib=200 * PAGE / GIB)
    assert plan(config) == PoolPlan(4000, 200)


def test_frames_in_tokens_round_down_to_pages() -> None:
    assert plan(RheoConfig(frame_pool_tokens=33 * 32 + 31)) == PoolPlan(33 * 8, 33)


@pytest.mark.parametrize(("ratio", "expected"), [(None, 800), (3.0, 300), (2.5, 250)])
def test_the_host_pool_is_a_multiple_of_the_frames(ratio: float | None, expected: int) -> None:
    assert plan(RheoConfig(frame_pool_tokens=3200, host_pool_ratio=ratio)) == PoolPlan(expected, 100)


@pytest.mark.parametrize("ratio", [None, 1.0, 4.0, 50.0])
def test_without_frames_asked_for_the_device_is_filled_with_frames_and_the_page_table(
    ratio: float | None,
) -> None:
    found = plan(RheoConfig(host_pool_ratio=ratio))
    used = found.frame_pages * PAGE + found.host_pages * SHAPE.table_bytes("subcentroids4")
    assert 1000 * PAGE - PAGE <= used <= 1000 * PAGE
    assert found.host_pages / found.frame_pages == pytest.approx(ratio or 8, rel=0.02)


@pytest.mark.parametrize("ratio", [None, 1.0, 4.0])
def test_on_a_cpu_both_pools_share_the_available_dram(ratio: float | None) -> None:
    found = plan(RheoConfig(host_pool_ratio=ratio), dram=10_000 * PAGE, in_dram=True)
    assert found.host_pages / found.frame_pages == pytest.approx(ratio or 8, rel=0.02)
    assert 0.7 * 10_000 <= found.host_pages + found.frame_pages <= 0.8 * 10_000


def test_max_total_tokens_is_the_host_pool_where_its_size_is_not_given() -> None:
    assert plan(RheoConfig(frame_pool_tokens=3200), tokens=6400 + 31) == PoolPlan(200, 100)
    assert plan(RheoConfig(), tokens=6400, in_dram=True) == PoolPlan(200, 25)


@pytest.mark.parametrize(
    "config", [RheoConfig(host_pool_gib=900 * PAGE / GIB), RheoConfig(host_pool_ratio=2)]
)
def test_max_total_tokens_only_caps_a_host_pool_that_was_asked_for(config: RheoConfig) -> None:
    uncapped = plan(config, in_dram=True)
    assert plan(config, tokens=10**9, in_dram=True) == uncapped
    assert plan(config, tokens=100 * 32, in_dram=True).host_pages == 100


def test_a_host_pool_that_was_asked_for_must_fit() -> None:
    for config in (
        RheoConfig(host_pool_gib=4000 * PAGE / GIB, frame_pool_tokens=320),
        RheoConfig(host_pool_ratio=400, frame_pool_tokens=320),
    ):
        message = refusal(config, dram=3999 * PAGE)
        assert "does not fit into the available DRAM" in message
        assert plan(config, dram=4000 * PAGE).host_pages == 4000


def test_frames_of_a_cpu_count_against_the_same_dram() -> None:
    config = RheoConfig(host_pool_gib=900 * PAGE / GIB, frame_pool_tokens=200 * 32)
    assert plan(config, dram=1100 * PAGE, in_dram=True) == PoolPlan(900, 200)
    assert "does not fit" in refusal(config, dram=1099 * PAGE, in_dram=True)
    assert plan(config, dram=1099 * PAGE) == PoolPlan(900, 200)


@pytest.mark.parametrize("dram", [1000, 999, 600, 501])
def test_a_derived_host_pool_leaves_a_fifth_of_the_dram(dram: int, caplog: pytest.LogCaptureFixture) -> None:
    """Also where the whole of it would just fit."""
    found = plan(RheoConfig(frame_pool_tokens=62 * SHAPE.page_size), dram=dram * PAGE)
    assert found.host_pages == min(62 * 8, dram * 4 // 5)
    assert ("is cut to" in caplog.text) == (dram * 4 // 5 < 62 * 8)


def test_a_derived_host_pool_is_cut_to_the_dram_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = plan(RheoConfig(), dram=1000 * PAGE)
    assert found.host_pages == 800
    assert found.frame_pages == 800, "the page table of 800 pages leaves the device room for all of them"
    assert "host_pool_gib" in caplog.text


def test_frames_and_page_table_must_fit_the_device() -> None:
    message = refusal(RheoConfig(frame_pool_gib=1000 * PAGE / GIB))
    assert "do not fit into" in message
    assert "--mem-fraction-static" in message


def test_a_page_table_alone_that_exceeds_the_device_is_refused() -> None:
    message = refusal(RheoConfig(host_pool_gib=90_000 * PAGE / GIB))
    assert "a smaller frame_pool_gib or host_pool_gib" in message


def test_a_host_pool_smaller_than_the_frames_is_refused() -> None:
    config = RheoConfig(frame_pool_tokens=3200)
    message = refusal(config, tokens=3199)
    assert "frame_pool_tokens=3200 is more than --max-total-tokens=3199" in message
    assert "allowed: frames for up to 3168 tokens, or --max-total-tokens of at least 3200" in message
    assert plan(config, tokens=3200) == PoolPlan(100, 100)


SIZES: list[tuple[dict[str, float], dict[str, float], str, str]] = [
    ({"host_pool_gib": 1e-9}, {"in_dram": True}, "host_pool_gib=1e-09", "at least"),
    ({"host_pool_gib": PAGE / GIB}, {"in_dram": True}, f"host_pool_gib={PAGE / GIB!r}", "at least"),
    ({"host_pool_gib": 5000}, {"dram": GIB, "device": 10 * GIB}, "host_pool_gib=5000.0", "up to"),
    ({"host_pool_gib": 5000}, {"dram": GIB, "in_dram": True}, "host_pool_gib=5000.0", "up to"),
    (
        {"host_pool_gib": 1, "frame_pool_tokens": 32 * (2**15 + 1)},
        {"in_dram": True},
        "host_pool_gib=1.0",
        "at least",
    ),
    ({"frame_pool_tokens": 16}, {}, "frame_pool_tokens=16", "at least"),
    ({"frame_pool_tokens": 31}, {"in_dram": True}, "frame_pool_tokens=31", "at least"),
    ({"frame_pool_gib": 1e-9}, {}, "frame_pool_gib=1e-09", "at least"),
    (
        {"host_pool_ratio": 999, "frame_pool_tokens": 3200},
        {"dram": GIB, "device": 10 * GIB},
        "host_pool_ratio=999.0",
        "up to",
    ),
]


@pytest.mark.parametrize(("values", "room", "named", "bound"), SIZES, ids=[case[2] for case in SIZES])
def test_a_size_that_does_not_fit_is_named_with_the_nearest_that_does(
    values: dict[str, Any], room: dict[str, Any], named: str, bound: str
) -> None:
    message = refusal(RheoConfig(**values), **room)
    assert named in message
    found = re.search(rf"allowed: {bound} ([0-9.e+-]+)", message)
    assert found is not None, message
    nearest = float(found[1])
    (key,) = [key for key in values if named.startswith(key)]
    fits: Any = int(nearest) if key == "frame_pool_tokens" else nearest
    plan(RheoConfig(**{**values, key: fits}), **room)


@pytest.mark.parametrize("tokens", [0, 31, 32, 63])
def test_fewer_tokens_than_a_request_takes_are_refused(tokens: int) -> None:
    message = refusal(RheoConfig(), tokens=tokens, in_dram=True)
    assert f"--max-total-tokens={tokens} is not supported; allowed: at least 64" in message
    assert plan(RheoConfig(), tokens=64, in_dram=True).host_pages == 2


def test_memory_without_room_for_a_request_is_refused() -> None:
    assert "the host pool has room for 0 pages" in refusal(RheoConfig(), dram=PAGE, in_dram=True)
    assert "the host pool has room for" in refusal(RheoConfig(), dram=PAGE // 2)
    assert "no frame of" in refusal(RheoConfig(), device=PAGE // 2)


def test_a_device_that_the_page_table_fills_has_no_frame() -> None:
    host = 10 * PAGE // SHAPE.table_bytes("bound")
    message = refusal(RheoConfig(host_pool_gib=(host + 1) * PAGE / GIB), device=10 * PAGE)
    assert "--mem-fraction-static" in message


@given(
    frames=st.one_of(st.none(), st.integers(1, 3000)),
    host=st.one_of(st.none(), st.integers(1, 12_000)),
    ratio=st.one_of(st.none(), st.floats(1, 100)),
    device=st.integers(0, 4000),
    dram=st.integers(1, 20_000),
    tokens=st.one_of(st.none(), st.integers(1, 500_000)),
    in_dram=st.booleans(),
)
def test_a_plan_is_refused_or_fits(
    frames: int | None,
    host: int | None,
    ratio: float | None,
    device: int,
    dram: int,
    tokens: int | None,
    in_dram: bool,
) -> None:
    config = RheoConfig(
        frame_pool_tokens=None if frames is None else frames * 32,
        host_pool_gib=None if host is None else host * PAGE / GIB,
        host_pool_ratio=None if host is not None else ratio,
    )
    try:
        found = plan(config, device * PAGE, dram * PAGE, tokens, in_dram)
    except ConfigError:
        return
    assert found.host_pages >= found.frame_pages >= 1
    assert frames is None or found.frame_pages == frames
    assert tokens is None or found.host_pages <= max(tokens // 32, 1)
    if in_dram:
        least = int(frames is None)
        assert found.host_pages + found.frame_pages <= dram + least, (
            "a derived frame pool is one frame or more"
        )
    else:
        table = found.host_pages * SHAPE.table_bytes("bound")
        assert found.host_pages <= dram
        assert found.frame_pages * PAGE + table <= device * PAGE


def test_staging_holds_two_layers_of_a_prefix_and_a_quarter_more() -> None:
    two_layers = 2 * SHAPE.token_bytes // SHAPE.layers
    assert SHAPE.staging_bytes(1000) == 1000 * two_layers * 5 // 4


def test_a_gpu_gets_no_more_frames_than_its_kernels_can_count() -> None:
    room = {"device": 10 * MOST_FRAMES * PAGE, "dram": 100 * MOST_FRAMES * PAGE}
    assert plan(RheoConfig(), **room).frame_pages == MOST_FRAMES
    asked = RheoConfig(frame_pool_tokens=(MOST_FRAMES + 1) * SHAPE.page_size, host_pool_ratio=2)
    assert str(MOST_FRAMES * SHAPE.page_size) in refusal(asked, **room)
    assert plan(asked, **room, in_dram=True).frame_pages == MOST_FRAMES + 1


@pytest.mark.parametrize("summary", ["bound", "mean"])
def test_corrections_need_estimates(summary: str) -> None:
    message = refusal(RheoConfig(calibrate=True, summary=summary))
    assert "calibrate=True" in message
    assert "false, or a summary that estimates attention" in message
    assert plan(RheoConfig(calibrate=True)).frame_pages > 0


@pytest.mark.parametrize("summary", ["bound", "mean"])
def test_a_bonus_needs_scores_that_are_shares(summary: str) -> None:
    message = refusal(RheoConfig(residency_bonus=0.5, summary=summary))
    assert "residency_bonus=0.5" in message
    assert "0, or a summary that estimates attention" in message
    assert plan(RheoConfig(residency_bonus=0.5)).frame_pages > 0


def test_a_summary_without_kernels_serves_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class TorchOnly(SUMMARIES["mean"]):  # type: ignore[misc]
        name = "torch_only"
        kernels = None

    monkeypatch.setitem(SUMMARIES._classes, TorchOnly.name, TorchOnly)
    config = RheoConfig(summary="torch_only", frame_pool_tokens=64 * SHAPE.page_size)
    assert "torch_only has no kernels for a GPU" in refusal(config)
    assert plan(config, in_dram=True).frame_pages == 64
