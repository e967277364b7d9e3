"""storage: prefixes that come back from the storage tier, and weights that change what is stored."""

from __future__ import annotations

from typing import Any

from rheo_sglang.hooks.hook import SCHEDULER, Hook

TREE_CACHE = "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache"
WEIGHT_UPDATER = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"
WEIGHT_SOURCES = ("disk", "distributed", "tensor", "ipc")


def served_storage(owner: Any) -> Any:
    """The storage tier behind the allocator of a scheduler or radix cache, or None if it has none."""
    return getattr(owner.token_to_kv_pool_allocator, "storage", None)


def prefetch_prefix(original: Any, scheduler: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
    """Begin to look for the prefix of a request that comes into the queue, in rheo's storage tier if there is one."""
    storage = served_storage(scheduler)
    return original(scheduler, req, *args, **kwargs) if storage is None else storage.prefetch(req)


def check_prefetch(original: Any, tree_cache: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """Whether a waiting request waits no longer for its prefix."""
    from rheo_sglang import compat

    storage = served_storage(tree_cache)
    if storage is None:
        return original(tree_cache, request, *args, **kwargs)
    return storage.ready(compat.prefetch_rid(request))


def abandon_prefetch(original: Any, tree_cache: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """Forget the prefix of a request that left the queue."""
    from rheo_sglang import compat

    storage = served_storage(tree_cache)
    if storage is not None:
        storage.abandon(compat.prefetch_rid(request))
    return original(tree_cache, request, *args, **kwargs)


def note_weights(result: Any, updater: Any, *args: Any, **kwargs: Any) -> Any:
    """Have pages that are made with other weights stored under other keys."""
    allocator = updater.tp_worker.model_runner.token_to_kv_pool_allocator
    storage = getattr(allocator, "storage", None)
    if storage is not None:
        storage.note_weights()
    return result


HOOKS = (
    Hook(f"{SCHEDULER}._prefetch_kvcache", prefetch_prefix, "AROUND"),
    Hook(f"{TREE_CACHE}.check_prefetch_progress", check_prefetch, "AROUND"),
    Hook(f"{TREE_CACHE}.release_aborted_request", abandon_prefetch, "AROUND"),
    *(
        Hook(f"{WEIGHT_UPDATER}.update_weights_from_{source}", note_weights, "AFTER")
        for source in WEIGHT_SOURCES
    ),
)
