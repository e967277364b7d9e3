"""SchedulerAdmission: admission control in SGLang's scheduler: who is prefilled, who goes back to the queue."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from rheo_sglang import compat
from rheo_sglang.admission.control import AdmissionControl, Request
from rheo_sglang.working_sets import COUNTED_EVERY

logger = logging.getLogger(__name__)


def make_admission(scheduler: Any) -> SchedulerAdmission | None:
    """Admission control of a scheduler; None if it serves without.

    A scheduler of another attention backend or of an embedding model, which decodes nothing, has none. With pipeline
    stages there is none either: they are at different steps at one time, and would have to wait for each other to
    agree.
    """
    from rheo_sglang.backend import RheoAttentionBackend

    runner = scheduler.tp_worker.model_runner
    backend = runner.attn_backend
    if not isinstance(backend, RheoAttentionBackend) or not scheduler.is_generation:
        return None
    config = backend.pool.config
    if config.admission == "off":
        return None
    if runner.server_args.pp_size > 1:
        logger.info("rheo: with pipeline stages requests are not admitted by working set")
        return None
    if config.recorder == "off":
        logger.info("rheo: recorder='off': hits are not counted, so thrash is not noticed")
    group = scheduler.attn_tp_cpu_group
    if torch.distributed.get_world_size(group) == 1:
        return SchedulerAdmission(scheduler, AdmissionControl(backend.engine, config))

    def agree(values: torch.Tensor) -> torch.Tensor:
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX, group=group)
        return values

    logs = torch.distributed.get_rank(group) == 0
    return SchedulerAdmission(scheduler, AdmissionControl(backend.engine, config, agree, logs))


class SchedulerAdmission:
    """Answers SGLang's prefill adder, and takes requests out of the running batch.

    A request that pauses goes back to the front of the waiting queue as SGLang's own retraction does it, but its pages
    stay in the radix cache, in host memory: when it is admitted again, no more than its last page is computed anew.

    Parameters
    ----------
    scheduler
        SGLang's scheduler.
    control
        Decides.
    """

    def __init__(self, scheduler: Any, control: AdmissionControl) -> None:
        self.scheduler = scheduler
        self.control = control
        self._arrivals: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._arrived = 0
        self._refused = False

    def admits(self, adder: Any, req: Any) -> bool:
        """Whether a waiting request may be prefilled, beside those that run or were added already."""
        if not _decodes(req):
            return True
        running = [*adder.running_batch.reqs, *adder.can_run_list]
        admitted = self.control.admits(_seen(req), _all_seen(running))
        if admitted and req not in self._arrivals:
            self._arrivals[req] = self._arrived
            self._arrived += 1
            self.control.counters["admitted"] += 1
        self._refused |= not admitted
        return admitted

    def before_decode(self, batch: Any) -> None:
        """Observe, if it is time to, and take requests that are to pause out of the batch."""
        if not self.control.due:
            return
        pausing = self.control.observe(_all_seen(batch.reqs))
        if self._refused:
            batch.batch_is_full = False
            self._refused = False
        if pausing:
            self._pause(batch, pausing)

    def report(self) -> dict[str, Any]:
        """See `AdmissionControl.report`."""
        return self.control.report(_all_seen(self.scheduler.running_batch.reqs))

    def _pause(self, batch: Any, count: int) -> None:
        """Pause up to ``count`` requests, the youngest first, that run for some time yet and lose nothing by it."""
        limit, queue = self.scheduler.max_queued_requests, self.scheduler.waiting_queue
        room = count if limit is None else min(count, limit - len(queue))
        candidates = [index for index, req in enumerate(batch.reqs) if self._may_pause(req)]
        candidates.sort(key=lambda index: self._arrivals.get(batch.reqs[index], -1))
        chosen = candidates[max(len(candidates) - max(room, 0), 0) :]
        chosen = chosen[max(len(chosen) - len(batch.reqs) + 1, 0) :]
        if not chosen:
            return
        paused = [batch.reqs[index] for index in chosen]
        for req in paused:
            compat.release_into_tree(req, self.scheduler.tree_cache)
            req.reset_for_retract()
        batch.filter_batch(keep_indices=[index for index in range(len(batch.reqs)) if index not in chosen])
        for req in reversed(paused):
            self.scheduler._add_request_to_queue(req, is_retracted=True)
            if queue and queue[-1] is req:
                queue.insert(0, queue.pop())
        self.control.counters["paused"] += len(paused)

    @staticmethod
    def _may_pause(req: Any) -> bool:
        """Whether a request may go back to the queue.

        SGLang forgets log-probabilities and input embeddings of a request that does, and aborts beam searches.
        """
        left = req.sampling_params.max_new_tokens - len(req.output_ids)
        return (
            not req.finished()
            and req.to_finish is None
            and left > COUNTED_EVERY
            and not req.return_logprob
            and req.input_embeds is None
            and getattr(req, "beam_group", None) is None
        )


def _decodes(req: Any) -> bool:
    return req.sampling_params.max_new_tokens > 1


def _seen(req: Any) -> Request:
    tokens = len(req.origin_input_ids) + len(req.output_ids)
    return Request(req.rid, tokens, getattr(req, "rheo_budget", None))


def _all_seen(reqs: Sequence[Any]) -> list[Request]:
    return [_seen(req) for req in reqs if _decodes(req) and not req.finished()]
