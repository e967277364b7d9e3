"""What all tests share: random numbers, hypothesis profiles, the kernels' device, the limit of a test, and `--full`.

Triton's kernels run on the GPU where there is one, else in its interpreter, or are only compiled (`compiled`). Whether
a kernel is interpreted is decided where it is defined, so those of the project are imported here, before any test is.
"""

from __future__ import annotations

import importlib
import os
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import failures_at_once
import pytest
import torch
from compiled import Compiled
from hypothesis import HealthCheck, settings
from interpreted import interpret_kernels

from checks.machine import busy_factor
from environment.create import SGLANG_VERSIONS

TEST_LIMIT, SERVER_TEST_LIMIT = 300.0, 900.0
"""Seconds that one test may take with its fixtures on a machine without other work."""

settings.register_profile(
    "local", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

os.environ.setdefault(
    "TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache" / "torch_extensions" / f"sglang-{version('sglang')}")
)
"""SGLang's versions compile extensions of one name; in one folder, each would compile it anew."""

GPU = torch.cuda.is_available()
PROCESSORS = 24
"""Multiprocessors of the GPU that `simt` stands in for: few, for the blocks that fill it are run after each other."""

COMPILED = None if GPU or "RHEO_COMPILED" not in os.environ else Compiled(Path(os.environ["RHEO_COMPILED"]))

if COMPILED is not None:
    COMPILED.compile_kernels()
elif not GPU:
    interpret_kernels()


def pytest_configure(config: pytest.Config) -> None:
    failures_at_once.pytest_configure(config)
    if COMPILED is not None:
        config.pluginmanager.register(COMPILED)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run tests marked `full` too")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only `--full` runs here, and give every test its limit, longer on a busy machine."""
    if not config.getoption("--full"):
        left_out = {"full"} if version("sglang") == SGLANG_VERSIONS[-1] else {"full", "newest"}
        chosen = [item for item in items if not left_out & {mark.name for mark in item.iter_markers()}]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen
    for item in items:
        if item.get_closest_marker("gpu") and not GPU:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    if config.pluginmanager.hasplugin("timeout"):
        busy = busy_factor()
        for item in items:
            if item.get_closest_marker("timeout") is None:
                limit = SERVER_TEST_LIMIT if item.get_closest_marker("server") else TEST_LIMIT
                item.add_marker(pytest.mark.timeout(limit * busy))


@pytest.fixture(autouse=True)
def seed() -> None:
    """Give every test the same random numbers, whichever tests run before it."""
    torch.manual_seed(0)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    """Where tensors live that Triton's kernels are given."""
    if GPU:
        return "cuda"
    if COMPILED is None:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    return "cpu"


@pytest.fixture
def rng(device: str) -> torch.Generator:
    """Random numbers on the device."""
    return torch.Generator(device).manual_seed(torch.initial_seed() % 2**31)


@pytest.fixture
def cuda_kernels(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA C++ kernels run on the GPU where there is one, and on the CPU, one fiber a thread, where there is none.

    ``SIMT_SEED`` draws another order of their threads.
    """
    if GPU:
        return
    import simt

    simt.Kernel.launches = int(os.environ.get("SIMT_SEED", "0"))
    for name in ("attend", "estimate", "load", "select_resolve", "send_queries"):
        module = importlib.import_module(f"rheo_kernels.cuda.{name}")
        monkeypatch.setattr(module, "compile_kernel", simt.compile_kernel)
    properties = SimpleNamespace(multi_processor_count=PROCESSORS)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
