"""What a running server tells about itself."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from rheo_sglang import compat
from rheo_sglang.decode.engine import DecodeEngine
from rheo_sglang.importance.pages import PageImportance
from rheo_sglang.observability.observer import OBSERVER
from rheo_sglang.observability.snapshot import Snapshot, gather
from rheo_sglang.pools.allocator import RheoAllocator
from rheo_sglang.tree.export import ImportanceExport
from rheo_sglang.tree.importance import TreeImportance
from rheo_sglang.tree.nodes import describe_tree

EXPORTER = "rheo_importance_export"
"""Where a scheduler keeps what writes its importance, or None."""


def describe_scheduler(scheduler: Any) -> dict[str, Any] | None:
    """State of a scheduler's rheo backend; changes nothing.

    Parameters
    ----------
    scheduler
        SGLang's scheduler.

    Returns
    -------
    dict or None
        ``config``, ``metrics`` (see `gather`), ``counters``, ``recorder`` (None when off), ``misses`` (None where none
        are shared with the CPU), ``working_sets``, ``admission`` (None where nothing decides who may join), ``storage``
        (None without one), ``trace`` (None when off), ``prefixes`` and ``not_finite``, JSON-ready; None if the
        scheduler runs another attention backend. A number that is not finite, which JSON cannot hold, is None;
        ``not_finite`` is how many there were.
    """
    from rheo_sglang.backend import RheoAttentionBackend
    from rheo_sglang.pools.kv_pool import RheoKVPool

    allocator = scheduler.token_to_kv_pool_allocator
    pool = allocator.get_kvcache()
    if not isinstance(pool, RheoKVPool):
        return None
    backend = scheduler.tp_worker.model_runner.attn_backend
    assert isinstance(backend, RheoAttentionBackend)
    if pool.table.frame_of.is_cuda:
        torch.cuda.synchronize(pool.table.frame_of.device)
    counters = pool.table.counters()
    counters["pages_allocated"] = counters["pages_total"] - allocator.available_size() // pool.page_size
    state, not_finite = without_not_finite(
        {
            "config": dataclasses.asdict(pool.config),
            "metrics": _snapshot(scheduler, backend.engine, allocator),
            "counters": counters,
            "recorder": None if backend.engine.recorder is None else backend.engine.recorder.report(),
            "misses": backend.engine.miss_report(),
            "working_sets": backend.engine.working_sets.report(),
            "admission": None if allocator.admission is None else allocator.admission.report(),
            "storage": None if allocator.storage is None else allocator.storage.report(),
            "trace": None if backend.engine.tracer is None else backend.engine.tracer.writer.report(),
            "prefixes": describe_tree(scheduler.tree_cache, PageImportance(pool.table), pool.page_size),
        }
    )
    return {**state, "not_finite": not_finite}


def _snapshot(scheduler: Any, engine: DecodeEngine, allocator: RheoAllocator) -> Snapshot:
    """The numbers of `METRICS`; averages are over the latest interval where the scheduler is observed."""
    watching = scheduler.__dict__.get(OBSERVER)
    return gather(engine, allocator, engine.readings.now(), None) if watching is None else watching.snapshot()


def exporter(scheduler: Any) -> ImportanceExport | None:
    """What writes a scheduler's importance to a file; None where it does not run rheo or no file is configured.

    The first rank of a replica writes, of its own KV heads and layers. Where there are several replicas (data
    parallelism), each one's number is appended to the name of its file.
    """
    cached = scheduler.__dict__.get(EXPORTER, scheduler)
    if cached is not scheduler:
        return cached
    scheduler.__dict__[EXPORTER] = export = _make_exporter(scheduler)
    return export


def _make_exporter(scheduler: Any) -> ImportanceExport | None:
    from rheo_sglang.pools.kv_pool import RheoKVPool

    pool = scheduler.token_to_kv_pool_allocator.get_kvcache()
    if not isinstance(pool, RheoKVPool) or pool.config.importance_file is None:
        return None
    first, replica = compat.exporting_replica(scheduler)
    if not first:
        return None
    path = pool.config.importance_file + ("" if replica is None else f".{replica}")
    importance = TreeImportance(pool.table, scheduler.tree_cache, pool.page_size)
    return ImportanceExport(importance, path, pool.config.importance_interval)


def without_not_finite(value: Any) -> tuple[Any, int]:
    """Plain data with None in the place of every float that is NaN or infinite, and how many there were."""
    if isinstance(value, float) and not math.isfinite(value):
        return None, 1
    if isinstance(value, dict):
        pairs = {key: without_not_finite(item) for key, item in value.items()}
        return {key: item for key, (item, _) in pairs.items()}, sum(count for _, count in pairs.values())
    if isinstance(value, list | tuple):
        items = [without_not_finite(item) for item in value]
        return [item for item, _ in items], sum(count for _, count in items)
    return value, 0
