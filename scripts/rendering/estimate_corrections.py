#!/usr/bin/env python3
"""Draw the table of docs/quality.md on corrected estimates, from estimate_corrections_smollm2.json.

PYTHONPATH=scripts python -m rendering.estimate_corrections
"""

from __future__ import annotations

import json
import math
from typing import Any

from common.measurement import RESULTS
from rendering.marked_page import fill
from rendering.quality import PAGE
from rendering.results import provenance, table

NAME = "estimate_corrections_smollm2"
WAYS = {
    "plain": "estimates",
    "corrected": "corrected by what steps before told",
    "halved": "by half of it",
    "followed": "and by what selected pages told since",
    "oracle": "true shares (an oracle)",
}


def ratio(found: dict[str, float]) -> str:
    """KL over that of plain estimates, and its 95 % interval."""
    around = found["kl_log_ratio_ci"]
    if around == 0:
        return "1"
    low, high = (found["kl_ratio"] * math.exp(sign * around) for sign in (-1, 1))
    return f"{found['kl_ratio']:.2f} ({low:.2f}, {high:.2f})"


def tables(result: dict[str, Any]) -> str:
    """A row for each share of the pages and way to rank them."""
    metrics = result["metrics"]
    shares = [name for name in metrics if isinstance(metrics[name], dict)]
    rows = [
        [
            f"{float(share):.0%}",
            WAYS[way],
            f"{found['kl']:.4f}",
            ratio(found),
            f"{found['error']:.3f}",
            f"{found['covered']:.3f}",
        ]
        for share in shares
        for way, found in metrics[share].items()
    ]
    header = [
        "selected",
        "pages are ranked by",
        "KL",
        "KL over plain",
        "error of outputs",
        "attention selected",
    ]
    return "\n\n".join([table(header, rows), provenance(result)])


def main() -> None:
    """Replace what stands between the markers of the page."""
    fill(PAGE, NAME, tables(json.loads((RESULTS / f"{NAME}.json").read_text())))


if __name__ == "__main__":
    main()
