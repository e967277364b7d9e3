"""Task runs an attention call through its C function, with what memory holds at that time."""

from __future__ import annotations

import ctypes
import math
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cpu_cases import Case, Partial, assert_attended, random_case

from rheo_kernels.cpu import Task, _native
from rheo_kernels.types.offload_words import TAG_SHIFT, TOKEN_BITS, count_words, page_words

GONE_S = 1
"""How long a word is waited for."""


class Prepared:
    """A task, its operands, and its buffers filled with NaN."""

    def __init__(self, case: Case, threads: int = 2) -> None:
        self.case = case
        self.out, self.lse = torch.full(case.q.shape, math.nan), torch.full(case.q.shape[:2], math.nan)
        self.batch = torch.tensor([case.q.shape[0]], dtype=torch.int32)
        self.entries = torch.full(case.index.shape, -1, dtype=torch.int64)
        self.counts = torch.zeros(case.index.shape[:2], dtype=torch.int64)
        self.write_words()
        lists = self.entries, self.counts
        self.task = Task(
            case.q,
            case.blocks,
            *lists,
            case.scale,
            case.page_size,
            self.out,
            self.lse,
            self.batch,
            threads,
        )

    def write_words(self, tag: int = 0) -> None:
        """Write the case's lists as words."""
        for entries, words in zip(self.entries.flatten(0, 1), self.words(tag), strict=True):
            entries[: len(words)] = words
        self.counts.copy_(count_words((self.case.index >= 0).sum(-1), tag))

    def words(self, tag: int) -> list[torch.Tensor]:
        """Words of every list's pages, which leave no column out."""
        lists = zip(self.case.index.flatten(0, 1), self.case.valid.flatten(0, 1), strict=True)
        return [page_words(index[index >= 0], valid[index >= 0], tag) for index, valid in lists]

    def redraw(self, tag: int = 0) -> None:
        """Other queries, pages and lists of the same shape."""
        case = self.case
        heads, pages, _, _ = case.blocks.shape
        fresh = random_case(batch=len(case.q), heads=heads, pages=pages, width=case.index.shape[2])
        for old, new in zip(case.operands[:4], fresh.operands[:4], strict=True):
            old.copy_(new)
        self.write_words(tag)

    def call(self) -> Partial:
        """Call the C function with the task's address, as a CUDA graph's host node does."""
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.task.function)(self.task.address)
        return self.out, self.lse


def test_the_c_function_runs_the_task(isa: str) -> None:
    prepared = Prepared(random_case(torch.bfloat16))
    assert prepared.task.isa == isa
    assert prepared.task.threads == 2
    assert_attended(prepared.case, prepared.call(), isa)


def test_a_call_of_the_object_runs_the_task() -> None:
    prepared = Prepared(random_case())
    prepared.task()
    assert_attended(prepared.case, (prepared.out, prepared.lse))


def test_python_and_the_extension_lay_words_out_alike() -> None:
    assert _native.token_bits == TOKEN_BITS
    assert _native.tag_shift == TAG_SHIFT


def test_every_call_reads_its_operands_anew() -> None:
    prepared = Prepared(random_case(pages=20, width=20))
    for _ in range(5):
        prepared.redraw()
        assert_attended(prepared.case, prepared.call())


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 9])
def test_the_batch_is_read_at_the_call(batch: int) -> None:
    prepared = Prepared(random_case(batch=3, pages=20, width=20))
    prepared.batch.fill_(batch)
    out, lse = prepared.call()
    written = min(batch, 3)
    expected = [part[:written] for part in prepared.case.expected()]
    assert_attended(prepared.case, (out[:written], lse[:written]), expected=(expected[0], expected[1]))
    assert out[written:].isnan().all()
    assert lse[written:].isnan().all()


def test_lists_without_pages_are_the_empty_partial() -> None:
    prepared = Prepared(random_case())
    prepared.counts.zero_()
    out, lse = prepared.call()
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(lse, torch.full_like(lse, -math.inf))


