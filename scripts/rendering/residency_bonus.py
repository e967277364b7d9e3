#!/usr/bin/env python3
"""Draw the table of docs/traces.md on a preference for pages that have a frame, from residency_bonus_cpu.json.

PYTHONPATH=scripts python -m rendering.residency_bonus
"""

from __future__ import annotations

import json
import math
from typing import Any

from common.measurement import RESULTS
from rendering.marked_page import fill
from rendering.replay import PAGE
from rendering.results import provenance, table

NAME = "residency_bonus_cpu"


def ratio(found: dict[str, float]) -> str:
    """KL over that of the least budget without a bonus, and its 95 % interval."""
    middle, around = found["log_ratio"], found["log_ratio_ci"]
    if middle == around == 0:
        return "1"
    low, high = math.exp(middle - around), math.exp(middle + around)
    return f"{math.exp(middle):.2f} ({low:.2f}, {high:.2f})"


def tables(result: dict[str, Any]) -> str:
    """A row for each budget and bonus."""
    rows = []
    for budget, bonuses in result["metrics"]["budgets"].items():
        for bonus, found in bonuses.items():
            rows.append(
                [
                    f"{float(budget):.1%}",
                    "none" if float(bonus) == 0 else f"{bonus} nats",
                    f"{found['hit_rate']:.3f}",
                    f"{found['misses']:.2f}",
                    f"{found['loaded']:.2f}",
                    f"{found['kl']:.4f}",
                    ratio(found),
                    f"{found['same']:.3f}",
                    f"{found['covered']:.3f}",
                ]
            )
    header = ["budget", "bonus", "hit rate", "misses", "given a frame", "KL", "KL over the first row's"]
    header += ["same top", "attention selected"]
    return "\n\n".join([table(header, rows), provenance(result)])


def main() -> None:
    """Replace what stands between the markers of the page."""
    fill(PAGE, NAME, tables(json.loads((RESULTS / f"{NAME}.json").read_text())))


if __name__ == "__main__":
    main()
