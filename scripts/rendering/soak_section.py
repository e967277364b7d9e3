"""Section of docs/results.md on a server under random load for a while."""

from __future__ import annotations

from typing import Any

WORDS = {
    "read": "answers read to the end",
    "leave": "streams left by the client",
    "abort": "requests aborted",
    "killed": "clients killed while they read",
    "refused": "settings refused with HTTP 400",
    "flush": "flushes in the middle",
    "server_info": "looks at the counters",
}


def soak(result: dict[str, Any], table: Any, provenance: Any) -> str:
    """Section on a soak, of a GPU or of a CPU."""
    metrics = result["metrics"]
    gpu = "no GPU" not in result["machine"]
    counts = metrics["counts"]
    rows = [[label, counts.get(name, 0)] for name, label in WORDS.items()]
    rows += [
        ["answers that nobody asked for", metrics["errors"]],
        ["counters that contradict each other", metrics["inconsistent"]],
        [
            "threads of the server that were ended, without a line of its log",
            f"{len(metrics['threads_ended'])}, {metrics['threads_not_told']}",
        ],
        ["pages, frames left over in the end", f"{metrics['leaked_pages']}, {metrics['leaked_frames']}"],
        ["the probe's answer changed", "yes" if metrics["probe_changed"] else "no"],
        [
            "memory of the server's processes after a tenth of the time, in the end",
            f"{metrics['memory_mib_after_a_tenth']} MiB, {metrics['memory_mib_at_the_end']} MiB",
        ],
    ]
    return "\n\n".join(
        [
            "## Under random load" + ("" if gpu else ", without a GPU"),
            f"{metrics['model']}, {metrics['minutes']:g} minutes, {metrics['requests']} requests at random times: "
            "shared beginnings, settings of their own, clients that leave or are killed, aborts, flushes, refused "
            "settings. The server traces, writes an importance file and keeps prefixes in storage until the threads "
            f"that do so are ended from outside, one after another ({', '.join(metrics['threads_ended'])}).",
            table(["", "count"], rows),
            provenance(result),
        ]
    )
