"""Recorder: counts hits of every request's decode steps, per layer and KV head."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch

from rheo_sglang.recorder.report import build_report

KEPT_REQUESTS = 256
HEALTH_CHECK = "HEALTH_CHECK"
"""How the ids of SGLang's own probe requests begin; they are not reported."""


class Recorder:
    """Accumulates hits per request slot on the device, and files them when the slot changes hands.

    A sample is one (layer, KV head, decode iteration): the share of the pages it selected that had a frame.

    Parameters
    ----------
    slots
        Rows of SGLang's request pool.
    layers, kv_heads
        Of this rank's part of the model.
    device
        Where the counters live.
    with_mass
        Whether covered attention mass is recorded as well.
    """

    def __init__(
        self, slots: int, layers: int, kv_heads: int, device: str | torch.device, with_mass: bool
    ) -> None:
        shape = (slots, layers, kv_heads)
        self.rates = torch.zeros(shape, dtype=torch.float32, device=device)
        self.hits = torch.zeros(shape, dtype=torch.int64, device=device)
        self.selected = torch.zeros(shape, dtype=torch.int64, device=device)
        self.mass = torch.zeros(shape, dtype=torch.float32, device=device) if with_mass else None
        self._owner: dict[int, str] = {}
        self._iterations: dict[int, int] = {}
        self._filed: deque[dict[str, Any]] = deque(maxlen=KEPT_REQUESTS)

    def begin_step(self, rids: list[str], slots: list[int]) -> None:
        """Count one decode iteration of each request; file the counters of requests whose slot was reused.

        Parameters
        ----------
        rids
            Request ids of the batch.
        slots
            Their rows in the request pool.
        """
        for rid, slot in zip(rids, slots, strict=True):
            if self._owner.get(slot) != rid:
                self._file(slot)
                self._owner[slot] = rid
                self._iterations[slot] = 0
            self._iterations[slot] += 1

    def count(self, layer: int, slots: torch.Tensor, hits: torch.Tensor, selected: torch.Tensor) -> None:
        """Add one layer's counts of one step.

        Parameters
        ----------
        layer
            Layer index.
        slots
            Request-pool rows of the batch, ``[B]``, int64.
        hits, selected
            Resident and all selected pages, ``[B, H]``, integer.
        """
        self.rates[slots, layer] += hits / selected.clamp(min=1)
        self.hits[slots, layer] += hits
        self.selected[slots, layer] += selected

    def cover(self, layer: int, slots: torch.Tensor, mass: torch.Tensor) -> None:
        """Add the attention mass, ``[B, H]``, that one step's selection covered in one layer."""
        assert self.mass is not None
        self.mass[slots, layer] += mass

    def report(self) -> dict[str, Any]:
        """All recorded requests as plain data; see `build_report`."""
        live = [self._snapshot(slot) for slot in self._owner]
        requests = [*self._filed, *live]
        return build_report([entry for entry in requests if not entry["rid"].startswith(HEALTH_CHECK)])

    def clear(self) -> None:
        """Forget every request."""
        self._owner.clear()
        self._iterations.clear()
        self._filed.clear()
        for counter in (self.rates, self.hits, self.selected, self.mass):
            if counter is not None:
                counter.zero_()

    def _file(self, slot: int) -> None:
        if slot not in self._owner:
            return
        self._filed.append(self._snapshot(slot))
        for counter in (self.rates, self.hits, self.selected, self.mass):
            if counter is not None:
                counter[slot] = 0

    def _snapshot(self, slot: int) -> dict[str, Any]:
        def rows(counter: torch.Tensor) -> np.ndarray:
            return counter[slot].cpu().numpy().copy()

        return {
            "rid": self._owner[slot],
            "iterations": self._iterations[slot],
            "rates": rows(self.rates),
            "hits": rows(self.hits),
            "selected": rows(self.selected),
            "mass": None if self.mass is None else rows(self.mass),
        }
