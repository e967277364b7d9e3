"""Sharing, overload, aborts and limits on a server: nothing is lost, nothing leaks, nobody is harmed."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import pytest
import requests
import torch

from environment.create import SGLANG_VERSIONS

PAGE = 16
POOL_TOKENS = 6144
CONTEXT = 4096
VOCABULARY = 256
SPARSE = {
    "budget_ratio": 0.25,
    "budget_min_pages": 4,
    "dense_threshold": 0,
    "frame_pool_tokens": 1024,
    "request_budget_ratio": 0.5,
    "request_limit_ratio": 0.75,
    "conservative_margin": 0,
}


RANKS = {1: "alone", 2: "two ranks"}
FIRST = 2 if version("sglang") == SGLANG_VERSIONS[-1] else 1
"""Ranks with this SGLang; with the other number only in full runs."""


@pytest.fixture(
    scope="module", params=[FIRST, pytest.param(3 - FIRST, marks=pytest.mark.full)], ids=RANKS.__getitem__
)
def server(serve, request):
    return serve(
        "tiny-llama-group4",
        page_size=PAGE,
        rheo_config=SPARSE,
        max_running_requests=16,
        ranks=request.param,
        arguments=[
            *("--max-total-tokens", str(POOL_TOKENS), "--context-length", str(CONTEXT)),
            *("--chat-template", "chatml"),
        ],
    )


def tokens(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()


def decode_steps(new_tokens: int) -> tuple[int, int]:
    """Steps that a request may take: prefill gives the first token, and the overlap scheduler may run one in vain."""
    return new_tokens - 1, new_tokens


def nothing_is_left(server) -> None:
    server.flush_cache()
    counters = server.counters()
    used = (
        "frames_used",
        "pages_resident",
        "pages_unsaved",
        "pages_summarised",
        "pages_important",
        "pages_allocated",
    )
    assert {name: counters[name] for name in used} == dict.fromkeys(used, 0)


def alone(server, prompt: list[int], new_tokens: int) -> list[int]:
    server.flush_cache()
    return server.generate(prompt, new_tokens, ignore_eos=True)["output_ids"]


def test_a_shared_prefix_is_neither_recomputed_nor_described_again(server):
    shared, first, second = tokens(1000, 1), tokens(100, 2), tokens(60, 3)
    server.generate(shared + first, 8, ignore_eos=True)
    before = server.counters()["total_summarised_tokens"]
    answer = server.generate(shared + second, 8, ignore_eos=True)
    cached = 1000 // PAGE * PAGE
    assert answer["meta_info"]["cached_tokens"] == cached
    described = server.counters()["total_summarised_tokens"] - before - len(shared + second) + cached
    assert described in decode_steps(8)
    assert answer["output_ids"] == alone(server, shared + second, 8)
    nothing_is_left(server)


def test_a_client_that_leaves_midway_frees_its_pages_and_harms_nobody(server):
    leaving, staying = tokens(700, 4), tokens(500, 5)
    expected = alone(server, staying, 48)
    with ThreadPoolExecutor() as pool:
        neighbour = pool.submit(server.generate, staying, 48, ignore_eos=True)
        for events, _ in enumerate(server.stream(leaving, 2000, ignore_eos=True)):
            if events == 3:
                break
        assert neighbour.result()["output_ids"] == expected
    deadline = time.monotonic() + 30
    while server.counters()["pages_unsaved"] and time.monotonic() < deadline:
        time.sleep(0.2)
    assert server.counters()["pages_unsaved"] == 0
    nothing_is_left(server)


def test_more_requests_than_the_host_pool_holds_wait_and_are_answered_right(server):
    prompts = [tokens(1500, 10 + number) for number in range(8)]
    assert sum(map(len, prompts)) > POOL_TOKENS
    expected = [alone(server, prompt, 40) for prompt in prompts]
    server.flush_cache()
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda prompt: server.generate(prompt, 40, ignore_eos=True), prompts))
    assert [answer["output_ids"] for answer in answers] == expected
    nothing_is_left(server)


def test_sixty_four_short_requests_at_once_are_all_answered(server):
    prompts = [tokens(20 + number, 100 + number) for number in range(64)]
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda prompt: server.generate(prompt, 12, ignore_eos=True), prompts))
    for number in (0, 31, 63):
        assert answers[number]["output_ids"] == alone(server, prompts[number], 12)
    nothing_is_left(server)


@pytest.mark.parametrize("length", [CONTEXT + 1, POOL_TOKENS + 500])
def test_a_prompt_past_the_limit_is_refused_while_others_go_on(server, length):
    running = tokens(300, 6)
    expected = alone(server, running, 32)
    results: list[list[int]] = []
    neighbour = threading.Thread(
        target=lambda: results.append(server.generate(running, 32, ignore_eos=True)["output_ids"])
    )
    neighbour.start()
    with pytest.raises(requests.HTTPError, match=r"(?i)longer|exceed|length"):
        server.generate(tokens(length, 7), 4)
    neighbour.join()
    assert results == [expected]
    nothing_is_left(server)


def test_a_prompt_without_tokens_or_with_unknown_ones_is_refused_while_others_go_on(server):
    running = tokens(300, 8)
    expected = alone(server, running, 32)
    with ThreadPoolExecutor(1) as pool:
        neighbour = pool.submit(server.generate, running, 32, ignore_eos=True)
        for body in ({"text": ""}, {"text": ["", ""]}, {"text": "", "stream": True}):
            answer = requests.post(f"{server.base_url}/generate", json=body, timeout=60)
            assert "the prompt has 0 tokens" in answer.text or "texts cannot be empty" in answer.text
            assert answer.status_code == 400 or "stream" in body
        for token in (10**6, -5):
            answer = requests.post(f"{server.base_url}/generate", json={"input_ids": [5, token]}, timeout=60)
            assert f"the prompt has token {token}, which the model does not have" in answer.text
            assert answer.status_code == 400
        assert neighbour.result()["output_ids"] == expected
    nothing_is_left(server)


def share_selected(length: int, steps: int, ratio: float) -> float:
    """Share of its context that a request selects over its steps, by the definition."""
    pages = [-(-(length + step + 1) // PAGE) for step in range(steps)]
    return round(sum(math.ceil(ratio * count) for count in pages) / sum(pages), 4)


def refusals(server, settings: dict[str, Any]) -> list[requests.Response]:
    """What a request with these settings is answered on every route, streamed or not, alone or beside a good one."""
    parameters = {"custom_params": {"rheo": settings}}
    sampling = {"max_new_tokens": 4, **parameters}
    completion = {"model": "default", "max_tokens": 4, **parameters}
    prompt, other = tokens(40, 30), tokens(50, 31)
    bodies = [
        ("/generate", {"input_ids": prompt, "sampling_params": sampling}),
        ("/generate", {"input_ids": [other, prompt], "sampling_params": [{"max_new_tokens": 4}, sampling]}),
        ("/v1/completions", {"prompt": prompt, **completion}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}], **completion}),
    ]
    return [
        requests.post(server.base_url + route, json={**body, "stream": stream}, timeout=60)
        for route, body in bodies
        for stream in (False, True)
    ]


def test_requests_select_by_their_own_budgets_and_a_bad_one_harms_nobody(server):
    prompts = {0.1: tokens(1290, 20), 0.5: tokens(1410, 21), SPARSE["budget_ratio"]: tokens(900, 22)}
    asked = {0.1: {"budget_ratio": 0.1}, 0.5: {"budget_ratio": 0.5, "budget_min_pages": 1}, 0.25: None}

    def answer(ratio: float) -> dict[str, Any]:
        parameters = {"rheo": asked[ratio], "another": 1}
        return server.generate(prompts[ratio], 40, ignore_eos=True, custom_params=parameters)

    expected = {}
    for ratio in prompts:
        server.flush_cache()
        expected[ratio] = answer(ratio)["output_ids"]
    server.flush_cache()
    with ThreadPoolExecutor(len(prompts)) as pool:
        running = {ratio: pool.submit(answer, ratio) for ratio in prompts}
        refused = refusals(server, {"budget_ratio": 0.51})
        answers = {ratio: future.result() for ratio, future in running.items()}
    for response in refused:
        assert response.status_code == 400, response.url
        sentence = "custom_params.rheo: budget_ratio=0.51 is not supported; allowed: above 0, at most 0.5"
        assert sentence in response.text, response.url
    assert {ratio: found["output_ids"] for ratio, found in answers.items()} == expected
    reported = {entry["rid"]: entry for entry in server.rheo_state()["recorder"]["requests"]}
    for ratio, found in answers.items():
        entry = reported[found["meta_info"]["id"]]
        assert entry["selected_share"] == share_selected(len(prompts[ratio]), entry["iterations"], ratio)
    nothing_is_left(server)


def test_requests_of_one_batch_have_floors_and_modes_of_their_own(server):
    """A floor of 1 takes all that the limit allows, so what is selected is known."""
    asked: list[tuple[dict[str, Any] | None, float]] = [
        (None, SPARSE["budget_ratio"]),
        ({"conservative": 1}, 0.75),
        ({"budget_coverage": 1, "budget_limit_ratio": 0.5}, 0.5),
        ({"conservative": "off", "budget_ratio": 0.1}, 0.1),
        ({"conservative": "on"}, math.nan),
        ({"conservative_margin": 1e9, "budget_limit_ratio": 0.5}, 0.5),
        ({"conservative_margin": 0, "budget_limit_ratio": 0.5}, SPARSE["budget_ratio"]),
    ]
    prompts = [tokens(1300 + 30 * number, 40 + number) for number in range(len(asked))]

    def answer(number: int) -> dict[str, Any]:
        parameters = {"rheo": asked[number][0]}
        return server.generate(prompts[number], 30, ignore_eos=True, custom_params=parameters)

    expected = []
    for number in range(len(asked)):
        server.flush_cache()
        expected.append(answer(number)["output_ids"])
    server.flush_cache()
    with ThreadPoolExecutor(len(asked)) as pool:
        running = [pool.submit(answer, number) for number in range(len(asked))]
        bad = [
            {"conservative": 1.5},
            {"budget_coverage": 0},
            {"budget_coverage": 0.9, "budget_limit_ratio": 0.8},
        ]
        refused = [refusals(server, settings) for settings in bad]
        answers = [future.result() for future in running]
    sentences = (
        "custom_params.rheo: conservative=1.5 is not supported; allowed: above 0, at most 1",
        "custom_params.rheo: budget_coverage=0.0 is not supported; allowed: above 0, at most 1",
        "custom_params.rheo: budget_limit_ratio=0.8 is not supported; allowed: above 0, at most 0.75 on this server",
    )
    for sentence, responses in zip(sentences, refused, strict=True):
        for response in responses:
            assert response.status_code == 400, response.url
            assert sentence in response.text, response.url
    assert [found["output_ids"] for found in answers] == expected
    reported = {entry["rid"]: entry for entry in server.rheo_state()["recorder"]["requests"]}
    entries = [reported[found["meta_info"]["id"]] for found in answers]
    for (settings, ratio), entry, prompt in zip(asked, entries, prompts, strict=True):
        least, most = (share_selected(len(prompt), entry["iterations"], share) for share in (0.25, 0.75))
        if settings == {"conservative": "on"}:
            assert least < entry["selected_share"] <= most
        else:
            assert entry["selected_share"] == share_selected(len(prompt), entry["iterations"], ratio)
    assert [entry["grown_share"] > 0 for entry in entries] == [False, True, True, False, True, True, False]
    nothing_is_left(server)


def test_the_recorder_reports_every_request(server):
    answer = server.generate(tokens(800, 8), 21, ignore_eos=True)
    report = server.rheo_state()["recorder"]
    (entry,) = [entry for entry in report["requests"] if entry["rid"] == answer["meta_info"]["id"]]
    layers, heads = len(entry["per_layer"]), len(entry["per_head"])
    assert entry["iterations"] in decode_steps(21)
    assert entry["samples"] == layers * heads * entry["iterations"]
    assert 0 < entry["hit_rate"] <= 1
    assert report["overall"]["samples"] >= entry["samples"]
    nothing_is_left(server)


def test_cached_prefixes_are_described_through_the_tree(server):
    server.flush_cache()
    server.generate(tokens(640, 9), 4, ignore_eos=True)
    (prefix,) = server.rheo_state()["prefixes"]
    assert prefix["tokens"] == 640
    assert 0 < prefix["importance"] <= 1
    assert 0 < prefix["resident"] <= 1
    assert not prefix["locked"]
    nothing_is_left(server)
