#!/usr/bin/env python3
"""Replay traced sessions under every policy and capacity, and compare the aggregate's best pages with each step's.

    PYTHONPATH=scripts python -m studies.replay_workloads --folder traces

Takes the traces that `studies.trace_workloads` left in the folder. Writes ``docs/benchmarks/results/NAME.json``,
``replay_cpu`` unless named: hit rates of every tiering policy and of Belady's MIN for 1 to 3 times the selection, where
only misses get frames and where runners-up do, with intervals; and the Jaccard index of the tenth of the pages that has
the greatest mean share of attention with the tenth that each step ranks highest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.measurement import write_result
from rheo_sglang.decode.reference_engine import RUNNERS_UP
from rheo_sglang.replay.heatmap import heat_maps, requests
from rheo_sglang.replay.sweep import BELADY, Case, sweep
from rheo_sglang.replay.table import describe
from rheo_sglang.tiering import POLICIES
from rheo_sglang.traces import Trace
from rheo_sglang.traces.reader import MANIFEST
from workloads.sessions import SESSIONS

CAPACITIES = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
WITH_RUNNERS_UP = (1.25, 2.5)
"""Capacities that are replayed with runners-up too."""
BEST = 0.1
KEPT = (
    *("policy", "capacity", "frames", "runners_up", "page_hit_rate", "interval", "traffic"),
    *("above_lru", "above_lru_interval", "of_the_way", "of_the_way_interval"),
)


def jaccard(trace: Trace) -> dict[str, Any]:
    """Means over steps, layers and KV heads of a session, and the 2.5th and 97.5th percentile over layers and heads."""
    parts = [
        (slice(layer, layer + 1), slice(head, head + 1))
        for layer, head in itertools.product(range(trace.layers), range(trace.kv_heads))
    ]
    by_part: list[list[float]] = [[] for _ in parts]
    for request in requests(trace):
        for found, heat_map in zip(by_part, heat_maps(trace, request, parts), strict=True):
            share = np.nan_to_num(np.exp(heat_map.log_share), nan=0.0)
            count = max(round(BEST * share.shape[1]), 1)
            overall = set(np.argsort(-share.mean(0))[:count].tolist())
            for step in np.argsort(-share, axis=1)[:, :count]:
                found.append(len(overall & set(step.tolist())) / len(overall | set(step.tolist())))
    means = [float(np.mean(found)) for found in by_part]
    low, high = np.percentile(means, (2.5, 97.5))
    return {"mean": round(float(np.mean(means)), 4), "over_heads": [round(low, 4), round(high, 4)]}


def replays(trace: Trace, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every policy, capacity and number of runners-up."""
    policies = [*options.policies, BELADY]
    cases = [Case(*one) for one in itertools.product(policies, options.capacities)]
    cases += [Case(*one, RUNNERS_UP) for one in itertools.product(policies, options.runners_up)]
    with tqdm(total=len(cases), desc=trace.folder.name, leave=False, disable=None) as progress:
        outcomes = sweep(trace, cases, options.processes, lambda _: progress.update())
    return [{key: entry[key] for key in KEPT if key in entry} for entry in describe(outcomes)]


def describe_trace(trace: Trace, options: argparse.Namespace) -> dict[str, Any]:
    """What one session's trace shows."""
    session = json.loads((trace.folder.parent / f"{trace.folder.name}.json").read_text())
    return {
        "model": trace.manifest["model"],
        "dtype": session["dtype"],
        "page_size": trace.page_size,
        "budget_ratio": trace.manifest["config"]["budget_ratio"],
        "summary": trace.manifest["summary"],
        "document_tokens": session["document_tokens"],
        "prompt_tokens": session["prompt_tokens"],
        "steps": dict(requests(trace)),
        "dropped": trace.dropped,
        "server_page_hit_rate": session["recorder"]["overall"]["page_hit_rate"],
        "jaccard": jaccard(trace),
        "replays": replays(trace, options),
    }


def main() -> None:
    """Replay all sessions of a folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where the traces are")
    parser.add_argument("--policies", nargs="+", choices=POLICIES.names(), default=sorted(POLICIES.names()))
    parser.add_argument("--capacities", type=float, nargs="+", default=CAPACITIES)
    parser.add_argument("--runners-up", type=float, nargs="*", default=WITH_RUNNERS_UP, help="capacities")
    parser.add_argument("--name", default="replay_cpu", help="of the result")
    parser.add_argument("--onto", type=Path, help="an earlier result, whose other sessions are kept")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    found = {
        path.parent.name: path.parent
        for path in options.folder.glob(f"*/{MANIFEST}")
        if path.parent.with_suffix(".json").exists()
    }
    order = {name: place for place, name in enumerate(SESSIONS)}
    metrics = json.loads(options.onto.read_text())["metrics"] if options.onto else {}

    def place(name: str) -> tuple[int, int, int]:
        return order[name.split("-")[0]], metrics[name]["page_size"], metrics[name]["prompt_tokens"][0]

    for name, path in found.items():
        metrics[name] = describe_trace(Trace(path), options)
        write_result(options.name, {name: metrics[name] for name in sorted(metrics, key=place)})


if __name__ == "__main__":
    main()
