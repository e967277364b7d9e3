"""decode_profile: kernels of a trace by step."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.decode_profile import gpu_events, kernel_profile

LAYERS, STEPS, LAYER_US, HEAD_US = 3, 4, 100.0, 400.0


def kernel(name: str, begin: float, duration: float) -> dict[str, Any]:
    return {"cat": "kernel", "name": name, "ts": begin, "dur": duration}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Steps of layers that rope, attend twice and load beside that, and of an output head after them."""
    events: list[dict[str, Any]] = [{"cat": "cpu_op", "name": "rope", "ts": 0, "dur": 1}]
    for step in range(STEPS):
        begin = step * (LAYERS * LAYER_US + HEAD_US)
        for layer in range(LAYERS):
            now = begin + layer * LAYER_US
            events += [
                kernel("load", now + 30 + layer, 50),
                kernel("fused_rope", now, 5),
                kernel("attend", now + 10, 20),
                kernel("attend", now + 60, 30 + layer),
            ]
            if step == layer == 0:
                events.append(kernel("seldom", now + 50, 1))
        events.append(kernel("head", begin + LAYERS * LAYER_US, HEAD_US - 50))
    path = tmp_path / "trace.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    return path


def test_profile_counts_every_kernel_and_idle_time_once(trace: Path) -> None:
    found = kernel_profile(gpu_events(trace), LAYERS)
    assert found["steps"] == STEPS
    assert found["kernels"]["load"] == {"us_per_step": 150.0, "launches_per_step": 3.0}
    assert found["kernels"]["attend"] == {"us_per_step": 153.0, "launches_per_step": 6.0}
    # Idle are 5 us before the first attention, those from 30 us to the load, and the end of the layer and of the step.
    assert found["idle_us_per_step"] == pytest.approx(
        3 * 5 + (0 + 1 + 2) + (10 + 9 + 8) + 50 * (STEPS - 1) / STEPS
    )
