"""pinned: host memory that a GPU reads and writes, of any size, in pieces."""

from __future__ import annotations

import logging
import mmap
import os
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from rheo_sglang.errors import ConfigError
from rheo_sglang.pools.dram import available_dram
from rheo_sglang.pools.memory import map_memory

logger = logging.getLogger(__name__)

GIB = 1 << 30
PIECE_BYTES = 2 * GIB
PORTABLE_AND_MAPPED = 3
REPORT_SECONDS = 5.0


def pinned_zeros(shape: tuple[int, ...], dtype: torch.dtype, piece_bytes: int = PIECE_BYTES) -> torch.Tensor:
    """Allocate zeroed host memory and pin it, with a line of progress every few seconds.

    torch's own allocator rounds pinned memory up to a power of two, which for a host pool can be all of DRAM.

    Parameters
    ----------
    shape, dtype
        Of the tensor.
    piece_bytes
        How much is touched, by all cores, and pinned at a time.

    Raises
    ------
    ConfigError
        If the memory cannot be had or pinned; says how much was asked for and how much is available.

    Notes
    -----
    Kernels reach all of it; a single copy by the driver must not cross from one piece into the next.
    Pages are huge where the operating system offers transparent ones. A forked child does not have the memory. It is
    unpinned when the tensor and its views are gone.
    """
    size = int(np.prod(shape)) * dtype.itemsize
    available = available_dram()
    try:
        data = map_memory(size, forked=False)
    except (OSError, OverflowError) as error:
        raise _failed(size, 0, available, str(error)) from None
    tensor = torch.from_numpy(data)
    runtime = torch.cuda.cudart()
    start = reported = time.monotonic()
    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores) as pool:
        for low in range(0, size, piece_bytes):
            piece = data[low : min(low + piece_bytes, size)]
            list(pool.map(_touch, np.array_split(piece, cores)))
            outcome = runtime.cudaHostRegister(tensor.data_ptr() + low, piece.size, PORTABLE_AND_MAPPED)
            if int(outcome) != 0:
                raise _failed(size, low, available, f"CUDA: {runtime.cudaGetErrorString(outcome)}")
            weakref.finalize(data, _unpin, tensor.data_ptr() + low).atexit = False
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                logger.info(
                    "rheo: pinned %.1f of %.1f GiB of host memory", (low + piece.size) / GIB, size / GIB
                )
    logger.info("rheo: pinned %.1f GiB of host memory in %.1f s", size / GIB, time.monotonic() - start)
    return tensor[:size].view(dtype).view(shape)


def _touch(piece: np.ndarray) -> None:
    """Have the operating system provide every page of a piece."""
    piece[:: mmap.PAGESIZE] = 0


def _unpin(pointer: int) -> None:
    """Unpin a piece whose last owner is gone, while its memory is still there."""
    torch.cuda.cudart().cudaHostUnregister(pointer)


def _failed(size: int, pinned: int, available: int, reason: str) -> ConfigError:
    return ConfigError(
        f"rheo: the host pool takes {size / GIB:.2f} GiB of pinned memory, of which {pinned / GIB:.2f} GiB could be "
        f"had ({reason}; {available / GIB:.2f} GiB of DRAM were available); allowed: a smaller host_pool_gib, "
        "host_pool_ratio or --max-total-tokens, or a higher limit of locked memory"
    )
