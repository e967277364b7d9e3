"""StorageCounters: what the storage tier did since the start."""

from __future__ import annotations

import threading

NAMES = (
    "pages_offered",
    "pages_written",
    "bytes_written",
    "pages_already_stored",
    "pages_dropped",
    "pages_freed_first",
    "write_errors",
    "prefixes_asked_for",
    "prefixes_found",
    "pages_found",
    "pages_read",
    "bytes_read",
    "pages_restored",
    "pages_corrupt",
    "pages_missing",
    "read_errors",
    "prefetches_cut",
    "prefetches_declined",
)
"""In the order in which they are told; docs/report.md says what each one counts."""


class StorageCounters:
    """Totals by name; any thread may add to them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = dict.fromkeys(NAMES, 0)

    def add(self, name: str, count: int = 1) -> None:
        """Add to a total. Raises KeyError for a name that is not in `NAMES`."""
        with self._lock:
            self._totals[name] += count

    def __getitem__(self, name: str) -> int:
        return self._totals[name]

    def report(self) -> dict[str, int]:
        """All totals."""
        with self._lock:
            return dict(self._totals)
