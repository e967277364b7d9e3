"""What goes wrong beside requests: it ends in SGLang's usual error or a refusal, and no other request is harmed."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from environment.create import SGLANG_VERSIONS

PAGE, POOL_TOKENS, CONTEXT, VOCABULARY = 16, 6144, 2048, 256
MODEL = "tiny-llama-group4"
SPARSE = {"budget_ratio": 0.25, "budget_min_pages": 4, "dense_threshold": 0, "frame_pool_tokens": 1024}
OPTIONS: dict[str, Any] = {
    "page_size": PAGE,
    "rheo_config": SPARSE,
    "arguments": ["--max-total-tokens", str(POOL_TOKENS), "--context-length", str(CONTEXT)],
}
EXIT_SECONDS = 60.0
OLDEST = version("sglang") == SGLANG_VERSIONS[0]
IDLE_SECONDS = 2.0
USED = (
    "frames_used",
    "pages_resident",
    "pages_unsaved",
    "pages_summarised",
    "pages_important",
    "pages_allocated",
)


@pytest.fixture(scope="module")
def server(serve):
    return serve(MODEL, **OPTIONS)


def tokens(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()


def answer(server, prompt: list[int], new_tokens: int) -> list[int]:
    return server.generate(prompt, new_tokens, ignore_eos=True)["output_ids"]


def nothing_is_left(server) -> None:
    server.flush_cache()
    counters = server.counters()
    assert {name: counters[name] for name in USED} == dict.fromkeys(USED, 0)


def send_and_never_read(server, prompt: list[int], new_tokens: int) -> socket.socket:
    """A client that asks for a stream over a small window and leaves it in the kernel's buffers."""
    body = json.dumps(
        {
            "input_ids": prompt,
            "stream": True,
            "sampling_params": {"max_new_tokens": new_tokens, "ignore_eos": True},
        }
    ).encode()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    client.connect(("127.0.0.1", server.port))
    head = (
        "POST /generate HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    client.sendall("\r\n".join([*head, "", ""]).encode() + body)
    return client


def test_a_client_that_never_reads_keeps_nobody_else_waiting(server):
    prompt = tokens(300, 1)
    alone = answer(server, prompt, 24)
    clients = [send_and_never_read(server, tokens(200, 10 + i), 600) for i in range(3)]
    try:
        assert [answer(server, prompt, 24) for _ in range(3)] == [alone] * 3
    finally:
        for client in clients:
            client.close()
    deadline = time.monotonic() + EXIT_SECONDS
    while server.counters()["pages_unsaved"] and time.monotonic() < deadline:
        time.sleep(0.5)
    nothing_is_left(server)


def test_weights_that_are_updated_under_load_leave_nothing_of_the_old_kv(server):
    prompts = [tokens(250 + 40 * i, 20 + i) for i in range(6)]
    alone = [answer(server, prompt, 32) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        running = [pool.submit(answer, server, prompt, 32) for prompt in prompts]
        time.sleep(0.3)
        if OLDEST:  # it ends the server where a batch whose answers are out is not cleared away yet
            assert [future.result() for future in running] == alone
            time.sleep(IDLE_SECONDS)
        url = server.base_url + "/update_weights_from_disk"
        update = server.session.post(url, json={"model_path": str(server.model)}, timeout=300)
        assert update.status_code == 200, update.text
        assert update.json()["success"], update.text
        assert [future.result() for future in running] == alone
    assert server.counters()["pages_allocated"] == 0, "the update empties the cache"
    assert [answer(server, prompt, 32) for prompt in prompts] == alone
    nothing_is_left(server)


def test_a_flush_under_load_is_refused_and_harms_nobody(server):
    prompts = [tokens(400, 30 + i) for i in range(4)]
    alone = [answer(server, prompt, 48) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        running = [pool.submit(answer, server, prompt, 48) for prompt in prompts]
        refused = 0
        while not all(future.done() for future in running):
            refused += server.session.post(server.base_url + "/flush_cache", timeout=60).status_code == 400
        assert [future.result() for future in running] == alone
    assert refused > 0
    nothing_is_left(server)


def test_releasing_the_gpus_memory_is_refused_with_one_sentence(server):
    prompt = tokens(300, 40)
    alone = answer(server, prompt, 32)
    running: list[list[int]] = []
    neighbour = threading.Thread(target=lambda: running.append(answer(server, prompt, 32)))
    neighbour.start()
    refused = server.session.post(server.base_url + "/release_memory_occupation", json={}, timeout=60)
    neighbour.join()
    assert refused.status_code == 400
    message = refused.json()["error"]["message"]
    assert message.startswith("release_memory_occupation is not supported with --attention-backend rheo")
    assert message.count(". ") == 0
    assert running == [alone]


def test_a_server_that_is_told_to_end_under_load_answers_and_leaves_no_process(server):
    """The last that the module's server serves."""
    prompts = [tokens(200, 50 + i) for i in range(3)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        running = [pool.submit(answer, server, prompt, 64) for prompt in prompts]
        time.sleep(1.0)
        group = server.process.pid
        os.kill(group, signal.SIGTERM)
        answers = [future.result() for future in running]
    assert [len(found) for found in answers] == [64] * 3, "SGLang waits for running requests"
    server.process.wait(EXIT_SECONDS)
    deadline = time.monotonic() + EXIT_SECONDS
    while (left := processes_of(group)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


def processes_of(group: int) -> list[str]:
    """Command lines of what runs in a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdigit() or os.getpgid(int(entry.name)) != group:
                continue
            if (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.mark.newest
def test_a_scheduler_that_a_thread_aborts_ends_the_server_and_keeps_no_client_waiting(serve):
    """An exception in a thread of CPU attention ends in `std::terminate`, which is SIGABRT."""
    server = serve(MODEL, **OPTIONS)
    group = server.process.pid
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(answer, server, tokens(200, 60 + i), 1500) for i in range(3)]
        await_requests(server, 3)
        os.kill(scheduler_of(group), signal.SIGABRT)
        failures = [future.exception(EXIT_SECONDS) for future in running]
    assert all(failures), "nobody is told that an answer is whole which is not"
    server.process.wait(EXIT_SECONDS)
    deadline = time.monotonic() + EXIT_SECONDS
    while (left := processes_of(group)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
    (sentence,) = [line for line in server.log.read_text().splitlines() if "crashed with exit code" in line]
    assert "exit code -6" in sentence


def await_requests(server, count: int) -> None:
    """Wait until so many requests run."""
    deadline = time.monotonic() + EXIT_SECONDS
    while server.counters()["frames_used"] < count and time.monotonic() < deadline:
        time.sleep(0.1)


def scheduler_of(group: int) -> int:
    """The scheduler's process, by the title that SGLang gives it."""
    for entry in Path("/proc").iterdir():
        try:
            ours = entry.name.isdigit() and os.getpgid(int(entry.name)) == group
            if ours and (entry / "cmdline").read_text().startswith("sglang::scheduler"):
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError("no process of the server is called a scheduler")
