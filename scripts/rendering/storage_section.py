"""Section of docs/results.md on prefixes that come from storage."""

from __future__ import annotations

from typing import Any

WAYS = {
    "computed": "computed",
    "disk": "from storage, off the disk",
    "storage": "from storage, files in the system's cache",
    "dram": "from DRAM",
}


def storage(result: dict[str, Any], table: Any, provenance: Any) -> str:
    """Time to first token behind a prefix, by the way it comes."""
    metrics = result["metrics"]
    lengths = [
        name for name, value in metrics.items() if isinstance(value, dict) and "prefix_tokens" in value
    ]
    rows = []
    for way, label in WAYS.items():
        cells = []
        for name in lengths:
            seconds = f"{metrics[name][f'ttft_{way}_s']:.2f} s"
            ratio = metrics.get(f"ttft_ratio_{way}_{name}")
            cells.append(seconds if ratio is None else f"{seconds}, {ratio:.3f}")
        rows.append([label, *cells])
    counters = metrics["storage"]
    return "\n\n".join(
        [
            "## Prefixes from storage",
            f"{metrics['model']} in float32 without a GPU, pages of {metrics['page_size']}, SGLang's `file` backend "
            f"({counters['page_bytes'] / 1e6:.2f} MB a page); {metrics['question_tokens']} new tokens behind a prefix "
            "of real text. Time to first token, and its ratio to that of the same prefix computed in the same round; "
            f"medians of {metrics['rounds']} rounds. Other work ran on the machine, so the ratios say more than the "
            "times.",
            table(["prefix", *(f"{metrics[name]['prefix_tokens']:,} tokens" for name in lengths)], rows),
            f"All in all {counters['pages_restored']:,} pages were restored; {counters['pages_corrupt']} were corrupt, "
            f"{counters['pages_dropped']} dropped.",
            provenance(result),
        ]
    )
