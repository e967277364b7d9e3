"""CUDA C++ kernels of the decode path, compiled by NVRTC when first used; for NVIDIA GPUs of compute capability 9.0 on.

They do what the Triton kernels of the same names do, where Triton falls short of the hardware; `load` finds what was
admitted among the candidates by itself, and `send_queries` has no counterpart.
"""

from rheo_kernels.cuda.compile import Kernel, UnavailableError, compile_kernel

__all__ = ["Kernel", "UnavailableError", "compile_kernel"]
