"""`rheo report` of a real server that asks for an API key: every table, whatever clients call their requests."""

from __future__ import annotations

import json

import pytest
import torch

from rheo_sglang import server_info
from rheo_sglang.cli import main

PAGE, KEY = 32, "secret-key"
SPARSE = {
    "budget_ratio": 0.25,
    "budget_min_pages": 4,
    "dense_threshold": 0,
    "frame_pool_tokens": 1024,
    "recorder": "mass",
    "summary": "subcentroids4",
}
NAMES = ["[/x]", "[bold]x", "a[b]c", ":smile:"]


@pytest.fixture(scope="module")
def server(serve, smollm2):
    server = serve(
        smollm2, page_size=PAGE, rheo_config=SPARSE, max_running_requests=2, arguments=["--api-key", KEY]
    )
    server.session.headers["Authorization"] = f"Bearer {KEY}"
    return server


def tokens(length: int, seed: int) -> list[int]:
    return torch.randint(1000, 9000, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.newest
def test_the_report_of_a_server_that_asks_for_a_key(server, capsys, monkeypatch):
    for name in ("OPENAI_API_KEY", "API_KEY"):
        monkeypatch.delenv(name, raising=False)
    a = tokens(690, 1)
    for name, prompt in zip(NAMES, (a, a[:320] + tokens(100, 2), a, a[:40]), strict=True):
        server.generate(prompt, 4, ignore_eos=True, request={"rid": name})

    assert main(["report", "--url", server.base_url]) == server_info.NOT_ALLOWED
    assert main(["report", "--url", server.base_url, "--api-key", KEY]) == 0
    text = capsys.readouterr().out
    assert "as estimated by page summaries" in " ".join(text.split())
    assert all(name in text for name in NAMES)

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert main(["report", "--url", server.base_url, "--json"]) == 0
    (state,) = json.loads(capsys.readouterr().out)
    assert state["config"]["budget_ratio"] == 0.25
    assert [entry["rid"] for entry in state["recorder"]["requests"]] == NAMES
    long = state["recorder"]["requests"][0]
    assert 0.2 < long["selected_share"] < 0.35
    assert 0 < long["mass_covered"] <= 1
    assert -0.01 < long["estimated_coverage"] - long["mass_covered"] < 0.1, (
        "mean keys understate what is left out"
    )
    assert long["mass_not_finite"] == state["not_finite"] == 0
    longest, other = state["prefixes"]
    assert (longest["tokens"], longest["shared_tokens"]) == (672, 320)
    assert (other["tokens"], other["shared_tokens"]) == (416, 320)
    assert 0 < state["counters"]["frames_used"] <= state["counters"]["frames_total"]

    before = state["counters"]["total_summarised_tokens"]
    server.flush_cache()
    (state,) = server.server_info()["internal_states"]
    counters = state["rheo"]["counters"]
    assert counters["frames_used"] == counters["pages_resident"] == counters["pages_allocated"] == 0
    assert counters["total_summarised_tokens"] == before > 0
    assert state["rheo"]["prefixes"] == []
