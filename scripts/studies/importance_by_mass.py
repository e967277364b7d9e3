#!/usr/bin/env python3
"""Whether a page's estimated share of attention says better what to keep than its rank.

    PYTHONPATH=scripts python -m studies.importance_by_mass --folder traces

Takes the traces that `studies.trace_workloads` left in the folder and replays them with policies ``importance`` and
``predicted`` as they are, which average ranks, and with shares in the place of ranks: as they are, their roots, their
logarithms, and shares against an even one. Writes
``docs/benchmarks/results/importance_by_mass.json``: hit rates and traffic beside LRU's and Belady's MIN, differences to
``importance`` with intervals, and the same for several weights of the newest step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, ClassVar

import torch
from tqdm import tqdm

from common.measurement import write_result
from rheo_kernels.reference import update_importance
from rheo_sglang.decode.reference_engine import RUNNERS_UP
from rheo_sglang.replay.compact import compact
from rheo_sglang.replay.intervals import interval, resampled
from rheo_sglang.replay.sweep import BELADY, Case, Outcome, frames_of, replay
from rheo_sglang.replay.table import LRU, groups
from rheo_sglang.tiering import POLICIES, PolicyInputs
from rheo_sglang.tiering.importance import Importance
from rheo_sglang.tiering.predicted import Predicted
from rheo_sglang.tiering.ranks import RankAverage
from rheo_sglang.traces import Trace
from rheo_sglang.traces.reader import MANIFEST

CAPACITIES = (1.25, 2.5)
LOWEST = -16.0
"""Logarithm of a share that is worth nothing."""
ALPHAS = (0.1, 0.6)
"""Weights of the newest step that averages are replayed with beside the server's, where only misses get frames."""

Signal = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From logarithms of shares, ``[B, H, M]``, and pages of each request, ``[B, 1, 1]``, to worths in [0, 1]."""

SIGNALS: dict[str, Signal] = {
    "share": lambda logs, _: logs.exp(),
    "root": lambda logs, _: (logs / 2).exp(),
    "log": lambda logs, _: 1 - logs.clamp(min=LOWEST) / LOWEST,
    "odds": lambda logs, count: torch.sigmoid(logs + count.log()),
}
"""``odds`` is ``s / (s + 1 / n)`` of share ``s`` of a request with ``n`` pages."""


class ShareAverage(RankAverage):
    """Averages a signal of shares instead of ranks; scores are logarithms of shares, up to a constant."""

    def __init__(self, averages: torch.Tensor, signal: str) -> None:
        super().__init__(averages, triton=False)
        self.signal = SIGNALS[signal]

    def update(
        self,
        layer: int,
        scores: torch.Tensor,
        pages: torch.Tensor,
        num_pages: torch.Tensor,
        alpha: float,
        first_alpha: float | None,
    ) -> None:
        """See `RankAverage.update`."""
        count = num_pages[:, None, None]
        past = torch.arange(scores.shape[2], device=scores.device) >= count
        logs = scores.masked_fill(past, -torch.inf).log_softmax(2)
        values = self.signal(logs, count.to(torch.float32))
        update_importance(self.averages[layer], values, pages, num_pages, alpha, first_alpha)


class ShareImportance(Importance):
    """`Importance` by shares."""

    signal: ClassVar[str]

    def __init__(self, inputs: PolicyInputs) -> None:
        super().__init__(inputs)
        self.ranks = ShareAverage(self.worth, self.signal)

    def on_prefill(self, layer: int, mass: torch.Tensor, *lists: torch.Tensor) -> None:
        """See `TieringPolicy.on_prefill`."""
        super().on_prefill(layer, mass.log(), *lists)


class SharePredicted(Predicted):
    """`Predicted` by shares."""

    signal: ClassVar[str]

    def __init__(self, inputs: PolicyInputs) -> None:
        super().__init__(inputs)
        self._average = ShareAverage(self.ranks, self.signal)

    def on_prefill(self, layer: int, mass: torch.Tensor, *lists: torch.Tensor) -> None:
        """See `TieringPolicy.on_prefill`."""
        super().on_prefill(layer, mass.log(), *lists)


def register() -> list[str]:
    """Register both for every signal, in this process alone; their names."""
    names = []
    for base, signal in itertools.product((ShareImportance, SharePredicted), SIGNALS):
        name = f"{base.name}, {signal}"
        if name not in POLICIES.names():
            POLICIES.register(type(base.__name__, (base,), {"name": name, "signal": signal}))
        names.append(name)
    return names


def run(folder: Path, cases: list[Case], alpha: float | None) -> list[Outcome]:
    """Replay cases on one core, the trace read once; ``alpha`` None for the server's."""
    torch.set_num_threads(1)
    register()
    trace = Trace(folder)
    replayable = compact(trace)
    weight = trace.manifest["config"]["importance_alpha"] if alpha is None else alpha
    return [replay(replayable, case, frames_of(trace, replayable, case), weight) for case in cases]


