"""Section of docs/results.md on servers under overload, with and without admission by working set."""

from __future__ import annotations

from typing import Any

SERVERS = {
    "admission": "by working set",
    "thrash_control": "thrash control alone",
    "off": "off",
}


def admission(result: dict[str, Any], table: Any, provenance: Any) -> str:
    """Section on admission, of a GPU or of a CPU."""
    metrics = result["metrics"]
    size = metrics["size"]
    gpu = "no GPU" not in result["machine"]
    rows = [
        [
            int(concurrency),
            label,
            f"{figures['output_throughput']:.1f}",
            *(f"{figures[f'{name}_tpot_ms']:.1f}" for name in ("median", "p95", "p99")),
            figures["hit_rate"],
            figures["working_sets_over_frames"],
            ", ".join(f"{name} {count}" for name, count in figures["controller"].items()) or "-",
        ]
        for concurrency in sorted({key for name in SERVERS for key in metrics.get(name, {})}, key=int)
        for name, label in SERVERS.items()
        if (figures := metrics.get(name, {}).get(concurrency))
    ]
    header = [
        "at once",
        "admission",
        "tokens/s",
        "TPOT ms",
        "P95",
        "P99",
        "hit rate",
        "working sets / frames",
        "controller",
    ]
    ends = [
        "Throughput with admission over that without, at its least: "
        + f"{metrics['throughput_ratio_with_control']:.3f}."
        if gpu
        else "Without a GPU a miss costs as little as a hit, so that waiting gains nothing and costs throughput: it is "
        "off there by default. What the figures show is the hit rate that it keeps, and that the controller acts and "
        "takes back what it did. Other work ran on the machine; times are of no use beyond that."
    ]
    settings = ", ".join(f"`{name}` {value}" for name, value in size["config"].items())
    return "\n\n".join(
        [
            "## Admission by working set" + ("" if gpu else ", without a GPU"),
            f"{metrics['model']}, documents of {size['document_tokens']} tokens of real text that are cached in host "
            f"memory, answers of {size['answer_tokens']} tokens, {settings}. Working sets are those of the fullest "
            "layer at the end of a run; the controller's decisions are those of the run.",
            table(header, rows),
            *ends,
            provenance(result),
        ]
    )
