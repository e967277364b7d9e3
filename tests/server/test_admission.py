"""Two ranks under thrash: requests pause and come back, both ranks decide alike, and every answer is the right one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

PAGE, PROMPT, ANSWER, REQUESTS = 16, 400, 300, 4
THRASHING = {
    "budget_ratio": 1.0,
    "frame_pool_tokens": 1024,
    "admission": "working_set",
    "admission_overcommit": 100.0,
    "thrash_hit_rate": 0.7,
}
"""Dense attention, so that what a request says does not depend on when it paused; a request's pages take half the
frames and more."""


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 256, (PROMPT,), generator=generator).tolist() for _ in range(REQUESTS)]


def test_requests_that_pause_say_what_they_say_alone(serve):
    server = serve("tiny-llama-group4", page_size=PAGE, rheo_config=THRASHING, ranks=2)
    alone = server.generate(prompts()[-1], ANSWER, ignore_eos=True)["output_ids"]
    before = server.counters()["total_summarised_tokens"]
    with ThreadPoolExecutor(REQUESTS) as pool:
        answers = list(pool.map(lambda prompt: server.generate(prompt, ANSWER, ignore_eos=True), prompts()))
    assert all(len(answer["output_ids"]) == ANSWER for answer in answers)
    assert answers[-1]["output_ids"] == alone
    counters = server.rheo_state()["admission"]["counters"]
    assert counters["pause"] >= counters["paused"] >= 2
    assert counters["resume"] >= 1
    assert counters["shrink"] == 0, "dense budgets shrank"
    described = server.counters()["total_summarised_tokens"] - before
    anew = described - REQUESTS * (PROMPT + ANSWER) + PROMPT // PAGE * PAGE
    assert anew <= REQUESTS + counters["paused"] * 2 * PAGE, "a request that paused was computed anew"
    log = server.log.read_text()
    assert log.count("Frames thrash: pause a request") == counters["pause"], "one rank writes it, once"
    server.flush_cache()
    assert server.counters()["frames_used"] == server.counters()["pages_allocated"] == 0
