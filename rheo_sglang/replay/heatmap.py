"""HeatMap: how much attention each page of a request drew in every decode step, and why it was selected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from rheo_sglang.traces.events import Step
from rheo_sglang.traces.reader import Trace, TraceError

Floats = npt.NDArray[np.float32]


class Region(IntEnum):
    """Why a page is selected, if it is."""

    ABSENT = -1
    """There is no such page yet."""
    LEFT_OUT = 0
    SINK = 1
    """One of the first pages, always selected."""
    WINDOW = 2
    """One of the last, always selected."""
    RETRIEVED = 3
    """Selected for its score, by at least one of the layers and KV heads that are looked at."""


@dataclass(frozen=True)
class HeatMap:
    """One request's decode steps, over some layers and KV heads.

    Attributes
    ----------
    request
        Its id.
    steps
        Number of each step, ``[T]``.
    log_share
        Natural logarithm of the mean share of attention, by the scores that the selection had, ``[T, M]``; NaN where
        there is no page. Where the page summary does not estimate shares, a softmax over the scores of all pages.
    selected
        Share of the layers and KV heads that selected the page, ``[T, M]``.
    region
        A `Region`, ``[T, M]``.
    """

    request: str
    steps: npt.NDArray[np.int64]
    log_share: Floats
    selected: Floats
    region: npt.NDArray[np.int8]


def requests(trace: Trace) -> Counter[str]:
    """Decode steps that select, by request."""
    counted: Counter[str] = Counter()
    for event in trace.events():
        if isinstance(event, Step) and event.scores is not None:
            counted.update(event.requests)
    return counted


def heat_maps(trace: Trace, request: str, parts: Sequence[tuple[slice, slice]]) -> list[HeatMap]:
    """Read one request's heat maps.

    Parameters
    ----------
    trace
        The trace.
    request
        Id of the request.
    parts
        Layers and KV heads of each map, of which it has the mean.

    Raises
    ------
    TraceError
        If the trace has no step of the request that selects pages.
    """
    config, numbers = trace.manifest["config"], []
    rows: list[list[tuple[Floats, Floats]]] = [[] for _ in parts]
    for event in trace.events():
        if isinstance(event, Step) and event.scores is not None and request in event.requests:
            numbers.append(event.number)
            shares, chosen = _of_step(event, event.requests.index(request), trace.page_size)
            for found, (layers, heads) in zip(rows, parts, strict=True):
                found.append((shares[layers, heads].mean((0, 1)), chosen[layers, heads].mean((0, 1))))
    if not numbers:
        raise TraceError(f"{trace.folder} has no step of request {request!r} that selects pages")
    sinks, window = config["sink_pages"], max(config["window_pages"], 1)
    return [_heat_map(request, numbers, found, sinks, window) for found in rows]


def _of_step(step: Step, row: int, page_size: int) -> tuple[Floats, Floats]:
    """Shares of attention and which pages were selected, both ``[L, H, M]``."""
    assert step.scores is not None and step.selected is not None and step.num_selected is not None
    count = -(-int(step.tokens[row]) // page_size)
    scores = step.scores[:, row, :, :count].astype(np.float64)
    weights = np.exp(scores - scores.max(2, keepdims=True))
    shares = weights / weights.sum(2, keepdims=True)
    index = step.selected[:, row]
    within = np.arange(index.shape[2]) < step.num_selected[:, row, :, None]
    chosen = np.zeros((*index.shape[:2], count + 1), dtype=np.float32)
    np.put_along_axis(chosen, np.where(within, index, count).astype(np.int64), 1.0, axis=2)
    return shares.astype(np.float32), chosen[:, :, :count]


def _heat_map(
    request: str, numbers: list[int], found: list[tuple[Floats, Floats]], sinks: int, window: int
) -> HeatMap:
    shape = len(found), max(len(shares) for shares, _ in found)
    log_share = np.full(shape, np.nan, dtype=np.float32)
    selected = np.zeros(shape, dtype=np.float32)
    region = np.full(shape, Region.ABSENT, dtype=np.int8)
    for row, (shares, chosen) in enumerate(found):
        count = len(shares)
        log_share[row, :count] = np.log(np.maximum(shares, np.finfo(np.float32).tiny))
        selected[row, :count] = chosen
        region[row, :count] = np.where(chosen > 0, Region.RETRIEVED, Region.LEFT_OUT)
        region[row, max(count - window, 0) : count] = Region.WINDOW
        region[row, : min(sinks, count)] = Region.SINK
    return HeatMap(request, np.array(numbers), log_share, selected, region)
