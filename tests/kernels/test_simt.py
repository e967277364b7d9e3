"""Kernels that do what they must not are stopped on the CPU, too; the faults that tests are tried with still fit."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import pytest
import simt
from simt import faults, launch

KERNEL = """
#include "bulk_copy.cuh"
struct Arguments { int number; };
extern "C" __global__ void faulty(const Arguments a) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ __align__(8) u64 barrier;
    BODY
}
"""
COPY = "if (threadIdx.x == 0) { make_barrier(&barrier); start_copy(TARGET, SOURCE, 64, shared_address(&barrier)); }"


class Arguments(ctypes.Structure):
    _fields_ = (("number", ctypes.c_int),)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (a.number == 7) __trap();", r"trap \(block"),
        ("threadIdx.x % 2 ? __shfl_sync(kAll, 1, 0) : __any_sync(kAll, true);", "lanes of a warp wait for"),
        ("__shfl_sync(0xffffu, 1, 0);", "for some lanes only"),
        (COPY.replace("TARGET", "shared_address(memory) + 64").replace("SOURCE", "4096"), "beyond the block"),
        (COPY.replace("TARGET", "shared_address(memory)").replace("SOURCE", "4100"), "not aligned to 16"),
        (COPY.replace("TARGET", "shared_address(&a)").replace("SOURCE", "4096"), "not of shared memory"),
    ],
)  # fmt: skip
def test_what_a_kernel_must_not_do_is_said(
    body: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = Path(shutil.copytree(launch.SOURCES, tmp_path / "cuda"))
    (sources / f"{tmp_path.name}.cu").write_text(KERNEL.replace("BODY", body))
    monkeypatch.setattr(launch, "SOURCES", sources)
    kernel = simt.compile_kernel(f"{tmp_path.name}.cu", "faulty", {})
    with pytest.raises(simt.LaunchError, match=message):
        kernel.launch((2, 1, 1), 64, 112, Arguments(7))


@pytest.mark.parametrize(
    "fault", faults.FAULTS, ids=lambda fault: f"{fault.source}-{fault.text.strip()[:30]}"
)
def test_every_fault_fits_its_source(fault: faults.Fault) -> None:
    assert (launch.SOURCES / fault.source).read_text().count(fault.text) == 1
