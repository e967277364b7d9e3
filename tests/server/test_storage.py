"""Prefixes in storage survive a flush, a restart and kill -9 amid writes, and no answer is another than computed."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import torch

from rheo_sglang.prefill.seed import SEED_QUERIES

PAGE = 16
VOCABULARY = 256
NEW_TOKENS = 24
KILLED = 4
"""Prompts in the server when it is killed: pages of the last are computed long after those of the first are written."""
TORN = 6
ROUNDS = TORN + 1
"""Reading a prefix ends at its first torn page, so that each round finds, and replaces, one at least."""
SPARSE = {"budget_ratio": 0.25, "budget_min_pages": 4, "dense_threshold": 0, "frame_pool_tokens": 1024}
FOLDER = "SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR"


def tokens(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()


@pytest.fixture(scope="module")
def start(serve, tmp_path_factory):
    """A folder, and a function that gives the server on it, started where none runs."""
    folder = tmp_path_factory.mktemp("pages")
    servers: list[Any] = []

    def begin() -> Any:
        if not servers or not servers[-1].running:
            server = serve(
                "tiny-llama-group4",
                page_size=PAGE,
                rheo_config=SPARSE,
                environment={FOLDER: str(folder)},
                arguments=[
                    *("--max-total-tokens", "65536", "--context-length", "4096"),
                    *("--hicache-storage-backend", "file"),
                    *("--hicache-storage-prefetch-policy", "wait_complete"),
                    *("--hicache-storage-backend-extra-config", json.dumps({"max_size": "1Gi"})),
                ],
            )
            servers.append(server)
        return servers[-1]

    return folder, begin


def answer(server: Any, prompt: list[int]) -> tuple[list[int], int]:
    """Tokens of an answer, and how many of the prompt's were cached."""
    found = server.generate(prompt, NEW_TOKENS, ignore_eos=True)
    return found["output_ids"], found["meta_info"]["cached_tokens"]


def storage(server: Any) -> dict[str, Any]:
    return server.rheo_state()["storage"]


def written(server: Any) -> dict[str, Any]:
    """The storage's counters, once nothing waits to be written."""
    deadline = time.monotonic() + 120
    while storage(server)["pages_pending"] and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    return storage(server)


def whole_pages(prompt: list[int]) -> int:
    """Tokens of a prompt that are written."""
    return (len(prompt) - 1) // PAGE * PAGE


def found_pages(prompt: list[int]) -> int:
    """Tokens of a prompt that can be found: estimates are corrected by the last ones, which are computed for that."""
    return (len(prompt) - SEED_QUERIES) // PAGE * PAGE


def damage(folder: Path, count: int) -> None:
    """Tear some pages, as a power failure may: half of a file, no byte of it, or blocks that were never written."""
    for number, path in enumerate(sorted(folder.glob("*.bin"))[::7][:count]):
        size = path.stat().st_size
        if number % 3 < 2:
            os.truncate(path, (number % 3) * size // 2)
        else:
            path.write_bytes(path.read_bytes()[: size // 2] + bytes(size - size // 2))


def test_prefixes_come_back_after_a_flush_and_after_kill_9_amid_writes(start):
    folder, begin = start
    server = begin()
    prompts = [tokens(1000 + 37 * number, number) for number in range(6)]
    fresh = [answer(server, prompt) for prompt in prompts]
    assert [cached for _, cached in fresh] == [0] * len(prompts)
    state = written(server)
    assert state["pages_written"] == state["pages_offered"] - state["pages_already_stored"] > 0
    assert state["pages_dropped"] == state["write_errors"] == state["read_errors"] == 0
    assert len(list(folder.glob("*.bin"))) == state["pages_written"]

    server.flush_cache()
    with ThreadPoolExecutor(len(prompts)) as pool:
        again = list(pool.map(lambda prompt: answer(server, prompt), prompts))
    assert [ids for ids, _ in again] == [ids for ids, _ in fresh]
    assert [cached for _, cached in again] == [found_pages(prompt) for prompt in prompts]
    state = storage(server)
    assert state["pages_restored"] == sum(map(found_pages, prompts)) // PAGE
    assert state["prefixes_found"] == len(prompts)
    assert state["pages_corrupt"] == state["pages_missing"] == state["read_errors"] == 0
    server.flush_cache()
    counters = server.counters()
    assert counters["pages_allocated"] == counters["pages_summarised"] == counters["pages_important"] == 0

    late = [tokens(3000 + 11 * number, 100 + number) for number in range(KILLED + 2)]
    done, killed = late[:2], late[2:]
    expected = [answer(server, prompt)[0] for prompt in done]
    written(server)
    before = len(os.listdir(folder))
    with ThreadPoolExecutor(KILLED) as pool:
        running = [pool.submit(server.generate, prompt, 1000, ignore_eos=True) for prompt in killed]
        while len(os.listdir(folder)) < before + 20:
            time.sleep(0.001)
        os.killpg(server.process.pid, signal.SIGKILL)
        for request in running:
            with pytest.raises(requests.RequestException):
                request.result()
    server.stop()
    assert len(list(folder.glob("*.bin"))) < before + sum(map(whole_pages, killed)) // PAGE, (
        "nothing was left to write"
    )
    damage(folder, TORN)

    server = begin()
    asked = [*prompts, *late]
    found = [answer(server, prompt) for prompt in asked]
    assert [ids for ids, _ in found[:-KILLED]] == [*(ids for ids, _ in fresh), *expected]
    restored = sum(cached for _, cached in found[-KILLED:])
    assert 0 < restored < sum(map(found_pages, killed)), "a part of the prefixes was written"
    assert all(cached % PAGE == 0 for _, cached in found)
    state = written(server)
    assert state["pages_restored"] == sum(cached for _, cached in found) // PAGE > 0
    assert state["pages_corrupt"] + state["read_errors"] > 0, "no torn page was met"

    for _ in range(ROUNDS):
        server.flush_cache()
        repaired = [answer(server, prompt) for prompt in asked]
        assert [ids for ids, _ in repaired] == [ids for ids, _ in found]
        if all(cached == found_pages(prompt) for prompt, (_, cached) in zip(asked, repaired, strict=True)):
            break
        written(server)
    else:
        pytest.fail("torn pages are not replaced")


def test_a_client_that_leaves_while_its_prefix_is_read_harms_nobody(start):
    _, begin = start
    server = begin()
    prompt = tokens(1000, 0)
    expected, _ = answer(server, prompt)
    for pause in (0.0, 0.005, 0.02, 0.05):
        server.flush_cache()
        with pytest.raises(requests.Timeout):
            server.generate(prompt, 2000, timeout=0.05 + pause, ignore_eos=True)
        assert answer(server, prompt)[0] == expected
    server.flush_cache()
    counters = server.counters()
    assert counters["pages_allocated"] == counters["frames_used"] == 0
