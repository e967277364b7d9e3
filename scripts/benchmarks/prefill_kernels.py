"""Time the kernels of prefill at the Qwen3-8B shape, and one layer of a prefill pass, against this run's copies.

    PYTHONPATH=scripts python -m benchmarks.prefill_kernels --out docs/benchmarks/results/transfers_gpu.json

Bandwidths of ``write`` and ``stage`` are fractions of the pinned-memory copy in the same direction. A layer of
a pass writes, stages, attends and seeds; dense attention of the same chunk alone is measured too.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.kernels import copy_gbps, time_us
from common.measurement import gpu_in_words, keep_result, result_document
from rheo_kernels import triton as kernels
from rheo_kernels.triton.stage import STAGERS
from rheo_kernels.triton.write import WRITERS
from rheo_sglang.decode.gpu_residency import GpuResidency
from rheo_sglang.page_table import PageTable
from rheo_sglang.pools.blocks import frame_pool, host_pool
from rheo_sglang.prefill import Prefill, build_prefill_batch
from rheo_sglang.prefill.dense import dense_attention
from rheo_sglang.selection import SUMMARIES

HEADS, GROUP, DIM, PAGE = 8, 4, 128, 32
DTYPE = torch.bfloat16
SUMMARY = SUMMARIES["bound"]()
SCALE = DIM**-0.5
CHUNK = 8192
CONTEXTS = {"8k": 8192, "32k": 32768, "128k": 131072}
PAGE_SHAPES = {4: (64, 16), 8: (64, 32), 16: (128, 32), 32: (128, 64), 64: (256, 64)}
"""Head dimension and page size by KiB of one page in one KV head."""
PAGE_COUNTS = (1, 16, 128, 1024, 10_000)
PROGRAMS = (8, 16, 32, 64)
LAYERS = 6
FRAMES = 600
PASSES = 5


def empty(*shape: int, dtype: torch.dtype = DTYPE) -> torch.Tensor:
    """Uninitialised device memory."""
    return torch.empty(shape, dtype=dtype, device="cuda")


def write_metrics(limit: float) -> dict[str, float]:
    """Bandwidth of ``write`` for one chunk, by page size and number of programs."""
    metrics = {}
    k, v = torch.randn((2, CHUNK, HEADS, DIM), device="cuda").to(DTYPE)
    for page_size in (16, 32, 64):
        pages = CHUNK // page_size
        host = torch.zeros((pages + 1, HEADS, 2, DIM * page_size), dtype=DTYPE).pin_memory()
        summaries = empty(HEADS, pages + 1, 2, DIM)
        position = torch.arange(CHUNK, device="cuda")
        order = torch.randperm(pages, device="cuda") + 1
        slots = order[position // page_size] * page_size + position % page_size
        for programs in PROGRAMS:
            us = time_us([partial(kernels.write, k, v, slots, host, SUMMARY, summaries, page_size, programs)])
            gbps = 2 * k.nbytes / us / 1e3
            metrics[f"write_gbps_page{page_size}_programs{programs}"] = gbps
            metrics[f"write_pinned_frac_page{page_size}_programs{programs}"] = gbps / limit
    return metrics


def stage_metrics(limit: float) -> dict[str, float]:
    """Bandwidth of ``stage`` from host pages, by page size, number of pages and number of programs."""
    metrics = {}
    for kib, (dim, page_size) in tqdm(PAGE_SHAPES.items(), desc="stage"):
        for count in PAGE_COUNTS:
            heads = 1 if count < HEADS else HEADS
            listed = count // heads
            host = torch.zeros((listed + 1, heads, 2, dim * page_size), dtype=DTYPE).pin_memory()
            frames = empty(heads, 1, 2, dim * page_size)
            table = torch.full((heads, listed + 1), -1, dtype=torch.int32, device="cuda")
            pages = torch.randperm(listed, device="cuda").to(torch.int32) + 1
            tokens = torch.full_like(pages, page_size)
            rows = torch.arange(listed, device="cuda", dtype=torch.int32) * page_size
            k, v = empty(2, listed * page_size, heads, dim)
            for programs in PROGRAMS:
                us = time_us(
                    [
                        partial(
                            kernels.stage, host, frames, table, pages, tokens, rows, k, v, page_size, programs
                        )
                    ]
                )
                tag = f"{kib}kib_{count}pages_programs{programs}"
                metrics[f"stage_us_{tag}"] = us
                metrics[f"stage_pinned_frac_{tag}"] = 2 * k.nbytes / us / 1e3 / limit
    return metrics


def resident_metrics() -> dict[str, float]:
    """Bandwidth of ``stage`` where every page has a frame; read and write count."""
    metrics = {}
    listed = 1024
    host = torch.zeros((listed + 1, HEADS, 2, DIM * PAGE), dtype=DTYPE).pin_memory()
    frames = empty(HEADS, listed, 2, DIM * PAGE)
    order = torch.randperm(listed, device="cuda").to(torch.int32)
    table = torch.cat((order[:1], order))[None].repeat(HEADS, 1)
    pages = torch.arange(1, listed + 1, device="cuda", dtype=torch.int32)
    tokens = torch.full_like(pages, PAGE)
    k, v = empty(2, listed * PAGE, HEADS, DIM)
    for programs in PROGRAMS:
        rows = (pages - 1) * PAGE
        us = time_us([partial(kernels.stage, host, frames, table, pages, tokens, rows, k, v, PAGE, programs)])
        metrics[f"stage_resident_gbps_programs{programs}"] = 4 * k.nbytes / us / 1e3
    return metrics


def page_mass_metrics(limit: float) -> dict[str, float]:
    """Time of ``page_mass``, and its bandwidth as a fraction of the device copy."""
    metrics = {}
    for name, context in CONTEXTS.items():
        q = torch.randn((CHUNK, HEADS * GROUP, DIM), device="cuda").to(DTYPE)
        k = torch.randn((context, HEADS, DIM), device="cuda").to(DTYPE)
        ends = torch.tensor([[0, CHUNK], [0, context]], dtype=torch.int32, device="cuda")
        us = time_us([partial(kernels.page_mass, q, k, ends[0], ends[1], SCALE, PAGE, 16, context // PAGE)])
        metrics[f"page_mass_us_{name}"] = us
        metrics[f"page_mass_bw_frac_{name}"] = k.nbytes / us / 1e3 / limit
    return metrics


def elapsed_us(call: Callable[[], object], repeats: int = PASSES) -> float:
    """Median microseconds of a call on the current stream, side streams that it joins included."""
    times = []
    for _ in range(repeats + 1):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times[1:])


def pass_metrics(name: str, context: int) -> dict[str, float]:
    """One layer of the last chunk's pass of a long prompt, and dense attention of that chunk alone."""
    pages = context // PAGE
    table = PageTable(LAYERS, HEADS, DIM, PAGE, pages + 1, FRAMES, "bound", "importance", DTYPE, "cuda")
    host = host_pool(LAYERS, pages + 1, HEADS, DIM, PAGE, DTYPE, pinned=True)
    frames = frame_pool(LAYERS, HEADS, FRAMES, DIM, PAGE, DTYPE, "cuda")
    prefill = Prefill(table, host, frames, PAGE, GpuResidency(table, host, frames))
    q = torch.randn((CHUNK, HEADS * GROUP, DIM), device="cuda").to(DTYPE)
    k, v = torch.randn((2, CHUNK, HEADS, DIM), device="cuda").to(DTYPE)
    lists = (torch.randperm(pages, device="cuda").to(torch.int32) + 1)[None]
    position = torch.arange(context, device="cuda")
    slots = lists[0].long()[position // PAGE] * PAGE + position % PAGE

    def run(chunk: int) -> None:
        done = chunk * CHUNK
        chunk_lists = lists[:, : (done + CHUNK) // PAGE]
        batch = build_prefill_batch(chunk_lists, [done], [CHUNK], PAGE)
        prefill.begin(batch, batch.num_pages, torch.zeros(1, dtype=torch.int64, device="cuda"))
        for layer in range(LAYERS):
            prefill(layer, q, k, v, slots[done : done + CHUNK], batch, SCALE)

    last = context // CHUNK - 1
    for chunk in range(last):
        run(chunk)
    torch.cuda.synchronize()
    batch = build_prefill_batch(lists, [context - CHUNK], [CHUNK], PAGE)
    keys, values = torch.randn((2, context, HEADS, DIM), device="cuda").to(DTYPE)
    attend = dense_attention(keys.device, DTYPE, DIM)
    dense = elapsed_us(lambda: attend(q, keys, values, batch, SCALE))
    layer = elapsed_us(lambda: run(last)) / LAYERS
    return {
        f"dense_us_{name}": dense,
        f"prefill_layer_us_{name}": layer,
        f"prefill_layer_over_dense_{name}": layer / dense,
    }


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    metrics = copy_gbps()
    metrics |= write_metrics(metrics["pinned_d2h_gbps"])
    metrics |= page_mass_metrics(metrics["device_copy_gbps"])
    metrics |= resident_metrics()
    for name, context in CONTEXTS.items():
        metrics |= pass_metrics(name, context)
        torch.cuda.empty_cache()
    metrics |= stage_metrics(metrics["pinned_h2d_gbps"])
    metrics["gather_frac_16kb"] = metrics[f"stage_pinned_frac_16kib_{PAGE_COUNTS[-1]}pages_programs{STAGERS}"]
    metrics["save_frac_16kb"] = metrics[f"write_pinned_frac_page{PAGE}_programs{WRITERS}"]
    shape = (
        f"Qwen3-8B: {HEADS * GROUP} query and {HEADS} KV heads of {DIM}, bfloat16; chunks of {CHUNK} tokens"
    )
    rounded = {key: round(value, 4) for key, value in metrics.items()}
    keep_result(arguments.out, result_document("transfers_gpu", rounded, gpu_in_words(), shape))
    for key, value in metrics.items():
        print(f"{key}: {value:.3f}")


if __name__ == "__main__":
    main()
