"""Snapshot: the numbers of `METRICS` of one moment, gathered in one place for all who show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rheo_sglang.decode.engine import DecodeEngine
from rheo_sglang.pools.allocator import RheoAllocator
from rheo_sglang.readings import Reading
from rheo_sglang.recorder.totals import HitTotals

Snapshot = dict[str, float | dict[str, float] | None]
"""A number for each name of `METRICS`, or one for each value of its label; None where it is not known."""


def number(snapshot: Mapping[str, Any], name: str) -> float:
    """The one number of a name; 0 where it is not known."""
    value = snapshot.get(name)
    return value if isinstance(value, int | float) else 0.0


def values(snapshot: Mapping[str, Any], name: str) -> dict[str, float]:
    """The numbers of a name, by the value of its label; none where they are not known."""
    value = snapshot.get(name)
    return value if isinstance(value, dict) else {}


def gather(
    engine: DecodeEngine, allocator: RheoAllocator, reading: Reading, before: Reading | None
) -> Snapshot:
    """Everything that is known, without asking the device.

    Parameters
    ----------
    engine
        Runs the decode steps.
    allocator
        Of the host pool.
    reading
        What counters said.
    before
        What they said an interval ago, for averages over it; None for averages since the start.
    """
    return {
        "decode_steps_total": reading.steps,
        "decoded_tokens_total": reading.decoded_tokens,
        "summarised_tokens_total": reading.summarised_tokens,
        **_hits(engine, reading),
        **_averages(reading.hits, None if before is None else before.hits),
        **_pools(engine, allocator, reading),
        **_working_sets(engine),
        **_cpu(engine),
        **_admission(allocator),
    }


def _hits(engine: DecodeEngine, reading: Reading) -> Snapshot:
    """What the recorder counted since the start, and which way misses went."""
    block_bytes = engine.frames[0, 0, 0].nbytes
    hits = reading.hits
    by_path = None if hits is None else _by_path(engine, int(hits.selected - hits.hits), reading.fetched)
    grows = hits is not None and engine.config.budgets_grow
    return {
        "samples_total": None if hits is None else hits.samples,
        "context_pages_total": None if hits is None else hits.context,
        "selected_pages_total": None if hits is None else int(hits.selected),
        "hit_pages_total": None if hits is None else int(hits.hits),
        "missed_pages_total": by_path,
        "missed_bytes_total": by_path and {path: pages * block_bytes for path, pages in by_path.items()},
        "grown_samples_total": int(hits.grown) if grows and hits is not None else None,
        "grown_pages_total": int(hits.grown_pages) if grows and hits is not None else None,
    }


def _by_path(engine: DecodeEngine, misses: int, fetched: int | None) -> dict[str, float]:
    if engine.miss_route != "shared":
        return {"fetch": 0, "cpu": 0, engine.miss_route: misses}
    if fetched is None:
        return {"shared": misses}
    return {"fetch": fetched, "cpu": max(misses - fetched, 0)}


def _averages(hits: HitTotals | None, before: HitTotals | None) -> Snapshot:
    """Means over samples."""
    names = (
        "hit_rate",
        "layer_hit_rate",
        "budget_pages",
        "budget_share",
        "estimated_coverage",
        "mass_covered",
    )
    if hits is None:
        return dict.fromkeys(names)
    seen = hits if before is None else hits - before
    steps = seen.iterations * seen.kv_heads
    layers = {str(layer): rate / steps for layer, rate in enumerate(seen.rates.tolist())} if steps else None
    return {
        "hit_rate": _ratio(float(seen.rates.sum()), seen.samples),
        "layer_hit_rate": layers,
        "budget_pages": _ratio(seen.selected, seen.samples),
        "budget_share": _ratio(seen.selected, seen.context),
        "estimated_coverage": _ratio(seen.coverage, seen.coverage_samples),
        "mass_covered": _ratio(seen.mass, seen.mass_samples),
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _pools(engine: DecodeEngine, allocator: RheoAllocator, reading: Reading) -> Snapshot:
    pool = allocator.get_kvcache()
    used = reading.in_use["frames_used"]
    free_pages = allocator.available_size() // pool.page_size
    return {
        "frames_used": used,
        "frames_free": engine.table.page_of.numel() - used,
        "resident_pages": reading.in_use["pages_resident"],
        "host_pages_used": engine.table.pages - 1 - free_pages,
        "host_pages_free": free_pages,
        "host_pool_bytes": pool.host.nbytes,
        "frame_pool_bytes": pool.frames.nbytes,
        "page_table_bytes": engine.table.nbytes,
    }


def _working_sets(engine: DecodeEngine) -> Snapshot:
    engine.working_sets.collect()
    latest = engine.working_sets.latest
    pages = None if latest is None else float(latest.total.mean(1).max())
    return {
        "working_set_pages": pages,
        "overcommit": None if pages is None else pages / engine.table.frames,
    }


def _cpu(engine: DecodeEngine) -> Snapshot:
    use = engine.cpu_use
    return {
        "cpu_attention_threads": None if use is None else use.threads,
        "cpu_attention_busy_seconds_total": None if use is None else use.busy_seconds,
    }


def _admission(allocator: RheoAllocator) -> Snapshot:
    """What admission by working set decided; nothing is known where it is off."""
    names = ("admission_events_total", "admission_frames_needed", "thrash", "budget_factor", "running_limit")
    if allocator.admission is None:
        return dict.fromkeys(names)
    report: dict[str, Any] = allocator.admission.report()
    limited = report["most_running"] is not None
    return {
        "admission_events_total": report["counters"],
        "admission_frames_needed": report["frames_needed"],
        "thrash": int(limited or report["budget_factor"] < 1),
        "budget_factor": report["budget_factor"],
        "running_limit": report["most_running"] or 0,
    }
