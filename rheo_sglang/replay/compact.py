"""Compact: a trace's events with pages numbered anew, and selections of another budget if that is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from rheo_kernels.reference import select
from rheo_sglang.config import RheoConfig
from rheo_sglang.traces.events import Event, Integers, Noted, Prompts, Step
from rheo_sglang.traces.reader import Trace, TraceError


@dataclasses.dataclass(frozen=True, eq=False)
class Replayable:
    """Events that a replay takes one after the other.

    Attributes
    ----------
    events
        With pages numbered in the order in which they occur, from 1 on.
    pages
        Their numbers end before it.
    layers, kv_heads, page_size
        Of the trace.
    largest
        Most pages that a step selects in one layer and KV head, of all its requests.
    budget
        Share of pages that was selected; None for selections as traced.
    prewarm
        Weight of prompts in importance on the traced server.
    """

    events: list[Event]
    pages: int
    layers: int
    kv_heads: int
    page_size: int
    largest: int
    budget: float | None = None
    prewarm: float = 0.0


def compact(trace: Trace, budget: float | None = None) -> Replayable:
    """Read a trace for replay.

    Parameters
    ----------
    trace
        The trace.
    budget
        ``budget_ratio`` to select by from the traced scores, without a floor; None for what the server selected.

    Raises
    ------
    TraceError
        If another budget is asked for and the traced one is no fixed share.
    """
    numbers = np.zeros(1, dtype=np.int32)
    known = 1
    events: list[Event] = []
    found = trace.events() if budget is None else reselected(trace, budget)
    largest = 0
    for event in found:
        numbers, known = _number(numbers, known, event)
        renumbered = _renumbered(numbers, event)
        if renumbered is not None:
            events.append(renumbered)
        if isinstance(event, Step):
            largest = max(largest, _largest(event))
    shape = trace.layers, trace.kv_heads, trace.page_size
    return Replayable(events, known, *shape, largest, budget, trace.manifest.get("prewarm", 0.0))


def reselected(trace: Trace, budget: float) -> Iterator[Event]:
    """Events with the selections that another budget makes of the traced scores."""
    known = {field.name for field in dataclasses.fields(RheoConfig)}
    settings: dict[str, Any] = {key: value for key, value in trace.manifest["config"].items() if key in known}
    if trace.manifest["config"]["budget"] != "fixed":
        rule = trace.manifest["config"]["budget"]
        raise TraceError(f"{trace.folder} was traced with budget={rule!r}; other budgets need budget='fixed'")
    settings |= {"trace": None, "budget_ratio": budget, "budget_min_pages": 1, "budget_max_pages": None}
    settings |= {"extensions": tuple(settings["extensions"])}
    config = RheoConfig(**settings)
    table = config.budget_table(trace.page_size, -(-trace.manifest["context_len"] // trace.page_size))
    for event in trace.events():
        if isinstance(event, Prompts):
            ended = len(event.caps)
            num_pages = -(-event.tokens[:ended] // trace.page_size)
            yield dataclasses.replace(event, caps=table.caps[torch.from_numpy(num_pages).long()].numpy())
        elif isinstance(event, Step) and event.scores is not None:
            counted = -(-torch.from_numpy(event.tokens) // trace.page_size)
            scores = torch.from_numpy(event.scores).transpose(0, 1).flatten(1, 2)
            caps = table.caps[counted.long()][:, None].expand(scores.shape[:2])
            width = table.width(int(counted.max()))
            chosen = select(scores, counted, caps, config.sink_pages, config.window_pages, width)
            shaped = chosen.unflatten(1, (trace.layers, trace.kv_heads)).transpose(0, 1)
            counts = (shaped >= 0).sum(3, dtype=torch.int32).numpy()
            yield dataclasses.replace(event, selected=shaped.numpy(), num_selected=counts)
        else:
            yield event


def _largest(step: Step) -> int:
    return 0 if step.num_selected is None else int(step.num_selected.sum(1).max())


def _number(numbers: Integers, known: int, event: Event) -> tuple[Integers, int]:
    """New numbers for an event's pages that have none; page 0 keeps its own."""
    if isinstance(event, Noted):
        return numbers, known
    pages = event.pages
    highest = int(pages.max(initial=0))
    if highest >= len(numbers):
        numbers = np.concatenate((numbers, np.zeros(highest + 1024 - len(numbers), dtype=np.int32)))
    listed = np.unique(pages[pages > 0])
    new = listed[numbers[listed] == 0]
    numbers[new] = known + np.arange(len(new), dtype=np.int32)
    return numbers, known + len(new)


def _renumbered(numbers: Integers, event: Event) -> Event | None:
    """The event in new numbers; None if it frees nothing that occurred."""
    if isinstance(event, Noted):
        if event.kind == "clear":
            return event
        pages = event.pages
        known = (pages < len(numbers)) & (pages > 0)
        if event.kind == "fold":
            known &= event.survivors < len(numbers)
            survivors = numbers[event.survivors[known]]
        else:
            survivors = event.survivors
        pages = numbers[pages[known]]
        kept = pages > 0
        if event.kind == "fold":
            kept &= survivors > 0
            survivors = survivors[kept]
        return Noted(event.kind, pages[kept], survivors) if kept.any() else None
    if isinstance(event, Prompts):
        return dataclasses.replace(event, pages=numbers[event.pages], offered=numbers[event.offered])
    return dataclasses.replace(event, pages=numbers[event.pages])
