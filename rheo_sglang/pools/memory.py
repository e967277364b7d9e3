"""map_memory: zeroed host memory in huge pages where the operating system offers transparent ones."""

from __future__ import annotations

import mmap

import numpy as np


def map_memory(size: int, forked: bool = True) -> np.ndarray:
    """Map memory that is provided when it is first touched.

    Parameters
    ----------
    size
        Bytes.
    forked
        Whether children have it too. Memory that a device has pinned would be copied for them.

    Returns
    -------
    numpy.ndarray
        Its bytes, at least one; unmapped with the last view.

    Raises
    ------
    OSError, OverflowError
        If the address space cannot be had.

    Notes
    -----
    The mapping is private, for shared ones rarely get huge pages. Scattered pages of KV are read a few percent faster
    where they are huge, as there are fewer translations to look up.
    """
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for name in ("MADV_HUGEPAGE", *(() if forked else ("MADV_DONTFORK",))):
        if hasattr(mmap, name):
            memory.madvise(getattr(mmap, name))
    return np.frombuffer(memory, dtype=np.uint8)
