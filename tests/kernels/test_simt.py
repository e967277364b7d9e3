"""Kernels that do what they must not are stopped on the CPU, too; the faults that tests are tried with still fit."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import pytest
import simt
import torch
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


ARITHMETIC = """
#include "words.cuh"
struct Arguments { const u32* a; const u32* b; u32* out; };
extern "C" __global__ void arithmetic(const Arguments a) {
    const int lane = threadIdx.x;
    const u32 x = a.a[lane], y = a.b[lane];
    u32* const out = a.out + lane;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(out[0]) : "r"(x), "r"(y));
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(out[32]) : "r"(x), "r"(y));
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out[64]) : "r"(x), "r"(y), "r"(x));
    asm("max.bf16x2 %0, %1, %2;" : "=r"(out[96]) : "r"(x), "r"(y));
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(out[128]) : "r"(x), "r"(y), "r"(0x64006400u), "n"(0xea));
}
"""
PRODUCT = """
#include "words.cuh"
struct Arguments { const float* a; const float* b; float* out; };
extern "C" __global__ void product(const Arguments a) {
    const int row = threadIdx.x / 4, column = threadIdx.x % 4;
    float c[4] = {};
    u32 left[4], right[2];
    for (int i = 0; i < 4; ++i) {
        const float x = a.a[(row + i % 2 * 8) * 8 + column + i / 2 * 4];
        asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(left[i]) : "f"(x));
    }
    for (int i = 0; i < 2; ++i) right[i] = __float_as_uint(a.b[(column + 4 * i) * 8 + row]);
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
    for (int i = 0; i < 4; ++i) a.out[(row + i / 2 * 8) * 8 + 2 * column + i % 2] = c[i];
}
"""


class Addresses(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("a", "b", "out"))


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources, to which a test adds."""
    copy = Path(shutil.copytree(launch.SOURCES, tmp_path / "cuda"))
    monkeypatch.setattr(launch, "SOURCES", copy)
    return copy


def run(kernel: str, source: str, sources: Path, *tensors: torch.Tensor) -> None:
    name = f"{sources.parent.name}.cu"
    (sources / name).write_text(source)
    addresses = Addresses(*(tensor.data_ptr() for tensor in tensors))
    simt.compile_kernel(name, kernel, {}).launch((1, 1, 1), 32, 0, addresses)


def test_arithmetic_of_pairs_is_rounded_once(sources: Path) -> None:
    a, b = (8 * torch.randn(64)).half(), torch.randn(64).half()
    out = torch.empty((5, 32), dtype=torch.int32)
    run("arithmetic", ARITHMETIC, sources, a, b, out)
    x, y = a.double(), b.double()
    for row, exact in enumerate((x - y, x * y, x * y + x)):
        assert torch.equal(out[row].view(torch.float16), exact.half())
    pairs = torch.maximum(a.view(torch.bfloat16), b.view(torch.bfloat16))
    assert torch.equal(out[3].view(torch.bfloat16), pairs)
    assert torch.equal(out[4], a.view(torch.int32) & b.view(torch.int32) | 0x64006400)


def test_a_product_in_tf32_ignores_the_last_bits(sources: Path) -> None:
    a, b = torch.randn(16, 8), torch.randn(8, 8)
    out = torch.empty(16, 8)
    run("product", PRODUCT, sources, a, b, out)
    rounded = ((a.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
    cut = (b.view(torch.int32) & ~0x1FFF).view(torch.float32)
    torch.testing.assert_close(out, rounded @ cut, atol=1e-6, rtol=1e-6)
