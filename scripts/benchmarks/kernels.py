"""Time every Triton kernel of the decode path at the Qwen3-8B shape, against this run's copy bandwidth.

    PYTHONPATH=scripts python -m benchmarks.kernels --out docs/benchmarks/results/kernels_gpu.json

Each kernel runs inside a CUDA graph over as many layers' buffers as it takes to exceed the L2 cache; a figure
is the median replay divided by the number of layers, launch gaps included. Fractions are of the device copy,
for ``load`` and ``save`` of the pinned-memory copy.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.kernel_case import DIM, DTYPE, HEADS, PAGE, DecodeCase
from common.measurement import gpu_in_words, keep_result, result_document

CONTEXTS = {"8k": 8192, "32k": 32768, "128k": 131072}
REPLAYS = 15
MIN_CALLS = 16
HOST_PAGES = 8200


def time_us(calls: Sequence[Callable[[], object]]) -> float:
    """Median microseconds per call of a CUDA graph that makes the calls in turn, `MIN_CALLS` or more."""
    calls = list(calls) * max(-(-MIN_CALLS // len(calls)), 1)
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times) / len(calls)


def copy_gbps() -> dict[str, float]:
    """Bandwidth of the copies that the kernels are compared with, GB/s; a device copy counts twice.

    The driver's device copy is slower than a kernel's: the better of both counts.
    """
    size = 2**32
    source, target = (torch.zeros(size, dtype=torch.int8, device="cuda") for _ in range(2))
    words, copied = source.view(torch.int32), target.view(torch.int32)
    device_us = min(
        time_us([lambda: target.copy_(source)]), time_us([lambda: torch.bitwise_not(words, out=copied)])
    )
    host = torch.empty(size // 16, dtype=torch.int8, pin_memory=True)
    part = target[: host.numel()]
    return {
        "device_copy_gbps": 2 * size / device_us / 1e3,
        "pinned_h2d_gbps": host.numel() / time_us([lambda: part.copy_(host, non_blocking=True)]) / 1e3,
        "pinned_d2h_gbps": host.numel() / time_us([lambda: host.copy_(part, non_blocking=True)]) / 1e3,
    }


def flash_attention_us(case: DecodeCase) -> float | None:
    """Microseconds of FlashAttention-3 over as many tokens as the step attends, or None where there is none."""
    try:
        from sgl_kernel.flash_attn import flash_attn_with_kvcache
    except ImportError:
        return None
    tokens = round(float(case.selected.num_hits.sum()) / (case.batch * HEADS)) * PAGE
    layers = max(case.frame_layers, 2)
    shape = (layers, 2, case.batch * tokens, 1, HEADS, DIM)
    cache = torch.randn(shape, dtype=DTYPE, device="cuda")
    slots = torch.arange(case.batch * tokens, dtype=torch.int32, device="cuda").view(case.batch, tokens)
    lengths = torch.full((case.batch,), tokens, dtype=torch.int32, device="cuda")
    starts = torch.arange(case.batch + 1, dtype=torch.int32, device="cuda")

    def attend(layer: int) -> None:
        flash_attn_with_kvcache(
            q=case.q,
            k_cache=cache[layer, 0],
            v_cache=cache[layer, 1],
            page_table=slots,
            cache_seqlens=lengths,
            cu_seqlens_q=starts,
            max_seqlen_q=1,
            softmax_scale=DIM**-0.5,
            causal=True,
            num_splits=0,
        )

    try:
        return time_us([partial(attend, layer) for layer in range(layers)])
    except (ImportError, RuntimeError) as error:
        print(f"FlashAttention-3 does not run here: {error}", flush=True)
        return None


def transfer_metrics(
    case: DecodeCase, host: torch.Tensor, tag: str, limits: dict[str, float]
) -> dict[str, float]:
    """Time what crosses PCIe: a step's misses loaded, or fetched while attending, and tail pages saved."""
    metrics = {}
    for kernel, call, moved, limit in case.transfers(host):
        us = time_us([call])
        metrics[f"{kernel}_us_{tag}"] = us
        metrics[f"{kernel}_mb_{tag}"] = moved / 1e6
        metrics[f"{kernel}_bw_frac_{tag}"] = moved / us / 1e3 / limits[limit]
    return metrics


def measure(batches: Sequence[int], contexts: Sequence[str]) -> dict[str, float]:
    """All metrics of the given batch sizes and contexts."""
    metrics = copy_gbps()
    limits = dict(metrics)
    host = torch.zeros((HOST_PAGES, HEADS, 2, DIM * PAGE), dtype=DTYPE).pin_memory()
    for batch in batches:
        for name in contexts:
            case, tag = DecodeCase(batch, CONTEXTS[name]), f"bs{batch}_{name}"
            for kernel, calls, moved in case.kernels():
                us = time_us(calls)
                if kernel == "admit":
                    us -= time_us([partial(case.reset, 0)])
                metrics[f"{kernel}_us_{tag}"] = us
                metrics[f"{kernel}_mb_{tag}"] = moved / 1e6
                metrics[f"{kernel}_bw_frac_{tag}"] = moved / us / 1e3 / limits["device_copy_gbps"]
            metrics |= transfer_metrics(case, host, tag, limits)
            flash = flash_attention_us(case)
            if flash is not None:
                metrics[f"fa3_us_{tag}"] = flash
                metrics[f"attend_vs_fa3_same_bytes_{tag}"] = metrics[f"attend_us_{tag}"] / flash
            print(tag, {k: round(v, 2) for k, v in metrics.items() if k.endswith(f"_us_{tag}")}, flush=True)
            del case
            torch.cuda.empty_cache()
    return metrics


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 32])
    parser.add_argument("--contexts", nargs="+", choices=list(CONTEXTS), default=list(CONTEXTS))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    metrics = measure(arguments.batches, arguments.contexts)
    shape = "Qwen3-8B: 32 query and 8 KV heads of 128, page 32, bfloat16; budget 10 %, hit rate 0.9"
    rounded = {key: round(value, 4) for key, value in metrics.items()}
    keep_result(arguments.out, result_document("kernels_gpu", rounded, gpu_in_words(), shape))


if __name__ == "__main__":
    main()
