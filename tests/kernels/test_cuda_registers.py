"""CUDA C++ kernels compile for Hopper, keep what they hold in registers, and fit a multiprocessor twice.

Read from their machine code, for which NVRTC needs no GPU.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import triton
from subcentroid_cases import Geometry
from test_cuda_estimate import GEOMETRIES
from test_cuda_tail import EIGHT_BIT_SHAPE, SHAPES
from triton_cases import Shape as Case

from rheo_kernels.cuda import estimate, load, select_resolve, send_queries
from rheo_kernels.cuda.attend import Modes, _defines, _warps
from rheo_kernels.cuda.compile import compile_cubin
from rheo_kernels.cuda.shape import Shape
from rheo_kernels.types.kv_scales import EIGHT_BITS

CAPABILITY = "90"
REGISTERS = 65536
"""Of a multiprocessor."""
LITTLE = 32
"""Bytes that a thread of the largest kernels may spill."""
BF16 = torch.bfloat16
ALL = Modes(dense=False, fetch=True, cpu=True, tail=True)
MODES = {
    "dense": Modes(True, False, False),
    "hits": Modes(False, False, False),
    "hits-tail": Modes(False, False, False, True),
    "misses": Modes(False, True, False),
    "misses-tail": Modes(False, True, False, True),
    "cpu": Modes(False, True, True),
}
SERVED = [
    *(pytest.param(Shape(128, 32, 4, BF16, BF16), modes, id=name) for name, modes in MODES.items()),
    *(
        pytest.param(Shape(128, 32, 4, BF16, EIGHT_BITS), MODES[name], id=f"{name}-8-bits")
        for name in ("dense", "cpu")
    ),
]
VARIANTS = dict.fromkeys(
    select_resolve.block_shape(1 << bits) for bits in range(select_resolve.MAX_PAGES.bit_length())
)
"""Threads and items of every variant of `select_resolve`."""


class Usage(NamedTuple):
    """What one thread of a kernel takes."""

    registers: int
    stack: int
    """Bytes of local memory, to which registers spill."""


def usage(source: str, defines: Mapping[str, int | str], folder: Path) -> Usage:
    """Of a source's only kernel, which is left in a folder."""
    file = folder / "kernel.cubin"
    file.write_bytes(compile_cubin(source, tuple(defines.items()), CAPABILITY))
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    ((registers, stack),) = re.findall(r"REG:(\d+) STACK:(\d+)", printed.stdout + printed.stderr)
    return Usage(int(registers), int(stack))


@pytest.mark.parametrize(("threads", "items"), VARIANTS)
def test_a_selection_is_kept_in_registers(threads: int, items: int, tmp_path: Path) -> None:
    macros = select_resolve.defines(threads, items)
    assert usage(select_resolve.SOURCE, macros, tmp_path).stack == 0


@pytest.mark.parametrize(
    ("geometry", "paired"),
    [
        pytest.param(geometry, paired, id=f"{geometry}{'-pairs' if paired else ''}")
        for geometry in GEOMETRIES
        for paired in (False, True)[: 1 + (geometry.group <= estimate.MOST_PAIRED_GROUP)]
    ],
)
def test_estimates_are_kept_in_registers(geometry: Geometry, paired: bool, tmp_path: Path) -> None:
    macros = estimate.defines(geometry.layout, geometry.group, geometry.dtype, paired)
    assert usage(estimate.SOURCE, macros, tmp_path).stack == 0


@pytest.mark.parametrize("group", sorted({geometry.group for geometry in GEOMETRIES}))
def test_shares_are_kept_in_registers(group: int, tmp_path: Path) -> None:
    assert usage(estimate.SHARES_SOURCE, estimate.share_defines(group), tmp_path).stack == 0


@pytest.mark.parametrize("page", [(64, 16), (128, 32), (256, 64)], ids=str)
def test_what_copies_pages_and_queries_keeps_everything_in_registers(
    page: tuple[int, int], tmp_path: Path
) -> None:
    dim, tokens = page
    assert usage("load.cu", load.defines(4 * dim * tokens)[0], tmp_path).stack == 0
    assert usage("send_queries.cu", send_queries.defines(32, dim), tmp_path).stack == 0


@pytest.mark.parametrize(("shape", "modes"), SERVED)
def test_attention_is_kept_in_registers(shape: Shape, modes: Modes, tmp_path: Path) -> None:
    registers, stack = usage("attend.cu", _defines(shape, modes), tmp_path)
    assert stack == 0
    assert 2 * 32 * _warps(shape, modes) * registers <= REGISTERS, "two blocks fit"


@pytest.mark.parametrize("case", [*SHAPES, EIGHT_BIT_SHAPE], ids=str)
def test_two_blocks_that_attend_all_there_is_fit_a_multiprocessor(case: Case, tmp_path: Path) -> None:
    shape = Shape(case.dim, case.page_size, case.group, case.dtype, case.kv)
    registers, stack = usage("attend.cu", _defines(shape, ALL), tmp_path)
    assert 2 * 32 * _warps(shape, ALL) * registers <= REGISTERS
    assert stack <= LITTLE
