"""device_memory: how much of a GPU's memory is in use, by anyone, and its peak while something runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

GIB = 1 << 30
PERIOD_S = 0.05
REPORT_S = 10.0


def used_bytes() -> int:
    """Bytes of the current GPU that are in use by all processes together."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return total - free


class DeviceMemory:
    """Samples the memory in use in a thread, from `__enter__` to `__exit__`, and prints it now and then.

    Parameters
    ----------
    read
        What to sample, in bytes.
    period_s
        Seconds between samples; a peak that is shorter can be missed. torch gives memory that it has taken back to the
        device only when asked to, so what it takes stays to be seen.
    """

    def __init__(self, read: Callable[[], int] = used_bytes, period_s: float = PERIOD_S) -> None:
        self.read = read
        self.period_s = period_s
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._peak = read()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> DeviceMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def take_peak(self) -> int:
        """Most bytes in use since the start or the last call."""
        with self._lock:
            now = self.read()
            peak = max(self._peak, now)
            self._peak = now
        return peak

    def _sample(self) -> None:
        reported = time.monotonic()
        while not self._stop.wait(self.period_s):
            with self._lock:
                self._peak = max(self._peak, self.read())
                peak = self._peak
            if time.monotonic() - reported > REPORT_S:
                reported = time.monotonic()
                print(f"device memory in use: {peak / GIB:.2f} GiB at most so far", flush=True)
