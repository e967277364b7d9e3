"""What a real server tells operators: metrics that agree with /server_info, a line in the log, SGLang's own gauges."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from launch import RheoServer
from prometheus_client.parser import text_string_to_metric_families

from rheo_sglang.cli import main
from rheo_sglang.observability.catalogue import METRICS, PREFIX

PAGE, PROMPT, ANSWER, INTERVAL = 16, 400, 45, 10
SPARSE = {
    "budget_ratio": 0.25,
    "budget_min_pages": 4,
    "dense_threshold": 0,
    "frame_pool_tokens": 256,
    "admission": "working_set",
    "conservative": 0.5,
}
UNKNOWN = {"cpu_attention_threads", "cpu_attention_busy_seconds_total", "mass_covered"}
"""Not known here: nobody attends beside a GPU, and mass is not measured."""
SPARE_STEPS = 3
"""Decode steps of a health check, and one that SGLang begins before it knows that a request has ended."""
Values = dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def server(serve):
    interval = ["--decode-log-interval", str(INTERVAL)]
    server = serve(
        "tiny-llama-group4", page_size=PAGE, rheo_config=SPARSE, arguments=["--enable-metrics", *interval]
    )
    prompt = torch.randint(3, 256, (PROMPT,), generator=torch.Generator().manual_seed(1)).tolist()
    server.generate(prompt, ANSWER, ignore_eos=True)
    return server


def exported(server: RheoServer) -> tuple[Values, dict[str, str]]:
    """Values on /metrics by name and value of the metric's label, and what kind each family is; rheo's alone."""
    text = server.session.get(server.base_url + "/metrics", timeout=30).text
    values: Values = {}
    kinds = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix(PREFIX)
            if name == sample.name or name not in METRICS:
                continue
            kinds[name] = family.type
            assert {"model_name", "engine_type", "tp_rank", "pp_rank"} <= set(sample.labels)
            values.setdefault(name, {})[sample.labels.get(METRICS[name].label or "", "")] = sample.value
    return values, kinds


def of_server_info(metrics: Mapping[str, Any]) -> Values:
    """The same of /server_info."""
    known = {name: value for name, value in metrics.items() if value is not None}
    return {name: value if isinstance(value, dict) else {"": value} for name, value in known.items()}


def test_metrics_say_what_server_info_says(server):
    deadline = time.monotonic() + 60
    while True:
        told = of_server_info(server.rheo_state()["metrics"])
        values, kinds = exported(server)
        if values.get("decode_steps_total") == told["decode_steps_total"] or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert set(told) == set(METRICS) - UNKNOWN
    assert {name: pytest.approx(value) for name, value in told.items()} == values
    assert kinds == {name: METRICS[name].kind for name in values}


def test_what_is_counted_is_what_was_asked(server):
    state = server.rheo_state()
    metrics, counters = state["metrics"], state["counters"]
    overall = state["recorder"]["overall"]
    assert ANSWER - 1 <= metrics["decode_steps_total"] <= ANSWER - 1 + SPARE_STEPS
    assert metrics["decoded_tokens_total"] == metrics["decode_steps_total"], "one request at a time"
    assert metrics["summarised_tokens_total"] == counters["total_summarised_tokens"] >= PROMPT + ANSWER - 1
    assert metrics["samples_total"] == overall["samples"]
    assert metrics["hit_pages_total"] / metrics["selected_pages_total"] == pytest.approx(
        overall["page_hit_rate"], abs=1e-4
    )
    assert metrics["selected_pages_total"] / metrics["context_pages_total"] == pytest.approx(
        overall["selected_share"], abs=1e-4
    )
    missed = metrics["selected_pages_total"] - metrics["hit_pages_total"]
    assert metrics["missed_pages_total"] == {"fetch": 0, "cpu": missed}
    assert missed > 0, "nothing was missed: the test would show nothing"
    head_dim, floats = 64, 4
    assert metrics["missed_bytes_total"]["cpu"] == missed * 2 * PAGE * head_dim * floats
    assert metrics["frames_used"] == counters["frames_used"]
    assert metrics["frames_used"] + metrics["frames_free"] == counters["frames_total"]
    assert metrics["resident_pages"] == counters["pages_resident"]
    assert metrics["host_pages_used"] == counters["pages_allocated"]
    assert metrics["admission_events_total"]["admitted"] == 1


def test_the_log_has_a_line_for_each_interval(server):
    lines = [line for line in server.log.read_text().splitlines() if "Rheo decode, " in line]
    assert len(lines) == (ANSWER - 1) // INTERVAL
    for line in lines:
        steps = re.search(r"#step: (\d+), hit rate: 0\.\d{3}", line)
        assert steps is not None and INTERVAL <= int(steps[1]) <= INTERVAL + SPARE_STEPS, line
        assert "#missed-page: " in line and "frame usage: 1.00" in line


def test_sglang_says_what_memory_the_pools_take(server):
    info = server.server_info()
    (state,) = info["internal_states"]
    metrics = state["rheo"]["metrics"]
    pools = ("host_pool_bytes", "frame_pool_bytes", "page_table_bytes")
    expected = sum(metrics[name] for name in pools) / 2**30
    assert state["memory_usage"]["kvcache"] == pytest.approx(expected, abs=1e-3)
    text = server.session.get(server.base_url + "/metrics", timeout=30).text
    (gauge,) = [
        family
        for family in text_string_to_metric_families(text)
        if family.name == "sglang:kv_cache_memory_usage_gb"
    ]
    assert [sample.value for sample in gauge.samples] == [pytest.approx(expected)]


def test_top_shows_the_server_once(server, capsys):
    metrics = server.rheo_state()["metrics"]
    assert main(["top", "--once", "--url", server.base_url]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    rate = metrics["hit_pages_total"] / metrics["selected_pages_total"]
    frames = metrics["frames_used"] + metrics["frames_free"]
    for part in (
        f"{rate:.3f} of the selected pages",
        f"{metrics['frames_used']:,} of {frames:,} frames used",
        f"on the CPU {metrics['missed_pages_total']['cpu']:,.0f} pages",
        "admitted 1, refused 0, paused 0",
    ):
        assert part in text, part
