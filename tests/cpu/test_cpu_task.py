"""Task runs an attention call through its C function, with what memory holds at that time."""

from __future__ import annotations

import ctypes
import math
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cpu_cases import Case, Partial, assert_attended, random_case

from rheo_kernels.cpu import Task


class Prepared:
    """A task, its operands, and its buffers filled with NaN."""

    def __init__(self, case: Case, ranged: bool = False, threads: int = 2, packed: bool = False) -> None:
        self.case = case
        self.out, self.lse = torch.full(case.q.shape, math.nan), torch.full(case.q.shape[:2], math.nan)
        self.batch = torch.tensor([case.q.shape[0]], dtype=torch.int32)
        self.first = torch.zeros(case.index.shape[:2], dtype=torch.int32)
        self.last = torch.full_like(self.first, case.index.shape[2])
        ranges = (self.first, self.last) if ranged else (None, None)
        self.task = Task(*case.operands, self.out, self.lse, self.batch, *ranges, packed, threads=threads)

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


def test_every_call_reads_its_operands_anew() -> None:
    prepared = Prepared(random_case(pages=20, width=20))
    for _ in range(5):
        fresh = random_case(pages=20, width=20)
        for old, new in zip(prepared.case.operands[:4], fresh.operands[:4], strict=True):
            old.copy_(new)
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


def test_only_columns_of_the_range_are_looked_at() -> None:
    prepared = Prepared(random_case(batch=4, pages=12, width=12), ranged=True)
    case = prepared.case
    prepared.first.copy_(torch.randint(0, 8, (4, 2)))
    prepared.last.copy_(torch.randint(4, 13, (4, 2)))
    prepared.last[3, 1] = 20
    columns = torch.arange(12)
    inside = (columns >= prepared.first[..., None]) & (columns < prepared.last[..., None])
    only = Case(case.q, case.blocks, case.index.masked_fill(~inside, -1), case.valid, 16, case.scale)
    case.index.masked_fill_(~inside, 10**6)
    assert_attended(only, prepared.call())
    assert prepared.task.missing_blocks == 0


def test_empty_ranges_are_the_empty_partial() -> None:
    prepared = Prepared(random_case(), ranged=True)
    prepared.last.copy_(prepared.first)
    out, lse = prepared.call()
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(lse, torch.full_like(lse, -math.inf))


def test_blocks_that_do_not_exist_are_counted_and_left_out() -> None:
    prepared = Prepared(random_case(batch=1, heads=1, pages=3, width=2))
    prepared.case.index[0, 0] = torch.tensor([1, 3])
    prepared.case.valid.fill_(4)
    result = prepared.call()
    assert prepared.task.missing_blocks == 1
    prepared.case.index[0, 0, 1] = -1
    assert_attended(prepared.case, result)


def test_packed_lists_are_attended_alike() -> None:
    case = random_case(batch=4, pages=60, width=50)
    case.index.random_(0, 60)
    case.valid.random_(1, 17)
    prepared = Prepared(case, ranged=True, packed=True, threads=3)
    for _ in range(5):
        prepared.first.random_(0, 30)
        prepared.last.random_(20, 51)
        prepared.last[1, 0] = prepared.first[1, 0]
        columns = torch.arange(50)
        inside = (columns >= prepared.first[..., None]) & (columns < prepared.last[..., None])
        only = Case(case.q, case.blocks, case.index.masked_fill(~inside, -1), case.valid, 16, case.scale)
        assert_attended(only, prepared.call())


@pytest.mark.parametrize("threads", [1, 3])
def test_columns_of_packed_lists_that_are_no_pages_are_counted_and_left_out(threads: int) -> None:
    case = random_case(batch=2, heads=2, pages=30, width=24)
    case.index.random_(0, 30)
    case.valid.random_(1, 17)
    prepared = Prepared(case, packed=True, threads=threads)
    case.index[0, 1] = 30
    case.index[1, 0, ::2] = -1
    case.valid[1, 1, 3] = 0
    result = prepared.call()
    assert prepared.task.missing_blocks == 24 + 12 + 1
    case.index[0, 1] = -1
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
        ("first", torch.zeros(3, 3).int(), "first is torch.int32 (3, 3) on cpu; allowed: contiguous"),
        ("q", torch.zeros(3, 8, 128)[..., ::2], "allowed: host memory with the last dimension contiguous"),
    ],
    ids=["out", "lse", "batch", "first", "q"],
)
def test_bad_buffers_are_one_sentence(name: str, value: torch.Tensor, message: str) -> None:
    case = random_case()
    names = ("q", "blocks", "index", "valid", "scale", "page_size")
    buffers = {"out": torch.zeros(3, 8, 64), "lse": torch.zeros(3, 8), "batch": torch.zeros(1).int()}
    with pytest.raises(ValueError, match=re.escape(message)):
        Task(**{**dict(zip(names, case.operands, strict=True)), **buffers, name: value})
