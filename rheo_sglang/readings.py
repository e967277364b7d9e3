"""Readings: what the counters of a rank said at one moment, copied to the host now and then without waiting for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from rheo_sglang.page_table import COUNTED, PageTable
from rheo_sglang.recorder import Recorder
from rheo_sglang.recorder.totals import HitTotals


@dataclass(frozen=True)
class Reading:
    """Sums since the start, and what was in use.

    Attributes
    ----------
    steps
        Decode steps.
    decoded_tokens
        Tokens that they made.
    summarised_tokens
        Tokens that were computed, of prompts and answers.
    in_use
        The numbers of `rheo_sglang.page_table.COUNTED`.
    fetched
        Missed pages that crossed the bus where the CPU attended others, in all layers and KV heads; None: not counted.
    hits
        What the recorder counted; None without one.
    """

    steps: int
    decoded_tokens: int
    summarised_tokens: int
    in_use: dict[str, int]
    fetched: int | None
    hits: HitTotals | None


class _Pending(NamedTuple):
    """A reading that the device may not have finished."""

    steps: int
    decoded_tokens: int
    summarised_tokens: int
    iterations: int
    listed: int
    arrived: torch.Tensor
    done: torch.cuda.Event | None


class Readings:
    """Takes a reading every ``interval`` decode steps, before a step, and hands it out once it has arrived.

    Parameters
    ----------
    table
        What is in use.
    recorder
        Hits, or None.
    counts_fetched
        Whether kernels count which misses are fetched.

    Attributes
    ----------
    interval
        Decode steps between two readings; None: none are taken.
    fetched
        Missed pages that crossed the bus, scalar, int64, on the device, which kernels add to; None: not counted.
    decoded_tokens
        Tokens of all decode steps so far.
    """

    def __init__(self, table: PageTable, recorder: Recorder | None, counts_fetched: bool = False) -> None:
        self.table = table
        self.recorder = recorder
        self.interval: int | None = None
        device = table.frame_of.device
        self.fetched = torch.zeros((), dtype=torch.int64, device=device) if counts_fetched else None
        self.decoded_tokens = 0
        self._next = 0
        self._pending: _Pending | None = None

    def begin_step(self, requests: int) -> None:
        """Count a decode step of some requests, after taking a reading of those before it if one is due."""
        if self.interval is not None and self.table.activity.steps >= self._next:
            self.take()
        self.decoded_tokens += requests

    def take(self) -> bool:
        """Have the device copy its counters, on the current stream; False if the last copy was not collected yet."""
        if self._pending is not None:
            return False
        self._pending = self._begin()
        self._next = self._pending.steps + (self.interval or 0)
        return True

    def collect(self) -> Reading | None:
        """The reading that was taken last, once, if it has arrived."""
        pending = self._pending
        if pending is None or not (pending.done is None or pending.done.query()):
            return None
        self._pending = None
        return self._read(pending)

    def now(self) -> Reading:
        """A reading of this moment. Waits for the device."""
        pending = self._begin()
        if pending.done is not None:
            pending.done.synchronize()
        return self._read(pending)

    def _begin(self) -> _Pending:
        counted = [self.table.count().to(torch.float64)]
        if self.fetched is not None:
            counted.append(self.fetched.to(torch.float64)[None])
        iterations = listed = 0
        if self.recorder is not None:
            totals = self.recorder.totals()
            iterations, listed = totals.iterations, totals.listed
            counted.append(totals.sums)
        numbers = torch.cat(counted)
        arrived, done = numbers, None
        if numbers.is_cuda:
            arrived = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            arrived.copy_(numbers, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        steps, tokens = self.table.activity.steps, self.table.total_summarised_tokens
        return _Pending(steps, self.decoded_tokens, tokens, iterations, listed, arrived, done)

    def _read(self, pending: _Pending) -> Reading:
        in_use, rest = np.split(pending.arrived.numpy(), [len(COUNTED)])
        fetched = hits = None
        if self.fetched is not None:
            fetched, rest = int(rest[0]), rest[1:]
        if self.recorder is not None:
            sums, kv_heads = rest.copy(), self.table.frame_of.shape[1]
            hits = HitTotals.of(sums, kv_heads, pending.iterations, pending.listed)
        return Reading(
            pending.steps,
            pending.decoded_tokens,
            pending.summarised_tokens,
            dict(zip(COUNTED, in_use.astype(int).tolist(), strict=True)),
            fetched,
            hits,
        )
