"""What a running server tells about itself."""

from __future__ import annotations

from typing import Any

from rheo_sglang.tree.nodes import describe_tree


def describe_scheduler(scheduler: Any) -> dict[str, Any] | None:
    """State of a scheduler's rheo backend.

    Parameters
    ----------
    scheduler
        SGLang's scheduler.

    Returns
    -------
    dict or None
        ``config``, ``counters``, ``recorder`` (None when off), ``misses`` (None where none are shared with the CPU)
        and ``prefixes``, JSON-ready; None if the scheduler runs another attention backend.
    """
    from rheo_sglang.backend import RheoAttentionBackend
    from rheo_sglang.pools.kv_pool import RheoKVPool

    allocator = scheduler.token_to_kv_pool_allocator
    pool = allocator.get_kvcache()
    if not isinstance(pool, RheoKVPool):
        return None
    backend = scheduler.tp_worker.model_runner.attn_backend
    assert isinstance(backend, RheoAttentionBackend)
    counters = pool.table.counters()
    counters["pages_allocated"] = counters["pages_total"] - allocator.available_size() // pool.page_size
    return {
        "config": pool.config.to_json(),
        "counters": counters,
        "recorder": None if backend.recorder is None else backend.recorder.report(),
        "misses": None if backend.cuda is None else backend.cuda.miss_report(),
        "prefixes": describe_tree(scheduler.tree_cache, pool.table, pool.page_size),
    }
