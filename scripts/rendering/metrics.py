#!/usr/bin/env python3
"""Write the table of metrics in docs/metrics.md.

PYTHONPATH=scripts python -m rendering.metrics
"""

from __future__ import annotations

from common.measurement import REPOSITORY
from rendering.marked_page import fill
from rheo_sglang.observability.catalogue import METRICS, PREFIX

PAGE = REPOSITORY / "docs" / "metrics.md"


def table() -> str:
    """A row per metric: its name, label, kind and meaning."""
    rows = ["| metric | label | kind | meaning |", "|---|---|---|---|"]
    for name, metric in METRICS.items():
        label = f"`{metric.label}`" if metric.label else ""
        rows.append(f"| `{PREFIX}{name}` | {label} | {metric.kind} | {metric.meaning} |")
    return "\n".join(rows)


if __name__ == "__main__":
    fill(PAGE, "metrics", table())
