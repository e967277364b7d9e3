"""sweep: replays of one trace with every policy, capacity and budget, in several processes."""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rheo_sglang.replay.belady import Belady
from rheo_sglang.replay.compact import Replayable, compact
from rheo_sglang.replay.world import StepCounts, World
from rheo_sglang.traces.events import Noted, Prompts, Step
from rheo_sglang.traces.reader import Trace

BELADY = "belady"
HEALTH_CHECK = "HEALTH_CHECK"
"""How the ids of SGLang's own probe requests begin; they are replayed, and not counted."""


@dataclass(frozen=True)
class Case:
    """One replay.

    Attributes
    ----------
    policy
        A tiering policy, or `BELADY`.
    capacity
        Frames relative to the largest selection of a step; None for the traced server's own frames.
    runners_up
        How many pages that a selection left out are looked at for frames; 0 where only misses get some.
    budget
        Share of the pages to select; None for the selections as traced.
    prewarm
        Weight of prompts in importance, see `PolicyInputs`; None for that of the traced server.
    """

    policy: str
    capacity: float | None
    runners_up: int = 0
    budget: float | None = None
    prewarm: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a replay counted.

    Attributes
    ----------
    case
        What was replayed.
    frames
        Frames of each layer and KV head.
    requests
        Ids of ``Q`` requests.
    selected, hits
        Pages, by request and row (layer and KV head), ``[Q, R]``.
    rates
        Sums over steps of hits / selected, ``[Q, R]``.
    steps
        Decode steps of each request, ``[Q]``.
    ahead
        Pages that were loaded without being selected, in all rows.
    """

    case: Case
    frames: int
    requests: list[str]
    selected: npt.NDArray[np.int64]
    hits: npt.NDArray[np.int64]
    rates: npt.NDArray[np.float64]
    steps: npt.NDArray[np.int64]
    ahead: int

    @property
    def page_hit_rate(self) -> float:
        """Resident of all selected pages."""
        return float(self.hits.sum() / max(self.selected.sum(), 1))

    @property
    def hit_rate(self) -> float:
        """Mean over layers, KV heads and decode steps, as `rheo report` has it."""
        return float(self.rates.sum() / max(self.steps.sum() * self.rates.shape[1], 1))

    @property
    def traffic(self) -> float:
        """Pages that cross the bus for every page that is selected: misses, and runners-up that got frames."""
        misses = int((self.selected - self.hits).sum())
        return (misses + self.ahead) / max(int(self.selected.sum()), 1)


def replay(replayable: Replayable, case: Case, frames: int, importance_alpha: float) -> Outcome:
    """Replay one case with so many frames of each layer and KV head; see `World`."""
    if case.policy == BELADY:
        found = _belady(replayable, case.runners_up).run(frames)
    else:
        prewarm = replayable.prewarm if case.prewarm is None else case.prewarm
        world = World(replayable, case.policy, frames, case.runners_up, importance_alpha, prewarm)
        found = list(run(world, replayable))
    return _sum(case, frames, found, replayable.layers * replayable.kv_heads)


def run(world: World, replayable: Replayable) -> Iterator[StepCounts]:
    """Run all events; counts of every step that selects."""
    for event in replayable.events:
        if isinstance(event, Noted):
            world.note(event)
        elif isinstance(event, Prompts):
            world.prefill(event)
        else:
            counts = world.step(event)
            if counts is not None:
                yield counts


@lru_cache(maxsize=1)
def _belady(replayable: Replayable, runners_up: int) -> Belady:
    return Belady(replayable, runners_up)


def _sum(case: Case, frames: int, found: Sequence[StepCounts], rows: int) -> Outcome:
    names = dict.fromkeys(
        request for counts in found for request in counts.requests if not request.startswith(HEALTH_CHECK)
    )
    place = {request: index for index, request in enumerate(names)}
    selected, hits = (np.zeros((len(place), rows), dtype=np.int64) for _ in range(2))
    rates, steps = np.zeros((len(place), rows)), np.zeros(len(place), dtype=np.int64)
    for counts in found:
        for index, request in enumerate(counts.requests):
            if request in place:
                row = place[request]
                selected[row] += counts.selected[index]
                hits[row] += counts.hits[index]
                rates[row] += counts.hits[index] / np.maximum(counts.selected[index], 1)
                steps[row] += 1
    ahead = sum(counts.ahead for counts in found)
    return Outcome(case, frames, list(place), selected, hits, rates, steps, ahead)


def sweep(
    trace: Trace,
    cases: Sequence[Case],
    processes: int,
    on_done: Callable[[Outcome], object] | None = None,
) -> list[Outcome]:
    """Replay cases, several at a time.

    Parameters
    ----------
    trace
        The trace.
    cases
        What to replay.
    processes
        How many replay at once.
    on_done
        Called with every outcome as it comes.

    Returns
    -------
    list of Outcome
        In the order of the cases.
    """
    done: dict[Case, Outcome] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(cases)), context, _end_with_parent) as pool:
        futures = [pool.submit(_replay_in_process, trace.folder, case) for case in cases]
        try:
            for future in as_completed(futures):
                outcome = future.result()
                done[outcome.case] = outcome
                if on_done is not None:
                    on_done(outcome)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [done[case] for case in cases]


def frames_of(trace: Trace, replayable: Replayable, case: Case) -> int:
    """Frames of a case: enough for what a step reads of the tails of its requests, at least."""
    if case.capacity is None:
        return int(trace.manifest["frames"])
    most = max((len(event.requests) for event in replayable.events if isinstance(event, Step)), default=1)
    return max(math.ceil(case.capacity * replayable.largest), most)


def _end_with_parent() -> None:
    """Have this process end when the one that started it does, however that ends: nobody would take what it finds."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _replay_in_process(folder: Path, case: Case) -> Outcome:
    import torch

    torch.set_num_threads(1)
    trace, replayable = _read(folder, case.budget)
    alpha = trace.manifest["config"]["importance_alpha"]
    return replay(replayable, case, frames_of(trace, replayable, case), alpha)


@lru_cache(maxsize=1)
def _read(folder: Path, budget: float | None) -> tuple[Trace, Replayable]:
    """A trace, read once in each process for cases that follow one another."""
    trace = Trace(folder)
    return trace, compact(trace, budget)
