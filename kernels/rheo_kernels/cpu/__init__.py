"""cpu: decode attention over host pages, and estimates of it, on the CPU, in C++; importable without CUDA.

Layouts, shape letters and results are those of ``rheo_kernels.reference``. Environment variables:

``RHEO_CPU_ISA``
    Widest instruction-set variant to use: ``amx_bf16``, ``avx512_bf16``, ``avx512f``, ``avx2`` or ``generic``.
    Without it a call takes the widest one that the machine has; a server sets it to the fastest. The two bfloat16
    variants take bfloat16 queries, and pages in bfloat16 or 8 bits; other dtypes go to the next narrower one.
``RHEO_CPU_THREADS``
    Threads, the caller among them. Without it one per CPU of the process's affinity mask.
"""

from rheo_kernels.cpu.attend import attend
from rheo_kernels.cpu.doorbell import Doorbell
from rheo_kernels.cpu.estimate import estimate
from rheo_kernels.cpu.probe import fastest_isa
from rheo_kernels.cpu.settings import CPU_ISA, available_isas, default_threads, placement
from rheo_kernels.cpu.task import Task

__all__ = [
    "CPU_ISA",
    "Doorbell",
    "Task",
    "attend",
    "available_isas",
    "default_threads",
    "estimate",
    "fastest_isa",
    "placement",
]
