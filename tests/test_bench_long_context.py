"""The long-context benchmark: its memory figures, its clock, and prefill that leaves prefixes out."""

from __future__ import annotations

import argparse
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.chunk_times import BEGINS, ChunkTimes
from benchmarks.device_memory import GIB, DeviceMemory
from benchmarks.kv_memory import memory_figures, pool_sizes
from benchmarks.local_prefill import local_while
from benchmarks.long_context import BUDGET_RATIO, CONFIG, goals, prompt_tokens, token_label
from common.qwen25_1m_shape import CONFIG as MODEL
from common.qwen25_1m_shape import KV
from rheo_sglang.config import RheoConfig
from rheo_sglang.pools.plan import plan_pools
from rheo_sglang.prefill import build_prefill_batch
from rheo_sglang.prefill.dense import torch_attention
from rheo_sglang.prefill.staging import HALVES, staged_capacity

MILLION = 1000000
FAR_MORE = 1 << 62


def line(tokens: int) -> str:
    return f"[2026-01-01 00:00:00] Prefill batch, #new-seq: 1, #new-token: {tokens}, #cached-token: 0, #queue-req: 0\n"


def test_the_kv_shape_is_the_models() -> None:
    assert KV.layers == MODEL["num_hidden_layers"]
    assert KV.kv_heads == MODEL["num_key_value_heads"]
    assert KV.head_dim * int(str(MODEL["num_attention_heads"])) == MODEL["hidden_size"]
    assert MILLION * KV.token_bytes == pytest.approx(57e9, rel=0.01)


def test_frames_are_a_quarter_more_than_what_is_selected_of_a_million_tokens() -> None:
    plan = plan_pools(RheoConfig.parse(json.dumps(CONFIG)), KV, FAR_MORE, FAR_MORE, MILLION, False)
    assert plan.host_pages == MILLION // KV.page_size
    assert plan.frame_pages / (plan.host_pages * BUDGET_RATIO) == pytest.approx(1.25, rel=0.01)


def test_pool_sizes_are_those_that_were_planned() -> None:
    plan = plan_pools(RheoConfig.parse(json.dumps(CONFIG)), KV, FAR_MORE, FAR_MORE, MILLION, False)
    rows = KV.layers * KV.kv_heads
    counters = {"pages_total": plan.host_pages, "frames_total": plan.frame_pages * rows}
    sizes = pool_sizes(KV, counters, MILLION, "bound")
    assert sizes["frames_gib"] == pytest.approx(4, rel=0.001)
    assert sizes["host_pool_gib"] * GIB == (plan.host_pages + 1) * KV.page_bytes
    assert sizes["page_table_and_summaries_gib"] * GIB == (plan.host_pages + 1) * rows * (2 * 128 * 2 + 16)
    for tokens in (8192, 500001, MILLION):
        staged = staged_capacity(tokens) * HALVES * KV.token_bytes // KV.layers
        assert staged <= sizes["staging_bound_gib"] * GIB


def test_what_a_long_prompt_takes_beyond_one_chunk_is_counted_as_kv() -> None:
    pools = {"frames_gib": 4.0, "page_table_and_summaries_gib": 1.0, "staging_bound_gib": 3.0}
    figures = memory_figures(pools, before=20 * GIB, one_chunk=22 * GIB, peak=24 * GIB)
    assert figures["taken_by_prefill_gib"] == 4
    assert figures["taken_beyond_one_chunk_gib"] == 2
    assert figures["peak_kv_hbm_gib"] == 7
    assert figures["promised_kv_hbm_gib"] == 8
    assert memory_figures(pools, 20 * GIB, 22 * GIB, 21 * GIB)["peak_kv_hbm_gib"] == 5


def test_a_peak_is_seen_between_two_looks() -> None:
    seen = threading.Event()
    values = [5, 9]

    def read() -> int:
        if len(values) > 1:
            return values.pop(0)
        seen.set()
        return values[0] if not dropped.is_set() else 6

    dropped = threading.Event()
    with DeviceMemory(read, period_s=0.001) as memory:
        assert seen.wait(10)
        dropped.set()
        assert memory.take_peak() == 9
        assert memory.take_peak() == 6


def test_the_clock_times_the_long_prompts_chunks_only() -> None:
    clock = ChunkTimes(20000)
    for now, text in [
        (1.0, line(8000)),
        (10.0, f"{BEGINS}: 20000 tokens\n"),
        (11.0, line(8192)),
        (11.5, "Decode batch, #running-req: 1, #token: 3\n"),
        (13.0, line(8192)),
        (16.0, line(3616)),
        (20.0, line(32)),
    ]:
        clock(text, now)
    assert clock.chunks == [(8192, 1.0), (8192, 2.0), (3616, 3.0)]


@pytest.mark.parametrize(
    ("tokens", "label"), [(524288, "512k"), (MILLION, "1m"), (131072, "128k"), (200001, "200001")]
)
def test_token_labels(tokens: int, label: str) -> None:
    assert token_label(tokens) == label


@pytest.mark.parametrize("text", ["100", "-1", "1e6", "1048576"])
def test_prompts_that_are_too_short_or_too_long_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="allowed: 16384 to 1047552 tokens"):
        prompt_tokens(text)
    assert prompt_tokens("1000000") == MILLION


def test_goals_are_read_from_what_was_measured() -> None:
    part: dict[str, Any] = {
        "prompt_tokens": MILLION,
        "peak_kv_hbm_gib": 8.0,
        "promised_kv_hbm_gib": 9.0,
        "attention_of_prefill": "dense",
    }
    metrics = {"shape": "Qwen2.5-7B-1M", "config": {}, "prefill_512k": part, "decode_1m": part}
    keys = goals(metrics)
    assert keys["peak_kv_hbm_gib_512k"] == 8.0
    assert keys["promised_kv_hbm_gib_512k"] == 9.0
    assert "max_context_served" not in keys
    metrics["decode_1m"] = {**part, "fitted": {"tpot_ms": 10.0}}
    keys = goals({**keys, **metrics})
    assert keys["tpot_ms_1m"] == 10.0
    assert keys["max_context_served"] == MILLION


@pytest.mark.parametrize("prefixes", [[64, 0], [32, 96], [0, 0]])
def test_chunks_attend_to_themselves_while_the_file_exists(tmp_path: Path, prefixes: list[int]) -> None:
    lengths, page_size = [40, 7], 32
    pages = torch.arange(1, 11, dtype=torch.int32).view(2, 5)
    batch = build_prefill_batch(pages, prefixes, lengths, page_size)
    tokens = batch.staged_tokens if any(prefixes) else sum(lengths)
    q = torch.randn(sum(lengths), 4, 16)
    k, v = torch.randn(2, tokens, 2, 16)
    switch = tmp_path / "switch"
    attend = local_while(switch, torch_attention)
    dense = torch_attention(q, k, v, batch, 0.25)
    assert torch.equal(attend(q, k, v, batch, 0.25), dense)
    switch.touch()
    alone = build_prefill_batch(pages, [0, 0], lengths, page_size)
    chunks = torch.cat(
        [torch.arange(prefix, prefix + length) for prefix, length in zip(prefixes, lengths, strict=True)]
    )
    chunks[lengths[0] :] += prefixes[0] + lengths[0]
    found = attend(q, k, v, batch, 0.25)
    torch.testing.assert_close(found, torch_attention(q, k[chunks], v[chunks], alone, 0.25))
    assert torch.equal(found, dense) == (not any(prefixes))
