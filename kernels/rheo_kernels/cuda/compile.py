"""compile: CUDA C++ sources to kernels of the current device, through NVRTC and the driver."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from pathlib import Path

import torch

SOURCES = Path(__file__).resolve().parent


class UnavailableError(RuntimeError):
    """CUDA C++ kernels cannot be compiled or loaded here; the message says why."""


class Kernel:
    """A kernel loaded on the current device.

    Parameters
    ----------
    function
        Driver handle.
    registers, spilled
        Registers of a thread, and bytes of local memory that it spills to.
    """

    def __init__(self, function: int, registers: int, spilled: int) -> None:
        self.function = function
        self.registers = registers
        self.spilled = spilled

    def launch(
        self,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        arguments: ctypes.Structure,
        early: bool = False,
    ) -> None:
        """Launch on the current stream; captured in graphs like any kernel.

        Parameters
        ----------
        grid
            Blocks along x, y and z.
        threads
            Threads of a block.
        shared_bytes
            Dynamic shared memory of a block.
        arguments
            The kernel's only parameter, a struct passed by value.
        early
            Let it begin before the kernel in front of it in the stream has ended; it waits by itself (programmatic
            dependent launch). That kernel must be all that it waits for.
        """
        from cuda.bindings import driver

        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
        config.sharedMemBytes = shared_bytes
        config.hStream = torch.cuda.current_stream().cuda_stream
        if early:
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            config.attrs, config.numAttrs = [attribute], 1
        _check(driver.cuLaunchKernelEx(config, self.function, ctypes.addressof(pointers), 0))


def compile_kernel(source: str, name: str, defines: Mapping[str, int | str], shared_bytes: int = 0) -> Kernel:
    """Compile ``source`` for the current device and load its kernel ``name``; once for each set of arguments.

    Parameters
    ----------
    source
        File in this folder. It includes nothing but files of this folder.
    name
        An ``extern "C" __global__`` function.
    defines
        Macros.
    shared_bytes
        Most dynamic shared memory of a launch.

    Raises
    ------
    UnavailableError
        If ``cuda.bindings`` or NVRTC is missing, or the source does not compile.
    """
    return _compile(source, name, tuple(sorted(defines.items())), shared_bytes, torch.cuda.current_device())


@functools.cache
def _compile(
    source: str, name: str, defines: tuple[tuple[str, int | str], ...], shared_bytes: int, device: int
) -> Kernel:
    capability = "{}{}".format(*torch.cuda.get_device_capability(device))
    cubin = compile_cubin(source, defines, capability)
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise UnavailableError(f"cuda.bindings is missing: {error}") from error
    torch.cuda.current_stream()
    (module,) = _check(driver.cuModuleLoadData(cubin))
    (function,) = _check(driver.cuModuleGetFunction(module, name.encode()))
    attribute = driver.CUfunction_attribute
    if shared_bytes:
        _check(
            driver.cuFuncSetAttribute(
                function, attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes
            )
        )
    (registers,) = _check(driver.cuFuncGetAttribute(attribute.CU_FUNC_ATTRIBUTE_NUM_REGS, function))
    (spilled,) = _check(driver.cuFuncGetAttribute(attribute.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, function))
    return Kernel(function, registers, spilled)


def compile_cubin(source: str, defines: tuple[tuple[str, int | str], ...], capability: str) -> bytes:
    """Machine code of a source for a compute capability such as ``"90"``; needs no GPU.

    Raises
    ------
    UnavailableError
        If NVRTC is missing, or refuses the source; the message ends with its log.
    """
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise UnavailableError(f"cuda.bindings is missing: {error}") from error
    try:
        (program,) = _check(
            nvrtc.nvrtcCreateProgram((SOURCES / source).read_bytes(), source.encode(), 0, [], [])
        )
    except RuntimeError as error:
        raise UnavailableError(f"NVRTC is not usable: {error}") from error
    options = [
        f"--gpu-architecture=sm_{capability}",
        "--std=c++17",
        f"--include-path={SOURCES}",
        *(f"--define-macro={key}={value}" for key, value in defines),
    ]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        (size,) = _check(nvrtc.nvrtcGetProgramLogSize(program))
        log = b" " * size
        _check(nvrtc.nvrtcGetProgramLog(program, log))
        raise UnavailableError(f"{source} does not compile: {log.decode(errors='replace').strip()}")
    (size,) = _check(nvrtc.nvrtcGetCUBINSize(program))
    cubin = b" " * size
    _check(nvrtc.nvrtcGetCUBIN(program, cubin))
    _check(nvrtc.nvrtcDestroyProgram(program))
    return cubin


def _check(result: tuple) -> tuple:
    """What a call of the bindings returned besides its status, which must be success."""
    status, *values = result
    if int(status) != 0:
        raise RuntimeError(f"{type(status).__name__} {status.name}")
    return tuple(values)
