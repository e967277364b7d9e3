"""busy_factor: by how much limits of time are to grow on a machine that has other work."""

from __future__ import annotations

import os


def busy_factor() -> float:
    """How many times as long work takes on this machine now, by its load over the last minute: at least 1."""
    return max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