def test_counts_beyond_the_columns_are_cut() -> None:
    prepared = Prepared(random_case(batch=1, heads=1, pages=9, width=4))
    prepared.case.index[0, 0] = torch.randperm(9)[:4].int()
    prepared.case.valid.random_(1, 17)
    prepared.write_words()
    prepared.counts.fill_(100)
    assert_attended(prepared.case, prepared.call())


@pytest.mark.parametrize("threads", [1, 3])
def test_pages_that_do_not_exist_are_counted_and_left_out(threads: int) -> None:
    prepared = Prepared(random_case(batch=2, heads=2, pages=30, width=24), threads)
    case = prepared.case
    case.index.random_(0, 30)
    case.valid.random_(1, 17)
    case.index[0, 1] = 30
    case.index[1, 0, ::2] = 2**25
    prepared.write_words()
    result = prepared.call()
    assert prepared.task.missing_blocks == 24 + 12
    case.index[case.index >= 30] = -1
    assert_attended(case, result)


def test_words_that_never_arrive_are_left_out_after_a_while() -> None:
    prepared = Prepared(random_case(batch=1, heads=2, pages=9, width=4), threads=1)
    case = prepared.case
    case.index.copy_(torch.randperm(9)[:4])
    case.valid.fill_(16)
    prepared.write_words()
    prepared.entries[0, 0, 2] += 1 << TAG_SHIFT
    prepared.counts[0, 1] += 1 << TAG_SHIFT
    began = time.monotonic()
    result = prepared.call()
    assert time.monotonic() - began > 2 * GONE_S
    assert prepared.task.missing_blocks == 1
    case.index[0, 0, 2] = case.index[0, 1] = -1
    assert_attended(case, result)


def test_tasks_of_several_threads_take_turns() -> None:
    prepared = [Prepared(random_case(pages=20, width=20), threads=3) for _ in range(4)]
    expected = [one.case.expected() for one in prepared]
    with ThreadPoolExecutor(4) as executor:
        for _ in range(25):
            results = list(executor.map(Prepared.call, prepared))
            for one, result, exact in zip(prepared, results, expected, strict=True):
                assert_attended(one.case, result, expected=exact)
                one.out.fill_(math.nan)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("out", torch.zeros(3, 8, 32), "out is torch.float32 (3, 8, 32) on cpu; allowed: contiguous"),
        (
            "lse",
            torch.zeros(3, 8).double(),
            "lse is torch.float64 (3, 8) on cpu; allowed: contiguous torch.float32",
        ),
        ("batch", torch.zeros(1), "batch is torch.float32 (1,) on cpu; allowed: contiguous torch.int32 (1,)"),
        (
            "entries",
            torch.zeros(3, 3, 6).long(),
            "entries is torch.int64 (3, 3, 6) on cpu; allowed: contiguous",
        ),
        ("counts", torch.zeros(3, 2).int(), "counts is torch.int32 (3, 2) on cpu; allowed: contiguous"),
        ("q", torch.zeros(3, 8, 128)[..., ::2], "allowed: host memory with the last dimension contiguous"),
    ],
    ids=["out", "lse", "batch", "entries", "counts", "q"],
)
def test_bad_buffers_are_one_sentence(name: str, value: torch.Tensor, message: str) -> None:
    case = random_case()
    operands = {
        "q": case.q,
        "blocks": case.blocks,
        "entries": torch.zeros(3, 2, 6).long(),
        "counts": torch.zeros(3, 2).long(),
        "scale": case.scale,
        "page_size": case.page_size,
        "out": torch.zeros(3, 8, 64),
        "lse": torch.zeros(3, 8),
        "batch": torch.zeros(1).int(),
    }
    with pytest.raises(ValueError, match=re.escape(message)):
        Task(**{**operands, name: value})
