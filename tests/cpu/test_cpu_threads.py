"""Threads that the system does not give: a sentence where somebody is told, and done without where nobody is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rheo_sglang.cpu_offload import cpu_attention

HERE = Path(__file__).resolve().parent
PROGRAM = """
import os, resource, signal, sys, torch
sys.path[:0] = sys.argv[1:]
from cpu_cases import assert_attended, random_case
from rheo_kernels.cpu import Doorbell
from rheo_kernels.cpu.doorbell import WORDS
from rheo_sglang.cpu_offload.cpu_attention import CpuAttention
from rheo_sglang.errors import ConfigError
from test_cpu_task import Prepared
prepared = Prepared(random_case(pages=40, width=40), threads=3)
attention = CpuAttention(torch.zeros(1, 8, 2, 2, 64 * 16), 2, 2, 4, 16, 5, pinned=False)
before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
def tell(make):
    try:
        make()
    except (RuntimeError, ConfigError) as error:
        print(type(error).__name__, error, flush=True)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 20), limit[1]))
tell(lambda: attention.task(0, 0.125))
tell(lambda: Doorbell(torch.zeros(WORDS, dtype=torch.int32), 1))
assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before, "signals stay blocked"
child = os.fork()
if child == 0:
    prepared.task()
    resource.setrlimit(resource.RLIMIT_AS, limit)
    assert_attended(prepared.case, (prepared.out, prepared.lse))
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0, "a process without threads of its own could not attend"
resource.setrlimit(resource.RLIMIT_AS, limit)
assert attention.task(0, 0.125).threads == 5
"""


def test_threads_that_cannot_be_started_are_told_and_done_without() -> None:
    """A limit of address space leaves no room for a thread's stack, which is eight megabytes."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(HERE), str(HERE.parent)],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    of_a_task, of_a_doorbell = done.stdout.splitlines()
    assert of_a_task.startswith("ConfigError rheo: thread 4 of 5 of CPU attention could not be started (")
    assert of_a_doorbell.startswith(
        "RuntimeError the doorbell's thread of CPU attention could not be started ("
    )
    for line in (of_a_task, of_a_doorbell):
        assert "; allowed: fewer threads, or higher limits of processes and memory" in line


@pytest.mark.parametrize(
    ("cores", "ranks", "threads"), [(16, 1, 8), (32, 2, 8), (5, 1, 2), (1, 1, 1), (2, 4, 1)]
)
def test_half_of_the_cores_are_left_to_the_server(
    monkeypatch: pytest.MonkeyPatch, cores: int, ranks: int, threads: int
) -> None:
    monkeypatch.setattr(cpu_attention, "default_threads", lambda: cores)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: ranks)
    assert cpu_attention.default_cpu_threads() == threads
