"""A doorbell runs the task that a signal asks for, and completes it with the signal's sequence number."""

from __future__ import annotations

import time

import torch
from cpu_cases import assert_attended, random_case
from test_cpu_task import Prepared

from rheo_kernels.cpu import Doorbell
from rheo_kernels.cpu.doorbell import COMPLETED, REQUESTS, WORDS


def signal(words: torch.Tensor, number: int, requests: int = 0) -> None:
    """Write a sequence number and a number of requests, as a GPU does."""
    words[: REQUESTS + 1].view(torch.int64)[0] = (requests << 32) + number


def wait(words: torch.Tensor, number: int) -> None:
    """Wait until a sequence number is completed."""
    deadline = time.monotonic() + 20
    while int(words[COMPLETED]) != number:
        assert time.monotonic() < deadline, "it was not completed"
        time.sleep(1e-4)


def test_every_signal_runs_its_task_on_what_memory_holds_then() -> None:
    words = torch.zeros(WORDS, dtype=torch.int32)
    prepared = [Prepared(random_case(pages=20, width=20)) for _ in range(3)]
    doorbell = Doorbell(words, 3)
    for number, one in enumerate(prepared):
        doorbell.assign(number, one.task)
    for number in (1, 2, 4, 9, 11, 12, 3, 2**31 - 1):
        one = prepared[(number - 1) % 3]
        one.redraw(number)
        signal(words, number, 3)
        wait(words, number)
        assert_attended(one.case, (one.out, one.lse))
    doorbell.close()
    assert doorbell.signals == 8
    assert 0 <= doorbell.late_threads <= 8
    assert 0 < doorbell.busy_seconds < 20


def test_words_may_arrive_after_the_signal_and_in_any_order() -> None:
    words = torch.zeros(WORDS, dtype=torch.int32)
    prepared = Prepared(random_case(pages=20, width=20))
    doorbell = Doorbell(words, 1)
    doorbell.assign(0, prepared.task)
    for number in (7, 8, 9):
        prepared.redraw(number - 1)
        signal(words, number, 3)
        pages = prepared.words(number)
        lists = torch.randperm(len(pages)).tolist()
        for row in lists:
            time.sleep(1e-3)
            for column in torch.randperm(len(pages[row])).tolist():
                prepared.entries.flatten(0, 1)[row, column] = pages[row][column]
        assert int(words[COMPLETED]) != number, "the lists' lengths were not known yet"
        prepared.write_words(number)
        wait(words, number)
        assert_attended(prepared.case, (prepared.out, prepared.lse))
    doorbell.close()


def test_a_signal_says_for_how_many_requests() -> None:
    words = torch.zeros(WORDS, dtype=torch.int32)
    prepared = Prepared(random_case())
    doorbell = Doorbell(words, 1)
    doorbell.assign(0, prepared.task)
    prepared.write_words(3)
    signal(words, 3, 1)
    wait(words, 3)
    assert prepared.out[0].isfinite().all()
    assert prepared.out[1:].isnan().all()
    doorbell.close()


def test_it_still_runs_tasks_after_a_long_pause() -> None:
    words = torch.zeros(WORDS, dtype=torch.int32)
    prepared = Prepared(random_case())
    doorbell = Doorbell(words, 1)
    doorbell.assign(0, prepared.task)
    time.sleep(0.1)
    prepared.write_words(5)
    signal(words, 5, 3)
    wait(words, 5)
    assert_attended(prepared.case, (prepared.out, prepared.lse))


def test_signals_for_tasks_that_do_not_exist_are_completed() -> None:
    words = torch.zeros(WORDS, dtype=torch.int32)
    doorbell = Doorbell(words, 2)
    for number in (1, 2, 2**31 - 1):
        signal(words, number)
        wait(words, number)
    doorbell.close()


def test_closing_ends_the_thread() -> None:
    words = torch.zeros(WORDS, dtype=torch.int32)
    doorbell = Doorbell(words, 1)
    signal(words, 1)
    wait(words, 1)
    doorbell.close()
    signal(words, 2)
    time.sleep(0.05)
    assert int(words[COMPLETED]) == 1
