"""A doorbell runs the task that a ring names, and answers with the ring's number."""

from __future__ import annotations

import time

import torch
from cpu_cases import assert_attended, random_case
from test_cpu_task import Prepared

from rheo_kernels.cpu import Doorbell
from rheo_kernels.cpu.doorbell import ANSWERED, RUNG, WORDS


def ring(words: torch.Tensor, number: int) -> None:
    """Ring, and wait for the answer."""
    words[RUNG] = number
    deadline = time.monotonic() + 20
    while int(words[ANSWERED]) != number:
        assert time.monotonic() < deadline, "nobody answered"
        time.sleep(1e-4)


def test_every_ring_runs_its_task_on_what_memory_holds_then() -> None:
    words = torch.zeros(WORDS, dtype=torch.int32)
    prepared = [Prepared(random_case(pages=20, width=20)) for _ in range(3)]
    bell = Doorbell(words, 3)
    for number, one in enumerate(prepared):
        bell.assign(number, one.task)
    for number in (1, 2, 4, 9, 11, 12, 3, 2**31 - 1):
        which = (number - 1) % 3
        one = prepared[which]
        for old, new in zip(one.case.operands[:4], random_case(pages=20, width=20).operands[:4], strict=True):
            old.copy_(new)
        ring(words, number)
        assert_attended(one.case, (one.out, one.lse))
    bell.close()
    assert bell.rings == 8
    assert 0 < bell.busy_seconds < 20


def test_it_still_hears_after_a_long_silence() -> None:
    words = torch.zeros(WORDS, dtype=torch.int32)
    prepared = Prepared(random_case())
    bell = Doorbell(words, 1)
    bell.assign(0, prepared.task)
    time.sleep(0.1)
    ring(words, 5)
    assert_attended(prepared.case, (prepared.out, prepared.lse))


def test_rings_for_tasks_that_do_not_exist_are_answered() -> None:
    words = torch.zeros(WORDS, dtype=torch.int32)
    bell = Doorbell(words, 2)
    for number in (1, 2, -1):
        ring(words, number)
    bell.close()


def test_closing_ends_the_thread() -> None:
    words = torch.zeros(WORDS, dtype=torch.int32)
    bell = Doorbell(words, 1)
    ring(words, 1)
    bell.close()
    words[RUNG] = 2
    time.sleep(0.05)
    assert int(words[ANSWERED]) == 1
