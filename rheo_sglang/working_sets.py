"""WorkingSets: how many pages the running requests selected in the last steps, counted on the device now and then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from rheo_kernels.types import DecodeBatch, HitCounters
from rheo_sglang.page_table import PageTable

COUNTED_EVERY = 16
"""Decode steps from one count to the next."""


@dataclass(frozen=True)
class WorkingSetCount:
    """What was counted before one decode step.

    Attributes
    ----------
    step
        Number of the step.
    rids
        Ids of its requests.
    requests
        Pages of each request, ``[B, L, H]``, int32; a shared page counts for each that lists it.
    total
        Pages of all requests, ``[L, H]``, int64; a shared page counts once.
    hits
        Hits and selected pages of each request since it began, over all layers and KV heads, ``[2, B]``, int64; None
        where they are not counted.
    """

    step: int
    rids: tuple[str, ...]
    requests: np.ndarray[Any, Any]
    total: np.ndarray[Any, Any]
    hits: np.ndarray[Any, Any] | None


class _Pending(NamedTuple):
    """A count that the device may not have finished."""

    step: int
    rids: tuple[str, ...]
    found: torch.Tensor
    hits: torch.Tensor | None
    done: torch.cuda.Event | None


class WorkingSets:
    """Counts working sets every `COUNTED_EVERY` steps, in one launch, and never waits for the result.

    A request's working set are its pages that were selected in the last ``steps`` decode steps. Where every request of
    a step may select all of its pages, it is all of them: such steps need not select.

    Parameters
    ----------
    table
        Page table, whose stamps say when a page was selected last.
    steps
        Decode steps, 1 or more.
    requests
        Requests that may run at once.

    Attributes
    ----------
    latest
        The last count that has arrived; None before the first.
    """

    def __init__(self, table: PageTable, steps: int, requests: int) -> None:
        self.table = table
        self.steps = steps
        self.latest: WorkingSetCount | None = None
        self.programs = 0
        self._next = 1
        self._pending: _Pending | None = None
        if table.triton:
            from rheo_kernels.triton import total_programs

            self.programs = total_programs(table.pages)
            size = table.stamped.flatten(0, 1).shape[0] * (requests + self.programs)
            device = table.stamped.device
            self._counts = torch.zeros(size, dtype=torch.int32, device=device)
            self._arrived = torch.zeros(size, dtype=torch.int32, pin_memory=device.type == "cuda")
            self._hits = torch.zeros(2 * requests, dtype=torch.int64, device=device)
            self._arrived_hits = torch.zeros(
                2 * requests, dtype=torch.int64, pin_memory=device.type == "cuda"
            )

    def begin_step(
        self,
        batch: DecodeBatch,
        rids: list[str] | None,
        selects_all: bool,
        counters: HitCounters | None = None,
    ) -> None:
        """Count before this step selects, if it is time to, and take what has arrived; outside the step's graph.

        Parameters
        ----------
        batch
            The described batch; its rows from ``len(rids)`` on are padding.
        rids
            Ids of its requests; nothing is counted without them.
        selects_all
            Whether all requests are so short that they select all of their pages.
        counters
            The recorder's counters of all layers, with the rows of this batch; None if the step counts no hits.
        """
        self.collect()
        step = self.table.activity.steps
        if not rids or self._pending is not None or step < self._next:
            return
        self._next = step + COUNTED_EVERY
        oldest = 0 if selects_all else max(step - self.steps, 1)
        self._pending = self._count(batch, tuple(rids), step, oldest, counters)

    def collect(self) -> None:
        """Take the last count, if it has arrived."""
        pending = self._pending
        if pending is None or not (pending.done is None or pending.done.query()):
            return
        found = pending.found.numpy().copy()
        layers, heads = self.table.stamped.shape[:2]
        live = len(pending.rids)
        requests = found[:, :live].T.reshape(live, layers, heads)
        total = found[:, live:].sum(1, dtype=np.int64).reshape(layers, heads)
        hits = None if pending.hits is None else pending.hits.numpy().copy()
        self.latest = WorkingSetCount(pending.step, pending.rids, requests, total, hits)
        self._pending = None

    def _count(
        self,
        batch: DecodeBatch,
        rids: tuple[str, ...],
        step: int,
        oldest: int,
        counters: HitCounters | None,
    ) -> _Pending:
        table, live = self.table, len(rids)
        inputs = batch.pages[:live], batch.num_pages[:live], table.last_active, table.stamped.flatten(0, 1)
        if not table.triton:
            from rheo_kernels.reference import count_working_sets as count

            requests, total = count(*inputs, step, oldest)
            counted = None
            if counters is not None:
                slots = counters.slots[:live]
                both = counters.hits, counters.selected
                counted = torch.stack([counts.flatten(1)[slots].sum(1) for counts in both]).cpu()
            return _Pending(step, rids, torch.cat((requests.T, total[:, None]), 1).cpu(), counted, None)
        from rheo_kernels.triton import count_working_sets

        rows = inputs[-1].shape[0]
        size = rows * (live + self.programs)
        counts, arrived = (flat[:size].view(rows, -1) for flat in (self._counts, self._arrived))
        hits, arrived_hits = (flat[: 2 * live].view(2, live) for flat in (self._hits, self._arrived_hits))
        count_working_sets(*inputs, step, oldest, counts, counters, hits)
        arrived.copy_(counts, non_blocking=True)
        arrived_hits.copy_(hits, non_blocking=True)
        done = None
        if counts.is_cuda:
            done = torch.cuda.Event()
            done.record()
        return _Pending(step, rids, arrived, None if counters is None else arrived_hits, done)

    def report(self) -> dict[str, Any]:
        """The last count as plain data.

        Returns
        -------
        dict
            ``steps``; ``frames`` of a layer and KV head; ``counted_at``, the step before which it was counted, None if
            none was; ``layers``, pages of all requests in each layer, the mean over KV heads; ``per_layer_head``, those
            of each KV head; ``requests``, for each its ``rid``, ``pages``, the mean over layers and KV heads, and
            ``per_head``, the mean over layers.
        """
        self.collect()
        latest = self.latest
        shown: dict[str, Any] = {
            "steps": self.steps,
            "frames": self.table.frames,
            "counted_at": None,
            "layers": [],
            "per_layer_head": [],
            "requests": [],
        }
        if latest is not None:
            shown["counted_at"] = latest.step
            shown["layers"] = latest.total.mean(1).round(1).tolist()
            shown["per_layer_head"] = latest.total.tolist()
            means = latest.requests.mean(1)
            shown["requests"] = [
                {"rid": rid, "pages": round(float(heads.mean()), 1), "per_head": heads.round(1).tolist()}
                for rid, heads in zip(latest.rids, means, strict=True)
            ]
        return shown
