"""Recorder: counts hits of every request's decode steps, per layer and KV head."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from rheo_kernels.types import Growth
from rheo_sglang.recorder.averages import build_report
from rheo_sglang.recorder.ended import (
    KEPT_REQUESTS,
    Counts,
    EndedRequests,
    Request,
    reduce_rows,
)
from rheo_sglang.recorder.totals import SUMS, RecorderTotals, sum_rows

HEALTH_CHECK = "HEALTH_CHECK"
"""How the ids of SGLang's own probe requests begin; they are not reported."""
ENDED_AFTER = 16
"""Steps without a request after which its row may be given back: with pipeline stages, batches take turns."""
GIVEN_BACK_TOGETHER = 64
"""Ended requests whose rows are given back at once, in a handful of launches."""


class Recorder:
    """Accumulates hits in one row per running request on the device.

    A sample is one (layer, KV head, decode step): the share of the pages it selected that had a frame. Nothing here
    waits for the device before a report is asked for, and a report changes nothing. A request that has been away
    for a while gives its row back: its counters are reduced on the device into `EndedRequests`. What a report costs
    therefore depends on the requests that run and on the `KEPT_REQUESTS` that ended last, not on all that ever ran.

    Parameters
    ----------
    rows
        Requests that may run at once.
    layers, kv_heads
        Of this rank's part of the model.
    device
        Where the counters live.
    with_mass
        Whether covered attention mass is recorded as well.
    with_coverage
        Whether estimates of it are recorded: what selections leave out is attended by estimates.
    with_growth
        Whether budgets that grew are recorded.

    Attributes
    ----------
    padding_row
        A row for what is no request; it is never reported.
    """

    def __init__(
        self,
        rows: int,
        layers: int,
        kv_heads: int,
        device: str | torch.device,
        with_mass: bool,
        with_coverage: bool = False,
        with_growth: bool = False,
    ) -> None:
        self.padding_row = rows
        shape = (rows + 1, layers, kv_heads)
        self.device = torch.device(device)
        self.counts = Counts(
            torch.zeros(shape, dtype=torch.float32, device=device),
            torch.zeros(shape, dtype=torch.int64, device=device),
            torch.zeros(shape, dtype=torch.int64, device=device),
            torch.zeros(shape, dtype=torch.float32, device=device) if with_mass else None,
            torch.zeros(shape, dtype=torch.int32, device=device) if with_mass else None,
            torch.zeros(shape, dtype=torch.float32, device=device) if with_coverage else None,
            torch.zeros(shape, dtype=torch.int32, device=device) if with_growth else None,
            torch.zeros(shape, dtype=torch.int64, device=device) if with_growth else None,
        )
        self.ended = EndedRequests(layers, kv_heads, self.device)
        nothing = torch.zeros(layers + len(SUMS), dtype=torch.float64, device=device)
        self._given_back = RecorderTotals(nothing, 0, 0)
        self._row_of: dict[str, int] = {}
        self._absent: dict[str, None] = {}
        self._free = list(range(rows))
        self._step = 0
        self._last_step = np.zeros(rows, dtype=np.int64)
        self._iterations = np.zeros(rows, dtype=np.int64)
        self._listed = np.zeros(rows, dtype=np.int64)
        self._rids: list[str] = []
        self._batch_rows = np.zeros(0, dtype=np.int64)
        self._rows = torch.zeros(0, dtype=torch.int64, device=device)

    @property
    def records_mass(self) -> bool:
        """Whether covered attention mass is recorded."""
        return self.counts.mass is not None

    def begin_step(self, rids: list[str], num_pages: torch.Tensor, padded: int = 0) -> torch.Tensor:
        """Count one decode step of each request.

        Parameters
        ----------
        rids
            Request ids of the batch.
        num_pages
            Pages of each request's context, integer, on the host.
        padded
            ``B``, where the batch is padded to more than its requests.

        Returns
        -------
        torch.Tensor
            Each request's row of the counters, then `padding_row`, ``[B]``, int64, on the device.
        """
        self._step += 1
        batch = max(len(rids), padded)
        if rids != self._rids or batch != len(self._rows):
            rows = self._take_rows(rids)
            self._batch_rows = np.array(rows, dtype=np.int64)
            self._rows = self._on_device(rows + [self.padding_row] * (batch - len(rows)))
            self._rids = list(rids)
        self._last_step[self._batch_rows] = self._step
        self._iterations[self._batch_rows] += 1
        self._listed[self._batch_rows] += num_pages.numpy()
        return self._rows

    def count(
        self,
        layer: int,
        rows: torch.Tensor,
        hits: torch.Tensor,
        selected: torch.Tensor,
        coverage: torch.Tensor | None = None,
    ) -> None:
        """Add one layer's counts of one step.

        Parameters
        ----------
        layer
            Layer index.
        rows
            What `begin_step` returned, ``[B]``, int64.
        hits, selected
            Resident and all selected pages, ``[B, H]``, integer.
        coverage
            Estimated share of attention that they have, ``[B, H]``, if that is recorded.
        """
        self.counts.rates[rows, layer] += hits / selected.clamp(min=1)
        self.counts.hits[rows, layer] += hits
        self.counts.selected[rows, layer] += selected
        if self.counts.coverage is not None and coverage is not None:
            self.counts.coverage[rows, layer] += coverage

    def cover(self, layer: int, rows: torch.Tensor, mass: torch.Tensor) -> None:
        """Add the attention mass, ``[B, H]``, that one step's selection covered in one layer, where it is finite."""
        assert self.counts.mass is not None and self.counts.mass_samples is not None
        finite = mass.isfinite()
        self.counts.mass[rows, layer] += mass.where(finite, 0)
        self.counts.mass_samples[rows, layer] += finite.int()

    def growth(self, layer: int, rows: torch.Tensor) -> Growth | None:
        """Counters of a layer's budgets that grew, for requests' ``rows``, ``[B]``, int64; None if not recorded."""
        grown, pages = self.counts.grown, self.counts.grown_pages
        return None if grown is None or pages is None else Growth(grown[:, layer], pages[:, layer], rows)

    def report(self) -> dict[str, Any]:
        """The running requests and those that ended last as plain data, see `build_report`. Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        _, layers, kv_heads = self.counts.rates.shape
        absent = _reported(self._absent)[-KEPT_REQUESTS:]
        owners = absent + _reported(self._rids)
        ended, reduced = self.ended.latest(KEPT_REQUESTS - len(absent))
        with_rows = reduce_rows(self.counts, self._on_device([self._row_of[rid] for rid in owners]))
        return build_report(
            ended + [self._request(rid) for rid in owners],
            torch.cat([reduced, with_rows]).cpu().numpy(),
            layers,
            kv_heads,
            self.records_mass,
            self.counts.coverage is not None,
            self.counts.grown is not None,
        )

    def totals(self) -> RecorderTotals:
        """What all requests counted since the start, those that no report shows any more too; waits for nothing."""
        return self._given_back + self._sum(_reported(self._row_of))

    def _sum(self, rids: list[str]) -> RecorderTotals:
        rows = [self._row_of[rid] for rid in rids]
        iterations = self._iterations[rows]
        sums = sum_rows(self.counts, self._on_device(rows), self._on_device(iterations))
        return RecorderTotals(sums, int(iterations.sum()), int(self._listed[rows].sum()))

    def _take_rows(self, rids: list[str]) -> list[int]:
        """Rows of a batch's requests; new ones take free rows, which ended ones give back before they run out."""
        batch = set(rids)
        self._absent.update((rid, None) for rid in self._rids if rid not in batch)
        for rid in rids:
            self._absent.pop(rid, None)
        new = [rid for rid in dict.fromkeys(rids) if rid not in self._row_of]
        give_back = len(new) - len(self._free)
        if len(self._absent) >= GIVEN_BACK_TOGETHER or give_back > 0:
            last_steps = self._last_step[[self._row_of[rid] for rid in self._absent]]
            ended = int((self._step - last_steps > ENDED_AFTER).sum())
            give_back = max(give_back, ended if ended >= GIVEN_BACK_TOGETHER else 0)
        if give_back > 0:
            self._give_back(list(self._absent)[:give_back])
        self._row_of.update((rid, self._free.pop()) for rid in new)
        return [self._row_of[rid] for rid in rids]

    def _give_back(self, rids: list[str]) -> None:
        """Keep what ended requests counted, and clear their rows."""
        self._given_back += self._sum(_reported(rids))
        kept = _reported(rids)[-KEPT_REQUESTS:]
        reduced = reduce_rows(self.counts, self._on_device([self._row_of[rid] for rid in kept]))
        self.ended.add([self._request(rid) for rid in kept], reduced)
        rows = [self._row_of.pop(rid) for rid in rids]
        for rid in rids:
            del self._absent[rid]
        cleared = self._on_device(rows)
        for counter in self.counts:
            if counter is not None:
                counter.index_fill_(0, cleared, 0)
        self._iterations[rows] = 0
        self._listed[rows] = 0
        self._free.extend(rows)

    def _request(self, rid: str) -> Request:
        row = self._row_of[rid]
        return Request(rid, int(self._iterations[row]), int(self._listed[row]))

    def _on_device(self, rows: list[int] | np.ndarray[Any, Any]) -> torch.Tensor:
        on_host = torch.as_tensor(rows, dtype=torch.int64)
        if self.device.type == "cuda":
            on_host = on_host.pin_memory()
        return on_host.to(self.device, non_blocking=True)


def _reported(rids: Iterable[str]) -> list[str]:
    return [rid for rid in rids if not rid.startswith(HEALTH_CHECK)]
