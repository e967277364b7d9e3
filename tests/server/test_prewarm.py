"""Pre-warming through a server: a follow-up hits what, by its trace, it would miss without."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from rheo_sglang.decode.reference_engine import RUNNERS_UP
from rheo_sglang.evaluation.haystack import documentation_text
from rheo_sglang.replay.compact import compact
from rheo_sglang.replay.sweep import Case, Outcome, replay
from rheo_sglang.traces import Trace
from rheo_sglang.traces.writer import PART_SECONDS

PAGE, FRAMES, ALPHA = 16, 16, 0.3
CONFIG = {
    "budget_ratio": 0.1,
    "budget_min_pages": 1,
    "dense_threshold": 0,
    "frame_pool_tokens": FRAMES * PAGE,
}
TURNS = (3000, 1200, 1200)
"""Characters of text that each turn adds."""
ANSWER = 3


@pytest.fixture(scope="module")
def trace(serve, smollm2, tmp_path_factory) -> tuple[Trace, dict]:
    folder: Path = tmp_path_factory.mktemp("traces") / "trace"
    config = CONFIG | {"trace": str(folder)}
    server = serve(smollm2, page_size=PAGE, rheo_config=config, max_running_requests=1)
    text, start, history = documentation_text(held_out=True), 0, ""
    for turn, length in enumerate(TURNS):
        history += text[start : start + length]
        start += length
        answer = server.generate(history, ANSWER, ignore_eos=True, request={"rid": f"turn-{turn}"})
        history += answer["text"]
        assert turn == 0 or answer["meta_info"]["cached_tokens"] > 500, "the turn found no prefix"
    time.sleep(PART_SECONDS + 2)
    report = server.rheo_state()["recorder"]
    return Trace(folder), {entry["rid"]: entry for entry in report["requests"]}


def hits(outcome: Outcome, request: str) -> float:
    place = outcome.requests.index(request)
    return outcome.hits[place].sum() / outcome.selected[place].sum()


@pytest.mark.newest
def test_follow_ups_hit_what_they_would_miss_without_prewarming(trace):
    found, report = trace
    run = compact(found)
    assert run.prewarm > 0, "pre-warming is on unless it is turned off"
    served, without = (
        replay(run, Case("importance", None, RUNNERS_UP, None, weight), FRAMES, ALPHA)
        for weight in (None, 0.0)
    )
    for turn in range(len(TURNS)):
        name = f"turn-{turn}"
        assert report[name]["page_hit_rate"] == pytest.approx(hits(served, name), abs=5.1e-5)
    for name in ("turn-1", "turn-2"):
        assert hits(served, name) > hits(without, name) + 0.02
