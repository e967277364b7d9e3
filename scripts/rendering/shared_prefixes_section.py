"""Section of docs/results.md on what requests over one document cost a layer, against documents of their own."""

from __future__ import annotations

from typing import Any

BATCHES = (2, 8, 32)
ROWS = {
    "estimate, each request alone": "estimate_without_pairs",
    "estimate, requests in pairs": "estimate",
    "estimate, shares, select, look up": "select_path",
    "attend the selected": "attend",
    "attend both": "attend_with_tail",
    "count working sets, all layers": "working_sets",
    "find pairs, all layers": "pair_prefixes",
}


def shared_prefixes(result: dict[str, Any], table: Any, provenance: Any) -> str:
    """Section on kernels where the requests of a batch share a document."""
    metrics = result["metrics"]
    header = ["microseconds a layer", *(f"{batch} requests: apart / one document" for batch in BATCHES)]
    rows = [
        [
            label,
            *(
                " / ".join(
                    f"{metrics[f'{key}_us_page32_rows4_bs{batch}_28k{of}']:.1f}" for of in ("", "_of1")
                )
                for batch in BATCHES
            ),
        ]
        for label, key in ROWS.items()
    ]
    return "\n\n".join(
        [
            "## Requests over one document",
            "8 KV heads of 128 in groups of 4, pages of 32, 28K tokens, 8 % selected: requests with a document each, "
            "and all of them over one. Its pages are in HBM once; L2 holds what is read of them, so that the floor of "
            "the whole path at 32 requests falls from "
            f"{metrics['path_floor_us_page32_rows4_bs32_28k']:.0f} to "
            f"{metrics['path_floor_us_page32_rows4_bs32_28k_of1']:.0f} us. In this run the first request of a pair "
            "took all units that both list; since then each takes half of them, which was not timed yet.",
            table(header, rows),
            provenance(result),
        ]
    )
