"""Kernels run on the GPU where there is one; else Triton's in its interpreter, and those in CUDA C++ in `simt`."""

from __future__ import annotations

import importlib
import os
import sys
from types import SimpleNamespace

import pytest
import simt
import torch
from triton_cases import GPU

LATE = not GPU and "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1"
PROCESSORS = 132
"""Multiprocessors of the GPU that `simt` stands in for."""

if not GPU and not LATE:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("rheo_kernels.triton")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if GPU:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    if LATE:
        pytest.fail("triton was imported before its interpreter was switched on: set TRITON_INTERPRET=1")
    if GPU:
        return "cuda"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return "cpu"


@pytest.fixture
def cuda_kernels(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA C++ kernels run on the GPU where there is one, and on the CPU, one fiber a thread, where there is none.

    ``SIMT_SEED`` draws another order of their threads.
    """
    if GPU:
        return
    simt.Kernel.launches = int(os.environ.get("SIMT_SEED", "0"))
    for name in ("attend", "load", "select_resolve", "send_queries"):
        module = importlib.import_module(f"rheo_kernels.cuda.{name}")
        monkeypatch.setattr(module, "compile_kernel", simt.compile_kernel)
    properties = SimpleNamespace(multi_processor_count=PROCESSORS)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


@pytest.fixture
def rng(device: str) -> torch.Generator:
    return torch.Generator(device).manual_seed(torch.initial_seed() % 2**31)
