"""probe: which variants work on this machine, found out in a child process, and which of them is fastest."""

from __future__ import annotations

import functools
import logging
import os
import signal
import statistics
import time
import warnings

import torch

from rheo_kernels.cpu import _native
from rheo_kernels.cpu.problem import describe
from rheo_kernels.cpu.settings import available_isas, checked_threads, forced_isa
from rheo_kernels.types.kv_scales import EIGHT_BITS

logger = logging.getLogger(__name__)

SECONDS = 20.0
"""How long a variant may take to attend a few pages."""
MOST_TRIED = 3
TIMED_PAGES, TIMED_RUNS = 4096, 31
TIMED_BYTES = 2**31
"""Of the host pool, far more than caches hold."""
TOUCHED = 4096
"""Bytes of a page of memory."""
HEADS, GROUP, DIM, PAGE_SIZE, PAGES, ANSWER = 2, 4, 128, 32, 40, 1.5
RIGHT, WRONG = 0, 1


@functools.cache
def working_isas() -> tuple[str, ...]:
    """The variants that attend a few pages and get them right, widest first; `MOST_TRIED` of them at most.

    Processors, hypervisors and compilers differ more than tests can: a variant that crashes must not take a server
    with it. ``RHEO_CPU_ISA`` limits the search.
    """
    candidates = available_isas()[::-1]
    limit = forced_isa()
    if limit is not None:
        candidates = candidates[candidates.index(limit) :] if limit in candidates else []
    working: list[str] = []
    for isa in candidates:
        failure = _failure(isa)
        if failure is None:
            working.append(isa)
            if len(working) == MOST_TRIED:
                break
        else:
            logger.warning("rheo: CPU attention with %s does not work on this machine (%s)", isa, failure)
    return tuple(working)


def fastest_isa(
    blocks: torch.Tensor,
    group: int,
    page_size: int,
    threads: int | None = None,
    query_dtype: torch.dtype | None = None,
) -> str | None:
    """Of the variants that work here, the one that attends random pages of a host pool soonest; None if none works.

    Wider is not always faster: where memory is the limit, it depends on what a variant does between two loads.

    Parameters
    ----------
    blocks
        Host pages, ``[H, N, 2, D * P]``, any strides over ``H`` and ``N``. They stay as they are, but up to
        `TIMED_BYTES` of them are touched: what never was written would be read from one page of zeros in the cache.
    group
        Query heads of a KV head.
    page_size
        Tokens per page.
    threads
        Threads to use; None for `default_threads`.
    query_dtype
        Of the queries; None for that of the blocks.
    """
    isas = working_isas()
    if len(isas) < 2:
        return isas[0] if isas else None
    heads, pages, _, block = blocks.shape
    pages = min(pages, max(TIMED_BYTES // (heads * 2 * block * blocks.element_size()), 1))
    touched = blocks[:, :pages].flatten(2)[..., :: TOUCHED // blocks.element_size()]
    touched.copy_(touched.clone())
    width = max(min(TIMED_PAGES // heads, pages), 1)
    draw = torch.Generator().manual_seed(0)
    q = torch.randn((1, heads * group, block // page_size), generator=draw)
    q = q.to(query_dtype or blocks.dtype)
    index = torch.randint(pages, (1, heads, width), generator=draw, dtype=torch.int32)
    valid = torch.full_like(index, page_size)
    out, lse = torch.zeros(q.shape), torch.zeros(q.shape[:2])
    batch = torch.ones(1, dtype=torch.int32)
    scale = q.shape[2] ** -0.5
    problem = describe(q, blocks, (index, valid), scale, page_size, out, lse, batch)
    tasks = {isa: _native.Task(problem, checked_threads(threads), isa) for isa in isas}
    times: dict[str, list[float]] = {isa: [] for isa in isas}
    for _ in range(TIMED_RUNS):
        for isa, task in tasks.items():
            index.random_(0, pages)
            began = time.perf_counter()
            task.run()
            times[isa].append(time.perf_counter() - began)
    medians = {isa: statistics.median(taken) for isa, taken in times.items()}
    speeds = ", ".join(
        f"{isa} {heads * width * block * 2 * blocks.element_size() / taken / 1e9:.1f} GB/s"
        for isa, taken in medians.items()
    )
    logger.info("rheo: CPU attention: %s", speeds)
    return min(medians, key=lambda isa: medians[isa])


def _failure(isa: str) -> str | None:
    """What goes wrong with a variant, or None."""
    problems = [_problem(dtype) for dtype in (torch.bfloat16, torch.float32, EIGHT_BITS)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _attend_and_exit(isa, problems)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if os.WIFSIGNALED(status):
                return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
            return None if os.WEXITSTATUS(status) == RIGHT else "wrong result"
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return f"no result within {SECONDS:.0f} s"


def _problem(dtype: torch.dtype) -> tuple[_native.Problem, tuple[torch.Tensor, ...]]:
    """Random keys under constant values, so that attention over any of them is that constant."""
    draw = torch.Generator().manual_seed(0)
    blocks = torch.randn((HEADS, PAGES, 2, DIM * PAGE_SIZE), generator=draw).to(dtype)
    blocks[:, :, 1] = ANSWER
    q = torch.randn((1, HEADS * GROUP, DIM), generator=draw)
    q = q.to(torch.bfloat16 if dtype == EIGHT_BITS else dtype)
    index = torch.arange(PAGES, dtype=torch.int32).expand(1, HEADS, -1).contiguous()
    valid = torch.full_like(index, PAGE_SIZE - 1)
    out, lse = torch.zeros((1, HEADS * GROUP, DIM)), torch.zeros((1, HEADS * GROUP))
    batch = torch.ones(1, dtype=torch.int32)
    problem = describe(q, blocks, (index, valid), DIM**-0.5, PAGE_SIZE, out, lse, batch)
    return problem, (out, q, blocks, index, valid, lse, batch)


def _attend_and_exit(isa: str, problems: list[tuple[_native.Problem, tuple[torch.Tensor, ...]]]) -> None:
    """Run in the child; leaves no trace in the parent."""
    os.close(2)
    for problem, operands in problems:
        _native.attend(problem, len(_native.placement()), isa)
        numbers = operands[0].flatten().tolist()
        if any(not abs(number - ANSWER) < 1e-2 for number in numbers):
            os._exit(WRONG)
    os._exit(RIGHT)