def describe(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """JSON-ready: one entry an outcome, with the difference to `Importance` of the same frames and runners-up."""
    entries = []
    for found in groups(outcomes):
        samples = resampled(found)
        base = next(place for place, one in enumerate(found) if one.case.policy == Importance.name)
        for one, rates in zip(found, samples, strict=True):
            entries.append(
                {
                    "policy": one.case.policy,
                    "capacity": one.case.capacity,
                    "runners_up": one.case.runners_up,
                    "page_hit_rate": round(one.page_hit_rate, 5),
                    "traffic": round(one.traffic, 5),
                    "above_importance": round(one.page_hit_rate - found[base].page_hit_rate, 5),
                    "above_importance_interval": interval(rates - samples[base]),
                }
            )
    return entries


def describe_trace(trace: Trace, by_alpha: dict[float | None, list[Outcome]]) -> dict[str, Any]:
    """What one session's replays show."""
    session = json.loads((trace.folder.parent / f"{trace.folder.name}.json").read_text())
    config = trace.manifest["config"]
    return {
        "model": trace.manifest["model"],
        "page_size": trace.page_size,
        "budget_ratio": config["budget_ratio"],
        "importance_alpha": config["importance_alpha"],
        "prewarm": trace.manifest["prewarm"],
        "prompt_tokens": session["prompt_tokens"],
        "steps": int(by_alpha[None][0].steps.sum()),
        "replays": describe(by_alpha[None]),
        "alphas": {str(alpha): describe(by_alpha[alpha]) for alpha in ALPHAS},
    }


def main() -> None:
    """Replay all sessions of a folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where the traces are")
    parser.add_argument("--sessions", nargs="*", help="names of traces; all when not given")
    parser.add_argument("--onto", type=Path, help="an earlier result, whose other sessions are kept")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    found = sorted(path.parent for path in options.folder.glob(f"*/{MANIFEST}"))
    found = [path for path in found if path.with_suffix(".json").exists()]
    folders = [options.folder / name for name in options.sessions] if options.sessions else found
    averages = [Importance.name, *(name for name in register() if name.startswith(Importance.name))]
    policies = [LRU, BELADY, Importance.name, Predicted.name, *register()]
    ahead = list(itertools.product(CAPACITIES, (0, RUNNERS_UP)))
    jobs: list[tuple[float | None, list[Case]]] = [
        (None, [Case(name, *way) for way in ahead]) for name in policies
    ]
    jobs += [(alpha, [Case(name, size) for size in CAPACITIES]) for alpha in ALPHAS for name in averages]
    outcomes: dict[Path, dict[float | None, list[Outcome]]] = {
        folder: defaultdict(list) for folder in folders
    }
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        futures = {
            pool.submit(run, folder, cases, alpha): (folder, alpha)
            for folder in folders
            for alpha, cases in jobs
        }
        for future in tqdm(as_completed(futures), total=len(futures), desc="replays", disable=None):
            folder, alpha = futures[future]
            outcomes[folder][alpha] += future.result()
    place = {name: number for number, name in enumerate(policies)}
    for by_alpha in outcomes.values():
        for several in by_alpha.values():
            several.sort(key=lambda one: place[one.case.policy])
    metrics = json.loads(options.onto.read_text())["metrics"] if options.onto else {}
    metrics |= {path.name: describe_trace(Trace(path), outcomes[path]) for path in folders}
    write_result("importance_by_mass", metrics)


if __name__ == "__main__":
    main()
