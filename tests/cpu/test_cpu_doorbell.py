"""A doorbell runs the task that a ring names, and answers with the ring's number."""

from __future__ import annotations

import time

import torch
from cpu_cases import assert_attended, random_case
from test_cpu_task import Prepared

from rheo_kernels.cpu import Doorbell
from rheo_kernels.cpu.doorbell import ANSWERED, REQUESTS, WORDS


def ring(words: torch.Tensor, number: int, requests: int = 0) -> None:
    """Ring."""
    words[: REQUESTS + 1].view(torch.int64)[0] = (requests << 32) + number


def wait(words: torch.Tensor, number: int) -> None:
    """Wait for the answer."""
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
        one = prepared[(number - 1) % 3]
        one.redraw(number)
        ring(words, number, 3)
        wait(words, number)
        assert_attended(one.case, (one.out, one.lse))
    bell.close()
    assert bell.rings == 8
    assert 0 <= bell.late <= 8
    assert 0 < bell.busy_seconds < 20


def test_words_may_come_after_the_ring_and_in_any_order() -> None:
    words = torch.zeros(WORDS, dtype=torch.int32)
    prepared = Prepared(random_case(pages=20, width=20))
    bell = Doorbell(words, 1)
    bell.assign(0, prepared.task)
    for number in (7, 8, 9):
        prepared.redraw(number - 1)
        ring(words, number, 3)
        pages = prepared.words(number)
        lists = torch.randperm(len(pages)).tolist()
        for row in lists:
            time.sleep(1e-3)
            for column in torch.randperm(len(pages[row])).tolist():
                prepared.entries.flatten(0, 1)[row, column] = pages[row][column]
        assert int(words[ANSWERED]) != number, "the lists' lengths were not known yet"
        prepared.hand_over(number)
        wait(words, number)
        assert_attended(prepared.case, (prepared.out, prepared.lse))
    bell.close()


def test_a_ring_says_for_how_many_requests() -> None:
    words = torch.zeros(WORDS, dtype=torch.int32)
    prepared = Prepared(random_case())
    bell = Doorbell(words, 1)
    bell.assign(0, prepared.task)
    prepared.hand_over(3)
    ring(words, 3, 1)
    wait(words, 3)
    assert prepared.out[0].isfinite().all()
    assert prepared.out[1:].isnan().all()
    bell.close()


def test_it_still_hears_after_a_long_silence() -> None:
    words = torch.zeros(WORDS, dtype=torch.int32)
    prepared = Prepared(random_case())
    bell = Doorbell(words, 1)
    bell.assign(0, prepared.task)
    time.sleep(0.1)
    prepared.hand_over(5)
    ring(words, 5, 3)
    wait(words, 5)
    assert_attended(prepared.case, (prepared.out, prepared.lse))


def test_rings_for_tasks_that_do_not_exist_are_answered() -> None:
    words = torch.zeros(WORDS, dtype=torch.int32)
    bell = Doorbell(words, 2)
    for number in (1, 2, 2**31 - 1):
        ring(words, number)
        wait(words, number)
    bell.close()


def test_closing_ends_the_thread() -> None:
    words = torch.zeros(WORDS, dtype=torch.int32)
    bell = Doorbell(words, 1)
    ring(words, 1)
    wait(words, 1)
    bell.close()
    ring(words, 2)
    time.sleep(0.05)
    assert int(words[ANSWERED]) == 1
