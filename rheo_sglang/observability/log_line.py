"""The line about decode steps that a server logs beside SGLang's."""

from __future__ import annotations

from rheo_sglang.observability.snapshot import Snapshot, number, values


def log_line(snapshot: Snapshot, before: Snapshot) -> str:
    """One line: what was selected, hit and missed since ``before``, empty for the start, and what is in use.

    What is not known is left out, as are hits where no step selected pages.
    """
    steps = number(snapshot, "decode_steps_total") - number(before, "decode_steps_total")
    parts = [f"#step: {steps:.0f}"]
    if snapshot["hit_rate"] is not None:
        old = values(before, "missed_pages_total")
        missed = {
            path: pages - old.get(path, 0) for path, pages in values(snapshot, "missed_pages_total").items()
        }
        by_path = ", ".join(f"{path}: {pages:.0f}" for path, pages in missed.items())
        parts += [
            f"hit rate: {number(snapshot, 'hit_rate'):.3f}",
            f"#missed-page: {sum(missed.values()):.0f} ({by_path})",
            f"budget: {number(snapshot, 'budget_pages'):.1f} pages ({number(snapshot, 'budget_share'):.3f})",
        ]
    for name, label in (("estimated_coverage", "est. covered"), ("mass_covered", "covered")):
        if snapshot[name] is not None:
            parts.append(f"{label}: {number(snapshot, name):.3f}")
    parts += [
        f"#resident-page: {number(snapshot, 'resident_pages'):.0f}",
        f"frame usage: {_usage(snapshot, 'frames'):.2f}",
        f"host usage: {_usage(snapshot, 'host_pages'):.2f}",
    ]
    if snapshot["overcommit"] is not None:
        parts.append(f"over-commit: {number(snapshot, 'overcommit'):.2f}")
    if number(snapshot, "thrash"):
        parts.append(f"thrash: budgets x {number(snapshot, 'budget_factor'):.2f}")
    return "Rheo decode, " + ", ".join(parts)


def _usage(snapshot: Snapshot, what: str) -> float:
    used, free = (number(snapshot, f"{what}_{state}") for state in ("used", "free"))
    return used / (used + free)
