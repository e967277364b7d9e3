"""Time the CPU attention kernel on scattered host pages, against a pure read of the same pages.

    PYTHONPATH=scripts python -m benchmarks.cpu_attention --out docs/benchmarks/results/cpu_attention.json

Qwen3-8B's KV shape: 8 KV heads of 128, pages of 32 tokens, bfloat16: 16 KB a page and head. Every call lists
other pages of a pool as a server has it, far beyond the last-level cache, and every page is listed once before
any is again. The pure read loads the same pages with the widest vectors on the same threads, with and without
prefetching the next page, whichever is faster. GB/s are medians of the bytes of K and V over the time of a call, and
medians over rounds in which the read and all variants take turns, since a shared machine's memory is now faster, now
slower.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import psutil
import torch

from common.measurement import keep_result, result_document
from rheo_kernels import reference
from rheo_kernels.cpu import CPU_ISA, Task, _native, attend, available_isas, default_threads, fastest_isa
from rheo_kernels.types.offload_words import count_words, page_words
from rheo_sglang.pools.blocks import host_pool

HEADS, DIM, PAGE, BATCH = 8, 128, 32, 4
PAGE_BYTES = 2 * DIM * PAGE * 2
GROUPS = (1, 4, 8)
GOAL_GROUP = 4
THREADS = (1, 2, 4, 6, 8, 12, 16)
PAGES_PER_THREAD = 2048
TORCH_PAGES = 4096
ROUNDS, SWEEP_ROUNDS = 9, 5
LAYERS, LAYER_GAP = 36, 200e-6
SCALE = DIM**-0.5


class HostPool:
    """Host pages ``[N, H, 2, D * P]`` of random KV, and disjoint lists of them in random order."""

    def __init__(self, size: int) -> None:
        self.num_pages = size // (HEADS * PAGE_BYTES)
        self.pages = host_pool(1, self.num_pages, HEADS, DIM, PAGE, torch.bfloat16)[0]
        sample = torch.randn(min(512, self.num_pages), HEADS, 2, DIM * PAGE).bfloat16()
        for start in range(0, self.num_pages, len(sample)):
            part = self.pages[start : start + len(sample)]
            part.copy_(sample[: len(part)])
        self.blocks = self.pages.transpose(0, 1)
        self._order = torch.stack([torch.randperm(self.num_pages) for _ in range(HEADS)]).int()
        self._used = 0

    def index(self, pages: int) -> torch.Tensor:
        """Lists ``[B, H, S]`` of ``pages`` pages in all, not listed since the whole pool was."""
        width = pages // (BATCH * HEADS)
        if BATCH * width > self.num_pages:
            raise SystemExit(
                f"{self.num_pages} host pages are too few for calls of {pages}; give more --gib."
            )
        if self._used + BATCH * width > self.num_pages:
            self._used = 0
        taken = self._order[:, self._used : self._used + BATCH * width]
        self._used += BATCH * width
        return taken.view(HEADS, BATCH, width).transpose(0, 1).contiguous()

    def offsets(self, index: torch.Tensor) -> torch.Tensor:
        """Byte offsets of listed pages, in the order in which they are attended."""
        head = torch.arange(HEADS).view(1, HEADS, 1)
        return ((index.long() * HEADS + head) * PAGE_BYTES).flatten().contiguous()


def gbps(call: Callable[[], Callable[[], object]], pages: int, seconds: float) -> float:
    """Median GB/s of what ``call`` prepares, over at least three runs and ``seconds`` of them."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        prepared = call()
        began = time.perf_counter()
        prepared()
        times.append(time.perf_counter() - began)
    return pages * PAGE_BYTES / statistics.median(times) / 1e9


class Attended:
    """A task over lists that change between calls, so that one workspace serves them all."""

    def __init__(self, pool: HostPool, group: int, pages: int, threads: int) -> None:
        self.pool, self.pages = pool, pages
        width = pages // (BATCH * HEADS)
        self.entries = torch.empty(BATCH, HEADS, width, dtype=torch.int64)
        self.counts = count_words(torch.full((BATCH, HEADS), width))
        q = torch.randn(BATCH, HEADS * group, DIM).bfloat16()
        out, lse = torch.empty(q.shape), torch.empty(q.shape[:2])
        batch = torch.tensor([BATCH], dtype=torch.int32)
        self.task = Task(q, pool.blocks, self.entries, self.counts, SCALE, PAGE, out, lse, batch, threads)

    def prepare(self) -> Callable[[], object]:
        index = self.pool.index(self.pages)
        self.entries.copy_(page_words(index, torch.full_like(index, PAGE)))
        return self.task


