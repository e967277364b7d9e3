"""Settings of the CPU kernels: the variant and the number of threads, from arguments or the environment."""

from __future__ import annotations

import os

from rheo_kernels.cpu import _native

CPU_ISA = "RHEO_CPU_ISA"
"""Environment variable that names the widest variant to use."""


def available_isas() -> list[str]:
    """Instruction-set variants this machine can run, narrowest first."""
    return _native.isas()


def forced_isa() -> str | None:
    """Variant named by ``RHEO_CPU_ISA``, if any; the extension checks it."""
    return os.environ.get(CPU_ISA) or None


def placement() -> list[int]:
    """CPUs of the process's affinity mask, in the order in which threads are placed on them."""
    return _native.placement()


def default_threads() -> int:
    """Threads of a call that names none: ``RHEO_CPU_THREADS``, else one per CPU this process may use.

    Raises
    ------
    ValueError
        If ``RHEO_CPU_THREADS`` is not a number of threads.
    """
    given = os.environ.get("RHEO_CPU_THREADS")
    if not given:
        return len(placement())
    if not given.isdecimal():
        raise ValueError(f"RHEO_CPU_THREADS is '{given}'; allowed: 1 to {_native.max_threads}.")
    return checked_threads(int(given), "RHEO_CPU_THREADS")


def checked_threads(threads: int | None, name: str = "threads") -> int:
    """``threads``, or the default for None.

    Raises
    ------
    ValueError
        If it is outside 1 to the pool's limit.
    """
    if threads is None:
        return default_threads()
    if not 1 <= threads <= _native.max_threads:
        raise ValueError(f"{name} is {threads}; allowed: 1 to {_native.max_threads}.")
    return threads
