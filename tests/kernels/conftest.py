"""Kernels in CUDA C++ run on the GPU where there is one, else on the CPU in `simt`."""

from __future__ import annotations

import importlib
import os
from types import SimpleNamespace

import pytest
import simt
import torch
from triton_cases import GPU

PROCESSORS = 132
"""Multiprocessors of the GPU that `simt` stands in for."""


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
