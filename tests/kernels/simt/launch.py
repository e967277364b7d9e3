"""launch: build a kernel's source for the CPU and launch it there, as `rheo_kernels.cuda.compile` does on a GPU."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rheo_kernels.cuda import compile as on_gpu
from simt.translate import translate

SOURCES = Path(os.environ.get("SIMT_SOURCES", on_gpu.SOURCES))
HERE = Path(__file__).resolve().parent
COMPILER = os.environ.get("CXX", "g++")
OPTIONS = [
    *("-O2", "-std=c++20", "-fPIC", "-shared", "-w"),
    *("-fvisibility=hidden", "-fno-gnu-unique", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE"),
]
HEADERS = "simt.hpp"
SANITIZERS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize=shift", "--param=asan-stack=0"]
"""Of accesses to memory that torch allocated; stacks of fibers are none that they know. Where GCC 12 checks a shift and
the bounds of an array in one expression, it reads the index from nowhere."""
if os.environ.get("SIMT_SANITIZE") == "1":
    OPTIONS += SANITIZERS
RESIDENT = 3
"""Blocks at a time."""


class LaunchError(RuntimeError):
    """What a kernel did that it must not, or a wait that never ends."""


class Kernel:
    """A kernel built for the CPU.

    Parameters
    ----------
    path
        Shared library.
    """

    launches = 0
    """So far, of all kernels: the seed of the next one's order of threads."""

    def __init__(self, path: Path) -> None:
        self._launch = ctypes.CDLL(str(path)).simt_launch
        self._launch.restype = ctypes.c_bool

    def launch(
        self,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        arguments: ctypes.Structure,
        early: bool = False,
    ) -> None:
        """Run to the end; see `rheo_kernels.cuda.compile.Kernel.launch`. ``early`` changes nothing.

        Raises
        ------
        LaunchError
            If the kernel failed.
        """
        Kernel.launches += 1
        error = ctypes.create_string_buffer(500)
        failed = self._launch(
            grid[0],
            grid[1],
            threads,
            shared_bytes,
            ctypes.byref(arguments),
            Kernel.launches,
            RESIDENT,
            error,
            ctypes.c_size_t(len(error)),
        )
        if failed:
            raise LaunchError(error.value.decode())


def compile_kernel(source: str, name: str, defines: Mapping[str, int | str], shared_bytes: int = 0) -> Kernel:
    """Build a kernel of `rheo_kernels.cuda`; see `rheo_kernels.cuda.compile.compile_kernel`."""
    return _compile(source, name, tuple(sorted(defines.items())))


@functools.cache
def _compile(source: str, name: str, defines: tuple[tuple[str, int | str], ...]) -> Kernel:
    macros = [f"-D{key}={value}" for key, value in defines]
    text = _run(COMPILER, "-E", "-P", "-x", "c++", f"-I{SOURCES}", *macros, str(SOURCES / source))
    with tempfile.TemporaryDirectory() as folder:
        translated, library = Path(folder, f"{name}.cpp"), Path(folder, f"{name}.so")
        translated.write_text(f'#include "{HEADERS}"\n{translate(text)}\nSIMT_ENTRY({name})\n')
        _run(COMPILER, *OPTIONS, f"-I{_precompiled().name}", str(translated), "-o", str(library))
        return Kernel(library)


@functools.cache
def _precompiled() -> tempfile.TemporaryDirectory:
    """A folder with the emulator's headers, compiled once: they are most of what a kernel has the compiler read."""
    folder = tempfile.TemporaryDirectory()
    header = Path(folder.name, HEADERS)
    header.write_text(f'#include "{HERE / "ptx.hpp"}"\n#include "{HERE / "schedule.hpp"}"\n')
    _run(COMPILER, *OPTIONS, "-x", "c++-header", str(header), "-o", f"{header}.gch")
    return folder


def _run(*command: str) -> str:
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {finished.stderr.strip()}")
    return finished.stdout
