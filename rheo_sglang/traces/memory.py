"""What a trace's buffers take, before there are any."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from rheo_sglang.traces.copies import Ring
from rheo_sglang.traces.step_buffers import step_bytes
from rheo_sglang.traces.tracer import slot_bytes
from rheo_sglang.traces.writer import WAITING_BYTES


class TraceBytes(NamedTuple):
    """Of one rank's tracer."""

    device: int
    pinned: int
    """In DRAM, on a GPU."""


def trace_bytes(
    batches: Iterable[int], layers: int, kv_heads: int, columns: int, width: int, waiting: int = WAITING_BYTES
) -> TraceBytes:
    """Bytes of buffers for steps of up to so many requests, each number of which has buffers of its own.

    Parameters
    ----------
    batches
        Requests that `Tracer.reserve` is called with.
    layers, kv_heads
        Of this rank.
    columns, width
        Pages of the longest request, and how many of them a step may select.
    waiting
        Bytes of events that may wait for the thread that writes.
    """
    device = slot = 0
    for batch in batches:
        size = step_bytes(layers * batch * kv_heads, columns, width)
        device += size
        if size:
            slot = max(slot, slot_bytes(size, batch, columns))
    return TraceBytes(device, slot * Ring.slots(slot, waiting) if slot else 0)
