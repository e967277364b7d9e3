"""simt: CUDA C++ kernels run on the CPU, one fiber a thread, where there is no GPU."""

from simt.launch import Kernel, LaunchError, compile_kernel

__all__ = ["Kernel", "LaunchError", "compile_kernel"]
