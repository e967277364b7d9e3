"""Triton kernels run on the GPU where there is one, and in Triton's interpreter where there is none."""

from __future__ import annotations

import importlib
import os
import sys

import pytest
import torch

GPU = torch.cuda.is_available()
LATE = not GPU and "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1"

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
def rng(device: str) -> torch.Generator:
    return torch.Generator(device).manual_seed(torch.initial_seed() % 2**31)
