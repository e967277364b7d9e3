"""scheduler: who may join a batch, who pauses, and what is told between batches."""

from __future__ import annotations

from typing import Any

from rheo_sglang.hooks.hook import SCHEDULER, Hook
from rheo_sglang.hooks.storage import served_storage

PREFILL_ADDER = "sglang.srt.managers.schedule_policy.PrefillAdder"
REQUEST = "sglang.srt.managers.schedule_batch.Req"


def add_state(result: Any, scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    """Put the recorder's report and the counters into ``/server_info``."""
    from rheo_sglang.state import describe_scheduler

    state = describe_scheduler(scheduler)
    if state is not None:
        result.internal_state["rheo"] = state
    return result


def equip_scheduler(result: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    """Give the scheduler's allocator what decides who may join its batches, and its storage tier, if rheo serves."""
    from rheo_sglang.admission.scheduling import make_admission
    from rheo_sglang.pools.allocator import RheoAllocator
    from rheo_sglang.storage import make_storage

    allocator = scheduler.token_to_kv_pool_allocator
    if isinstance(allocator, RheoAllocator):
        allocator.admission = make_admission(scheduler)
        allocator.storage = make_storage(scheduler)


def admit_request(original: Any, adder: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
    """Leave a request in the queue, as where there is no room for its tokens, if its working set does not fit."""
    from sglang.srt.managers.schedule_policy import AddReqResult

    admission = getattr(adder.token_to_kv_pool_allocator, "admission", None)
    if admission is not None and not admission.admits(adder, req):
        return AddReqResult.NO_TOKEN
    return original(adder, req, *args, **kwargs)


def limit_prefix(original: Any, req: Any, tokens: int, *args: Any, **kwargs: Any) -> int:
    """Have the prompt's last tokens computed, cached or not, where estimates are corrected by what they attend."""
    from rheo_sglang.pools.sizing import planned
    from rheo_sglang.prefill.seed import SEED_QUERIES

    limit: int = original(req, tokens, *args, **kwargs)
    plan = planned()
    return limit if plan is None or not plan.corrects else max(min(limit, tokens - SEED_QUERIES), 0)


def pause_requests(scheduler: Any, batch: Any, *args: Any, **kwargs: Any) -> None:
    """Before a decode step, take requests out of the running batch that are to pause."""
    admission = getattr(scheduler.token_to_kv_pool_allocator, "admission", None)
    if admission is not None:
        admission.before_decode(batch)


def idle(original: Any, scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    """Leave the processor to the storage tier's reader where the scheduler waits for nothing else.

    Between batches `after_batch`'s work goes on, and what the last ones changed is read too.
    """
    from rheo_sglang.observability.observer import observer

    storage = served_storage(scheduler)
    if storage is not None:
        storage.rest({request.rid for request in scheduler.waiting_queue})
    result = original(scheduler, *args, **kwargs)
    export_importance(scheduler)
    watching = observer(scheduler)
    if watching is not None:
        watching.poll_idle(scheduler.is_fully_idle)
    return result


def after_batch(result: Any, scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    """Write importance to its file if it is time to; log and export what readings say, once they have arrived."""
    from rheo_sglang.observability.observer import observer

    export_importance(scheduler)
    watching = observer(scheduler)
    if watching is not None:
        watching.poll()
    return result


def export_importance(scheduler: Any) -> None:
    """Write the importance of all cached blocks to a file now and then, where a file is configured."""
    from rheo_sglang.state import exporter

    export = exporter(scheduler)
    if export is not None:
        export.poll()


HOOKS = (
    Hook(f"{SCHEDULER}.get_internal_state", add_state, "AFTER"),
    Hook(f"{SCHEDULER}.process_batch_result", after_batch, "AFTER"),
    Hook(f"{SCHEDULER}.on_idle", idle, "AROUND"),
    Hook(f"{SCHEDULER}.init_running_status", equip_scheduler, "AFTER"),
    Hook(f"{SCHEDULER}.update_running_batch", pause_requests, "BEFORE"),
    Hook(f"{PREFILL_ADDER}.add_one_req", admit_request, "AROUND"),
    Hook(f"{REQUEST}._compute_max_prefix_len", limit_prefix, "AROUND"),
)
