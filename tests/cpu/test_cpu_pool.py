"""The thread pool is pinned, configurable, and survives fork and the interpreter's exit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cpu_cases import assert_attended, random_case

from rheo_kernels.cpu import _native, attend, default_threads, placement
from rheo_sglang.cpu_offload.cores import keep_to_spare_cores

PROGRAM = """
import os, torch
from rheo_kernels.cpu import attend
torch.manual_seed(0)
q, blocks = torch.randn(1, 4, 64), torch.randn(2, 40, 2, 64 * 16)
index = torch.arange(40, dtype=torch.int32).expand(1, 2, -1).contiguous()
valid = torch.full_like(index, 16)
def call():
    return attend(q, blocks, index, valid, 0.125, 16, threads=4)
"""


def run_program(text: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM + text],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_forked_child_gets_a_pool_of_its_own() -> None:
    done = run_program(
        "import time\n"
        "before = call()\n"
        "for idle in (0, 0.05):\n"
        "    time.sleep(idle)\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        same = all(torch.equal(x, y) for x, y in zip(call(), before))\n"
        "        os._exit(0 if same else 3)\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "    assert torch.equal(call()[0], before[0])\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("idle", [0.0, 0.05])
def test_the_interpreter_exits_with_the_pool_alive(idle: float) -> None:
    done = run_program(f"import time\ncall()\ntime.sleep({idle})\nprint('done')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_threads_are_pinned_to_the_allowed_cpus() -> None:
    done = run_program(
        "import pathlib, time\n"
        "call()\n"
        "time.sleep(0.2)\n"
        "for task in pathlib.Path('/proc/self/task').iterdir():\n"
        "    if (task / 'comm').read_text().startswith('rheo-cpu-'):\n"
        "        print(*os.sched_getaffinity(int(task.name)))\n"
    )
    places = [line.split() for line in done.stdout.splitlines()]
    assert len(places) == 3, done.stderr
    assert all(len(place) == 1 and int(place[0]) in os.sched_getaffinity(0) for place in places)
    assert len({place[0] for place in places}) == min(3, len(os.sched_getaffinity(0)))


def test_other_threads_keep_to_the_cores_that_are_left() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs")
    done = run_program(
        "import pathlib, threading, time\n"
        "from rheo_sglang.cpu_offload.cores import keep_to_spare_cores\n"
        "other = threading.Thread(target=time.sleep, args=(0.5,))\n"
        "other.start()\n"
        "call()\n"
        "time.sleep(0.2)\n"
        "before = os.sched_getaffinity(0)\n"
        "def places(ours):\n"
        "    return {task.name: os.sched_getaffinity(int(task.name))\n"
        "            for task in pathlib.Path('/proc/self/task').iterdir()\n"
        "            if (task / 'comm').read_text().startswith('rheo-cpu-') == ours}\n"
        "attending = places(True)\n"
        "spare = keep_to_spare_cores(len(before) - 1)\n"
        "assert len(spare) == 1 and set(spare) < before\n"
        "assert len(attending) == 3 and places(True) == attending\n"
        "assert len(places(False)) >= 2 and all(place == set(spare) for place in places(False).values())\n"
    )
    assert done.returncode == 0, done.stderr


def test_threads_that_may_not_be_moved_are_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(thread: int, cpus: list[int]) -> None:
        raise PermissionError("not permitted")

    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs")
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    assert keep_to_spare_cores(1) == []
    assert "share the cores of CPU attention: not permitted" in caplog.text


def test_threads_that_a_job_does_without_are_left_asleep() -> None:
    done = run_program(
        "import pathlib, time\n"
        "call()\n"
        "time.sleep(0.2)\n"
        "def switches(name):\n"
        "    for task in pathlib.Path('/proc/self/task').iterdir():\n"
        "        if (task / 'comm').read_text().strip() == name:\n"
        "            lines = (task / 'status').read_text().splitlines()\n"
        "            return int(next(line for line in lines if line.startswith('voluntary')).split()[1])\n"
        "needed, spare = 'rheo-cpu-1', 'rheo-cpu-3'\n"
        "before = switches(needed), switches(spare)\n"
        "for _ in range(20):\n"
        "    attend(q, blocks, index, valid, 0.125, 16, threads=2)\n"
        "    time.sleep(0.01)\n"
        "print(switches(needed) - before[0], switches(spare) - before[1])\n"
    )
    needed, spare = map(int, done.stdout.split())
    assert needed >= 10, done.stderr
    assert spare == 0


def test_idle_threads_sleep() -> None:
    case = random_case(pages=40, width=40)
    attend(*case.operands, threads=2)

    def workers() -> list[list[str]]:
        stats = [(task / "stat").read_text().rsplit(")", 1) for task in Path("/proc/self/task").iterdir()]
        return [fields.split() for name, fields in stats if "rheo-cpu-" in name]

    def ticks() -> int:
        return sum(int(fields[11]) + int(fields[12]) for fields in workers())

    deadline = time.monotonic() + 30
    while not workers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert workers(), "none has run yet, and named itself"
    time.sleep(0.1)
    before = ticks()
    time.sleep(0.3)
    assert ticks() - before <= 1
    assert_attended(case, attend(*case.operands, threads=2), "avx512_bf16")


def test_the_environment_sets_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RHEO_CPU_THREADS", raising=False)
    assert default_threads() == len(os.sched_getaffinity(0)) == len(placement())
    monkeypatch.setenv("RHEO_CPU_THREADS", "3")
    assert default_threads() == 3


@pytest.mark.parametrize("given", ["0", "-2", "many", "1025"])
def test_a_bad_number_of_threads_is_one_sentence(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHEO_CPU_THREADS", given)
    with pytest.raises(ValueError, match=rf"RHEO_CPU_THREADS is '?{given}'?; allowed: 1 to 1024\."):
        attend(*random_case().operands)


def test_calls_one_after_the_other_agree() -> None:
    case = random_case(pages=30, width=30)
    out, lse = attend(*case.operands, threads=1)
    for call in range(300):
        again = attend(*case.operands, threads=1 + call % 5)
        torch.testing.assert_close(again[0], out, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(again[1], lse, rtol=1e-5, atol=1e-6)


def test_concurrent_callers_take_turns() -> None:
    cases = [random_case(pages=30, width=30) for _ in range(6)]
    expected = [case.expected() for case in cases]
    with ThreadPoolExecutor(6) as executor:
        for _ in range(20):
            results = list(executor.map(lambda case: attend(*case.operands, threads=3), cases))
            for case, result, exact in zip(cases, results, expected, strict=True):
                assert_attended(case, result, expected=exact)


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_pure_read_reads_every_byte_of_the_listed_blocks(prefetch: bool, threads: int) -> None:
    blocks = torch.randint(-(2**40), 2**40, (12, 64))
    offsets = torch.tensor([7, 2, 11, 3, 0]) * blocks.stride(0) * 8
    total = _native.read_blocks(blocks.data_ptr(), offsets.data_ptr(), 5, 512, threads, prefetch)
    assert total == int(blocks[[7, 2, 11, 3, 0]].sum()) % 2**64
