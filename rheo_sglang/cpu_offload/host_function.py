"""host_function: C functions as work of a CUDA stream, captured in graphs like a kernel."""

from __future__ import annotations

import ctypes
import functools

import torch


@functools.cache
def _launch() -> ctypes._NamedFuncPointer:
    launch = ctypes.CDLL("libcuda.so.1").cuLaunchHostFunc
    launch.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    launch.restype = ctypes.c_int
    return launch


def launch_host_function(function: int, argument: int) -> None:
    """Have the driver call ``function(argument)`` once the current stream gets there; the stream waits for it.

    Parameters
    ----------
    function
        Address of a C function ``void (void *)`` that calls nothing of CUDA.
    argument
        Address that it is given; must stay valid for as long as a graph that captured the call lives.

    Raises
    ------
    RuntimeError
        If the driver refuses.
    """
    error = _launch()(torch.cuda.current_stream().cuda_stream, function, argument)
    if error != 0:
        raise RuntimeError(f"cuLaunchHostFunc failed with CUDA error {error}")
