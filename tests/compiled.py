"""Triton's kernels compiled for Hopper on a machine without a GPU: what a test launches is compiled, and not run.

    RHEO_COMPILED=FILE.json pytest tests/kernels

Tests go on with what was in their tensors before, so what they say of results means nothing. The file has the names of
the kernels that were launched, with the device functions that they were given, and what the compiler said of those that
it refused. A kernel is compiled as it is launched first, for its dtypes and sizes there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

WARP = 32
CAPABILITY = 90


class Hopper:
    """Stands in for a driver: kernels are compiled for this GPU, and nobody asks it for more."""

    def get_current_target(self) -> Any:
        """What kernels are compiled for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", CAPABILITY, WARP)

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The only one."""
        return 0


class Compiled:
    """What was compiled in a session.

    Parameters
    ----------
    file
        Where it is written when the session ends.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.refused: dict[str, str | None] = {}

    def compile_kernels(self) -> None:
        """Have launches compile, from now on."""
        from triton.runtime import driver, jit

        driver.set_active(Hopper())  # type: ignore[arg-type]
        run = jit.JITFunction.run

        def launch(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
            given = [value for value in (*args, *options.values()) if isinstance(value, jit.JITFunction)]
            name = ".".join((kernel.fn.__module__, kernel.fn.__name__, *(one.fn.__name__ for one in given)))
            if name in self.refused:
                return
            self.refused[name] = None
            try:
                run(kernel, *args, grid=grid, warmup=True, **options)
            except Exception as error:
                self.refused[name] = f"{type(error).__name__}: {error}"
                raise

        jit.JITFunction.run = launch  # type: ignore[method-assign]

    @pytest.hookimpl
    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        self.file.write_text(json.dumps(self.refused, indent=1) + "\n")