def read_gbps(pool: HostPool, pages: int, threads: int, seconds: float) -> float:
    """The faster pure read of scattered pages."""

    def prepare(prefetch: bool) -> Callable[[], object]:
        offsets = pool.offsets(pool.index(pages))
        return lambda: _native.read_blocks(
            pool.pages.data_ptr(), offsets.data_ptr(), pages, PAGE_BYTES, threads, prefetch
        )

    return max(gbps(partial(prepare, prefetch), pages, seconds) for prefetch in (False, True))


def variants(
    pool: HostPool, isas: Iterable[tuple[str, int]], pages: int, threads: int
) -> dict[str, Attended]:
    """A task for each variant and group size, by the name that its figures bear."""
    tasks = {}
    for isa, group in isas:
        os.environ[CPU_ISA] = isa
        tasks[f"{isa} g{group}"] = Attended(pool, group, pages, threads)
    os.environ.pop(CPU_ISA, None)
    return tasks


def rounds(
    pool: HostPool, tasks: dict[str, Attended], pages: int, threads: int, count: int, seconds: float
) -> dict[str, list[float]]:
    """GB/s of the pure read (``read``) and of every task, which take turns ``count`` times."""
    rates: dict[str, list[float]] = {"read": [], **{name: [] for name in tasks}}
    for _ in range(count):
        rates["read"].append(read_gbps(pool, pages, threads, seconds))
        for name, task in tasks.items():
            rates[name].append(gbps(task.prepare, pages, seconds))
    return rates


def chosen_isa(pool: HostPool, group: int, threads: int) -> str:
    """The variant that a server takes for a group size."""
    isa = fastest_isa(pool.blocks, group, PAGE, threads)
    if isa is None:
        raise SystemExit(
            "No variant of the CPU kernel works on this machine: misses are attended by the torch reference."
        )
    return isa


def sweep(pool: HostPool, threads_list: list[int], seconds: float) -> dict[str, float]:
    """GB/s of the pure read and of every variant, by threads and group size."""
    metrics = {}
    for threads in threads_list:
        pages = PAGES_PER_THREAD * threads
        tasks = variants(pool, product(available_isas(), GROUPS), pages, threads)
        rates = rounds(pool, tasks, pages, threads, SWEEP_ROUNDS, seconds)
        found = {name: statistics.median(values) for name, values in rates.items()}
        metrics[f"read_gbps_{threads}t"] = found.pop("read")
        for name, rate in found.items():
            isa, group = name.split()
            metrics[f"{isa}_gbps_{threads}t_{group}"] = rate
        read = metrics[f"read_gbps_{threads}t"]
        print(
            f"{threads} threads: read {read:.1f} GB/s; {', '.join(f'{n} {r:.1f}' for n, r in found.items())}",
            flush=True,
        )
    return metrics


def all_cores(pool: HostPool, fastest: dict[int, str], threads: int, seconds: float) -> dict[str, float]:
    """The goal's figures: the variant that a server takes for each group size, and the pure read."""
    pages = PAGES_PER_THREAD * threads
    tasks = variants(pool, ((isa, group) for group, isa in fastest.items()), pages, threads)
    rates = rounds(pool, tasks, pages, threads, ROUNDS, seconds)
    reads = rates.pop("read")
    metrics = {"read_gbps_all_cores": statistics.median(reads)}
    for name, values in rates.items():
        group = name.split()[1]
        metrics[f"gbps_all_cores_{group}"] = statistics.median(values)
        metrics[f"bw_frac_all_cores_{group}"] = statistics.median(
            rate / read for rate, read in zip(values, reads, strict=True)
        )
    return metrics


def small_calls(pool: HostPool, threads: int) -> dict[str, float]:
    """Microseconds of calls a layer apart in time: with no miss, and with some, as a decode step makes them."""
    metrics = {}
    for pages in (0, 32, 128, 512):
        attended = Attended(pool, GOAL_GROUP, max(pages, BATCH * HEADS), threads)
        times = []
        for _ in range(3 * LAYERS):
            task = attended.prepare()
            if pages == 0:
                attended.counts.zero_()
            resume = time.perf_counter() + LAYER_GAP
            while time.perf_counter() < resume:
                pass
            began = time.perf_counter()
            task()
            times.append(time.perf_counter() - began)
        metrics[f"us_{pages}_pages_g4"] = statistics.median(times) * 1e6
    return metrics


