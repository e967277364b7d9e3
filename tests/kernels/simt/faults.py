#!/usr/bin/env python3
"""Puts faults into the CUDA C++ sources, one at a time, and says whether a test finds each on the CPU: faults.py.

Works on copies. Needs the package and pytest. Exits with 1 if a fault was not found.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
SOURCES = REPOSITORY / "kernels" / "rheo_kernels" / "cuda"
SELECTED = "test_cuda_attend.py", "selected_pages"
WIDENED = "test_cuda_attend.py", "attended_exactly"
OFFLOADED = "test_cuda_attend.py", "cpu_s_part"
SCALED = "test_cuda_attend.py", "cost_scale"
PARTITIONED = "test_cuda_partition.py", "partition"
EXCLUDED = "test_cuda_select_resolve.py", "excluded"
ESTIMATED = "test_cuda_estimate.py", "equals_reference"
CHOSEN = "test_cuda_select_resolve.py", "equals_references"
LOADED = "test_cuda_load.py", "loaded"
TAIL = "test_cuda_tail.py", "rise_and_fall"
ACKNOWLEDGED = "if (threadIdx.x == 0)\n            wait_until_acknowledged("
WAIT_FOR_STORE = "if (keep && lane == 0) wait_until_read();\n            __syncwarp();\n            blank"
COUNTED = "depth >> shift], 1u);\n    }\n    __syncthreads();"
RANKED = "boundary = candidate;\n    }\n    __syncthreads();"
OTHER_MERGED = "            }\n        }\n        __syncthreads();\n    }\n"


@dataclass(frozen=True)
class Fault:
    """What is replaced in a source, by what, and the tests that should find it: a file and a keyword."""

    source: str
    text: str
    replacement: str
    tests: tuple[str, str]


FAULTS = [
    Fault("attend.cu", WAIT_FOR_STORE, "__syncwarp();\n            blank", SELECTED),
    Fault("attend.cu", "query, run);\n        if (keep && lane == 0) wait_until_read();", "query, run);", SELECTED),
    Fault("attend.cu", "wait_for(barrier, phase);", "", SELECTED),
    Fault("attend.cu", "if (live < PAGE) {", "if (false) {", ("test_cuda_attend.py", "behind")),
    Fault("attend.cu", ACKNOWLEDGED, ACKNOWLEDGED.replace("threadIdx.x == 0", "false"), OFFLOADED),
    Fault("page_softmax.cuh", "run.total[h][c] *= fade[c];", "", SELECTED),
    Fault("page_softmax.cuh", "words[i / 2] >> 16 * (i % 2)", "words[i / 2]", WIDENED),
    Fault("page_softmax.cuh", "numbers = 4 / kNumberBytes", "numbers = 2", ("test_cuda_attend.py", "behind")),
    Fault("eight_bits.cuh", "from_half(halves), from_half(halves >> 16)", "from_half(halves >> 16), 0.f", WIDENED),
    Fault("attend.cu", "EIGHT_BITS ? a.factor : 1.f", "1.f", WIDENED),
    Fault("split_merge.cuh", "wait_for(shared_address(barrier), phase);", "", SELECTED),
    Fault("split_merge.cuh", OTHER_MERGED, OTHER_MERGED.replace("__syncthreads();", ""), SELECTED),
    Fault("split_merge.cuh", "    __syncthreads();\n    for (int at = ", "    for (int at = ", SELECTED),
    Fault("offload.cuh", "cpu_part(missed(i + 1)), sequence", "cpu_part(missed(i)), sequence", OFFLOADED),
    Fault("offload.cuh", "kScaleDecay = 1 / 64.f", "kScaleDecay = 1 / 32.f", SCALED),
    Fault("miss_partition.cuh", "pages.hit += hits;", "pages.hit += 1;", PARTITIONED),
    Fault("miss_partition.cuh", "fetch_latency + cpu * slowdown", "fetch_latency + cpu", PARTITIONED),
    Fault("miss_partition.cuh", "by_fetch <= by_cpu ?", "by_fetch > by_cpu ?", PARTITIONED),
    Fault("miss_partition.cuh", "= fetch_part / fetch_scale", "= fetch_part", PARTITIONED),
    Fault("miss_partition.cuh", "cpu_latency *= cpu_scale, ", "", PARTITIONED),
    Fault("miss_partition.cuh", "&& fetch_part >= hits", "", PARTITIONED),
    Fault("select_resolve.cu", COUNTED, COUNTED.removesuffix("__syncthreads();"), CHOSEN),
    Fault("select_resolve.cu", RANKED, RANKED.removesuffix("__syncthreads();"), CHOSEN),
    Fault("select_resolve.cu", "if (start > 0) __syncthreads();", "", CHOSEN),
    Fault("tail_softmax.cuh", "total[h] *= fade;", "", TAIL),
    Fault("tail_softmax.cuh", "*= fades[i % 2];", "*= fades[0];", TAIL),
    Fault("tail_softmax.cuh", "bytes >> 1", "bytes >> 2", TAIL),
    Fault("tail_softmax.cuh", "n + (s + 2 * TAIL_TILES)", "n + (s + TAIL_TILES)", TAIL),
    Fault("select_resolve.cu", "for (int g = 0; g < a.group;", "for (int g = 1; g < a.group;", EXCLUDED),
    Fault("estimate.cu", "weigh_rows(logits, left, a.inverse_scale / kStepScale);", ";", ESTIMATED),
    Fault("estimate.cu", "    multiply(products, sums.offset, steps, 0, steps, 0);\n", "", ESTIMATED),
    Fault("estimate.cu", "noise, sums.energy_rest,", "products, sums.energy_rest,", ESTIMATED),
    Fault("estimate.cu", "next = number(unit_of(turn + step));", "", ("test_cuda_estimate.py", "several_units")),
    Fault("log_shares.cu", "    __syncthreads();\n", "", ESTIMATED),
    Fault("load.cu", "            wait_until_read();\n", "", LOADED),
]  # fmt: skip


def is_found(fault: Fault) -> bool:
    """Whether a test fails on the fault.

    Raises
    ------
    ValueError
        If the source does not hold what is to be replaced, once.
    """
    text = (SOURCES / fault.source).read_text()
    if text.count(fault.text) != 1:
        raise ValueError(f"{fault.source} holds {fault.text!r} {text.count(fault.text)} times, not once")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(SOURCES, Path(folder, "cuda")))
        (copy / fault.source).write_text(text.replace(fault.text, fault.replacement))
        tests, keyword = fault.tests
        command = [sys.executable, "-m", "pytest", "-q", "-x", f"tests/kernels/{tests}", "-k", keyword]
        finished = subprocess.run(
            command, cwd=REPOSITORY, env={**os.environ, "SIMT_SOURCES": str(copy)}, capture_output=True
        )
    if finished.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(command)} did not run: {finished.stdout.decode().strip()}")
    return finished.returncode == 1


def main() -> None:
    """Try every fault and print what became of it."""
    found = 0
    for fault in FAULTS:
        caught = is_found(fault)
        found += caught
        print(
            f"{'found    ' if caught else 'NOT FOUND'}  {fault.source:<18} {fault.text.strip()!r}", flush=True
        )
    print(f"{found} of {len(FAULTS)} faults found")
    sys.exit(0 if found == len(FAULTS) else 1)


if __name__ == "__main__":
    main()
