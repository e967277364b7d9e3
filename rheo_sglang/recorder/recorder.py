"""Recorder: counts hits of every request's decode steps, per layer and KV head."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import torch

from rheo_sglang.recorder.report import build_report

KEPT_REQUESTS = 256
HEALTH_CHECK = "HEALTH_CHECK"
"""How the ids of SGLang's own probe requests begin; they are not reported."""


class Counts(NamedTuple):
    """One request's counters, or everybody's with the recorder's rows in front.

    Attributes
    ----------
    rates
        Sum over steps of hits / selected, ``[..., L, H]``, float32.
    hits, selected
        Resident and all selected pages, ``[..., L, H]``, int64.
    mass
        Sum over steps of the attention mass that the selection covered, ``[..., L, H]``, float32, or None.
    """

    rates: torch.Tensor
    hits: torch.Tensor
    selected: torch.Tensor
    mass: torch.Tensor | None


class Filed(NamedTuple):
    """Counters of a request that left its row, on the device that counted them."""

    rid: str
    iterations: int
    counts: Counts


class Recorder:
    """Accumulates hits in one row per request on the device, and files them when the row changes hands.

    A sample is one (layer, KV head, decode iteration): the share of the pages it selected that had a frame. Nothing
    here waits for the device before a report is asked for.

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
    """

    def __init__(
        self, rows: int, layers: int, kv_heads: int, device: str | torch.device, with_mass: bool
    ) -> None:
        shape = (rows, layers, kv_heads)
        self.device = torch.device(device)
        self.counts = Counts(
            torch.zeros(shape, dtype=torch.float32, device=device),
            torch.zeros(shape, dtype=torch.int64, device=device),
            torch.zeros(shape, dtype=torch.int64, device=device),
            torch.zeros(shape, dtype=torch.float32, device=device) if with_mass else None,
        )
        self._row_of: dict[str, int] = {}
        self._free = list(range(rows))
        self._iterations: dict[str, int] = {}
        self._filed: deque[Filed] = deque(maxlen=KEPT_REQUESTS)
        self._rids: list[str] = []
        self._rows = torch.zeros(0, dtype=torch.int64, device=device)

    @property
    def records_mass(self) -> bool:
        """Whether covered attention mass is recorded."""
        return self.counts.mass is not None

    def begin_step(self, rids: list[str]) -> torch.Tensor:
        """Count one decode iteration of each request.

        Parameters
        ----------
        rids
            Request ids of the batch.

        Returns
        -------
        torch.Tensor
            Each request's row of the counters, ``[B]``, int64, on the device.
        """
        if rids != self._rids:
            batch = set(rids)
            rows = [self._row(rid, batch) for rid in rids]
            on_host = torch.tensor(rows, dtype=torch.int64, pin_memory=self.device.type == "cuda")
            self._rows = on_host.to(self.device, non_blocking=True)
            self._rids = list(rids)
        for rid in rids:
            self._iterations[rid] += 1
        return self._rows

    def count(self, layer: int, rows: torch.Tensor, hits: torch.Tensor, selected: torch.Tensor) -> None:
        """Add one layer's counts of one step.

        Parameters
        ----------
        layer
            Layer index.
        rows
            What `begin_step` returned, ``[B]``, int64.
        hits, selected
            Resident and all selected pages, ``[B, H]``, integer.
        """
        self.counts.rates[rows, layer] += hits / selected.clamp(min=1)
        self.counts.hits[rows, layer] += hits
        self.counts.selected[rows, layer] += selected

    def cover(self, layer: int, rows: torch.Tensor, mass: torch.Tensor) -> None:
        """Add the attention mass, ``[B, H]``, that one step's selection covered in one layer."""
        assert self.counts.mass is not None
        self.counts.mass[rows, layer] += mass

    def report(self) -> dict[str, Any]:
        """All recorded requests as plain data; see `build_report`. Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        live = [self._snapshot(rid) for rid in self._row_of]
        requests = [entry for entry in (*self._filed, *live) if not entry.rid.startswith(HEALTH_CHECK)]
        return build_report([_plain(entry) for entry in requests])

    def _row(self, rid: str, batch: set[str]) -> int:
        """Row of a request; a new one takes a free row, or that of the request that has been away longest."""
        if rid in self._row_of:
            self._row_of[rid] = self._row_of.pop(rid)
            return self._row_of[rid]
        if not self._free:
            self._file(next(owner for owner in self._row_of if owner not in batch))
        self._row_of[rid] = self._free.pop()
        self._iterations[rid] = 0
        return self._row_of[rid]

    def _file(self, rid: str) -> None:
        self._filed.append(self._snapshot(rid))
        row = self._row_of.pop(rid)
        del self._iterations[rid]
        self._free.append(row)
        for counter in self.counts:
            if counter is not None:
                counter[row].zero_()

    def _snapshot(self, rid: str) -> Filed:
        row = self._row_of[rid]
        counts = Counts(*(None if counter is None else counter[row].clone() for counter in self.counts))  # type: ignore[arg-type]
        return Filed(rid, self._iterations[rid], counts)


def _plain(filed: Filed) -> dict[str, Any]:
    """A filed request as the report takes it: counters as arrays."""
    arrays = {
        name: None if counter is None else counter.cpu().numpy()
        for name, counter in filed.counts._asdict().items()
    }
    return {"rid": filed.rid, "iterations": filed.iterations, **arrays}