def exact(q: torch.Tensor, blocks: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Attention over full pages in float64."""
    outs = []
    for request in range(q.shape[0]):
        for head in range(HEADS):
            pages = blocks[head, index[request, head].long()].double()
            keys = reference.block_keys(pages, PAGE).transpose(0, 1).flatten(1)
            values = reference.block_values(pages, PAGE).flatten(0, 1)
            group = q.shape[1] // HEADS
            queries = q[request, head * group : (head + 1) * group].double()
            outs.append(torch.softmax(queries @ keys * SCALE, -1) @ values)
    return torch.stack(outs).view(q.shape)


def relative_errors(pool: HostPool) -> dict[str, float]:
    """Norm of the error over the norm of the float64 result, on 64 pages a request and head."""
    index = pool.index(BATCH * HEADS * 64)
    valid = torch.full_like(index, PAGE)
    narrow = torch.randn(BATCH, HEADS * 4, DIM).bfloat16()
    pages = index.unique()
    places = torch.searchsorted(pages, index).int()
    blocks = pool.pages[pages.long()].transpose(0, 1)
    metrics = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        q, kv = narrow.to(dtype), blocks.to(dtype)
        out, _ = attend(q, kv, places, valid, SCALE, PAGE)
        expected = exact(q, kv, places)
        metrics[f"rel_err_{name}"] = float((out - expected).norm() / expected.norm())
    return metrics


def against_torch(pool: HostPool, threads: int) -> dict[str, float]:
    """The torch reference and the kernel on the same misses of one decode step and layer."""
    q = torch.randn(BATCH, HEADS * 4, DIM).bfloat16()
    times: dict[str, list[float]] = {"torch": [], "kernel": []}
    for _ in range(5):
        index = pool.index(TORCH_PAGES)
        valid = torch.full_like(index, PAGE)
        for name, function in (("torch", reference.attend), ("kernel", attend)):
            began = time.perf_counter()
            function(q, pool.blocks, index, valid, SCALE, PAGE)
            times[name].append(time.perf_counter() - began)
            index = pool.index(TORCH_PAGES)
    torch_s, kernel_s = statistics.median(times["torch"]), statistics.median(times["kernel"])
    return {"torch_ms": torch_s * 1e3, "kernel_ms": kernel_s * 1e3, "speedup_vs_torch": torch_s / kernel_s}


def thread_counts(most: int) -> Iterator[int]:
    """Thread counts of the sweep, up to all cores."""
    yield from (count for count in THREADS if count < most)
    yield most


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--gib", type=float, help="GiB of host pages; at most 8, or half of what is free")
    parser.add_argument(
        "--seconds", type=float, default=0.02, help="shortest time to measure a figure for, a round"
    )
    parser.add_argument("--machine", help="the machine in words, where the processor's name is not enough")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    size = arguments.gib or min(8.0, psutil.virtual_memory().available / 2**31)
    pool = HostPool(int(size * 2**30))
    threads = default_threads()
    metrics = relative_errors(pool)
    fastest = {group: chosen_isa(pool, group, threads) for group in GROUPS}
    os.environ[CPU_ISA] = fastest[GOAL_GROUP]
    metrics |= against_torch(pool, threads)
    metrics |= small_calls(pool, threads)
    print(fastest, {key: round(value, 5) for key, value in metrics.items()}, flush=True)
    metrics |= sweep(pool, list(thread_counts(threads)), arguments.seconds)
    metrics |= all_cores(pool, fastest, threads, arguments.seconds)
    print({key: round(value, 3) for key, value in metrics.items() if "all_cores" in key}, flush=True)
    chosen = ", ".join(f"{isa} at group {group}" for group, isa in fastest.items())
    shape = f"8 KV heads of 128, page 32, bfloat16; {size:.1f} GiB of host pages; {threads} threads; {chosen}"
    rounded = {key: float(f"{value:.5g}") for key, value in metrics.items()}
    keep_result(arguments.out, result_document("cpu_attention", rounded, arguments.machine, shape))


if __name__ == "__main__":
    main()
