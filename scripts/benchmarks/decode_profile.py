"""Where a decode step's time goes on a GPU, by kernel, from a trace of the torch profiler."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
ONCE_A_LAYER = "rope"
"""In the name of a kernel that every layer launches once."""
MOST_KERNELS = 40
LONGEST_NAME = 90


def gpu_events(trace: Path) -> list[dict[str, Any]]:
    """Kernels and copies of a gzipped Chrome trace, by when they began; ``ts`` and ``dur`` are microseconds."""
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return sorted((event for event in events if event.get("cat") in ON_GPU), key=lambda event: event["ts"])


def kernel_profile(events: list[dict[str, Any]], layers: int) -> dict[str, Any]:
    """Time of every kernel and copy per decode step, and of the step (us), and how much of it none ran.

    Parameters
    ----------
    events
        What `gpu_events` returned.
    layers
        Of the model.
    """
    totals: dict[str, list[float]] = {}
    busy, reached = 0.0, events[0]["ts"]
    for event in events:
        totals.setdefault(event["name"], []).append(event["dur"])
        end = event["ts"] + event["dur"]
        busy += max(0.0, end - max(reached, event["ts"]))
        reached = max(reached, end)
    span = reached - events[0]["ts"]
    steps = max(len(times) for name, times in totals.items() if ONCE_A_LAYER in name) / layers
    longest = sorted(totals.items(), key=lambda item: -sum(item[1]))[:MOST_KERNELS]
    return {
        "steps": steps,
        "us_per_step": span / steps,
        "idle_us_per_step": (span - busy) / steps,
        "kernels": {
            name[:LONGEST_NAME]: {"us_per_step": sum(times) / steps, "launches_per_step": len(times) / steps}
            for name, times in longest
        },
    }
