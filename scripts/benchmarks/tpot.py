#!/usr/bin/env python3
"""Time per output token of rheo and of SGLang's fa3, at the Qwen3-8B shape with random weights.

    PYTHONPATH=scripts python -m benchmarks.tpot --out FILE [--engines fa3 resident 10pct-bs4 ...]

Every engine runs in a process of its own, one after another, over the same prompts. Random weights have no locality,
so the engines that keep 10 % of the KV in HBM are timed with them (``raw``), and others with page scores whose locality
is that of a real model (docs/benchmarks/locality.md), SmolLM2 unless ``--locality`` names another fit: with all misses
fetched, all attended on the CPU, and divided by the cost model (``auto``). A figure is the median of the gaps between
tokens, over all requests of a batch, while all decode.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.decode_profile import gpu_events, kernel_profile
from common.measurement import RESULTS, gpu_in_words, keep_result, result_document
from common.qwen3_shape import CONFIG, make_shape
from locality.plugin import ENVIRONMENT, install

PAGE_SIZE = 32
NEW_TOKENS = 80
COUNTED = 64
LAYERS = int(str(CONFIG["num_hidden_layers"]))
PROFILED_TOKENS = 300
MARGIN = 96
"""Prompts are this much shorter than the context they stand for, so that their answers fit into it."""
CONTEXTS = {"2k": 2048, "32k": 32768, "128k": 131072}
BATCHES = (1, 4, 8)


@dataclass(frozen=True)
class EngineCase:
    """One engine: its rheo settings (None: fa3) and the batches to time, in groups that share the cache.

    Without ``frame_pool_tokens`` the whole KV is resident. ``synthetic``: page scores have the fitted locality.
    ``arguments`` are further ones of the engine.
    """

    config: dict[str, Any] | None
    groups: list[list[tuple[str, int]]]
    synthetic: bool = False
    profiled: list[tuple[str, int]] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)


SELECTED = {"": 0.08, "-select4": 0.04}
"""Share of the pages that a step selects: frames for 10 % of the KV are 1.25 or 2.5 times as many."""


ALL = [[("128k", 1), ("128k", 4)], [("32k", 1), ("32k", 4), ("32k", 8), ("2k", 1), ("2k", 4), ("2k", 8)]]
MISS_MODES = ("fetch", "split", "auto")
VARIANTS: dict[str, dict[str, Any]] = {
    "-fp8": {"kv_cache_dtype": "fp8_e4m3"},
    "-tp2": {"tp_size": 2},
}
"""Of fa3 and of rheo's default: KV of 8 bits, and two GPUs."""
ENGINES = {
    "fa3": EngineCase(None, ALL),
    "resident": EngineCase({"budget_ratio": SELECTED[""]}, ALL, profiled=[("128k", 1)]),
    "default": EngineCase({}, ALL, profiled=[("128k", 1)]),
    "rows8": EngineCase({"summary": "subcentroids8"}, ALL),
    "unwatched": EngineCase({"policy": "lru", "recorder": "off"}, ALL),
    **{
        name + suffix: EngineCase(config, ALL, arguments=arguments)
        for suffix, arguments in VARIANTS.items()
        for name, config in (("fa3", None), ("default", {}))
    },
    **{
        f"10pct-bs{batch}{suffix}{scores}": EngineCase(
            {"budget_ratio": ratio, "frame_pool_tokens": batch * CONTEXTS["128k"] // 10},
            [[("128k", batch)]],
            not scores,
            [] if scores else [("128k", batch)],
        )
        for batch in (1, 4)
        for suffix, ratio in SELECTED.items()
        for scores in ("", "-raw")
    },
    "exact": EngineCase(
        {"budget_ratio": 1.0, "dense_threshold": 0, "frame_pool_tokens": CONTEXTS["128k"] // 10},
        [[("128k", 1)]],
    ),
}


def prompts(context: str, batch: int) -> list[list[int]]:
    """Random token ids; shorter contexts are prefixes of longer ones."""
    lists = []
    for row in range(batch):
        source = random.Random(row)
        lists.append([source.randrange(1000, 100000) for _ in range(CONTEXTS[context] - MARGIN)])
    return lists


async def token_times(
    engine: Any, ids: list[int], rid: str, tokens: int = NEW_TOKENS, started: asyncio.Event | None = None
) -> list[float]:
    """When each token of one answer arrived."""
    sampling = {"temperature": 0.0, "max_new_tokens": tokens, "ignore_eos": True}
    stream = await engine.async_generate(input_ids=ids, sampling_params=sampling, rid=rid, stream=True)
    times = []
    async for _ in stream:
        times.append(time.perf_counter())
        if started is not None:
            started.set()
    return times


async def measure(engine: Any, context: str, batch: int, label: str) -> dict[str, float]:
    """Median and mean gap between tokens (ms) while all requests decode, and the time to the last first token (s)."""
    lists = prompts(context, batch)
    start = time.perf_counter()
    rids = [f"{label}-{context}-{batch}-{row}" for row in range(batch)]
    times = await asyncio.gather(
        *(token_times(engine, ids, rid) for ids, rid in zip(lists, rids, strict=True))
    )
    gaps = [b - a for row in times for a, b in zip(row[-COUNTED - 1 :], row[-COUNTED:], strict=False)]
    return {
        "tpot_ms": 1e3 * statistics.median(gaps),
        "tpot_mean_ms": 1e3 * statistics.fmean(gaps),
        "ttft_s": max(row[0] for row in times) - start,
    }


def hit_rate(engine: Any, prefix: str) -> float | None:
    """Mean hit rate of the requests whose ids begin with ``prefix``."""
    state = engine.get_server_info()["internal_states"][0].get("rheo")
    if state is None or state["recorder"] is None:
        return None
    rates = [entry["hit_rate"] for entry in state["recorder"]["requests"] if entry["rid"].startswith(prefix)]
    return statistics.fmean(rates) if rates else None


PER_CPU_PART = ("cpu_part_us", "late_cpu_threads")
"""What is reported per layer that the CPU took a part of; the rest is per layer with misses."""


def misses(engine: Any) -> dict[str, float]:
    """What misses took so far (us), and threads that came late to them, over all layers."""
    state = engine.get_server_info()["internal_states"][0].get("rheo") or {}
    means = state.get("misses") or {}
    counts = {name: value for name, value in means.items() if name.startswith("layers")}
    times = {
        name: value * counts["layers_with_a_cpu_part" if name in PER_CPU_PART else "layers_with_misses"]
        for name, value in means.items()
        if name not in counts
    }
    return {**counts, **times}


def misses_between(before: dict[str, float], after: dict[str, float], tpot_ms: float) -> dict[str, float]:
    """Means per layer (us) of what misses took in between, and the share of a step in which GPU and CPU worked."""
    spent = {name: value - before.get(name, 0) for name, value in after.items()}
    layers = spent.get("layers_with_misses", 0)
    if not layers:
        return {}
    by_cpu = spent["layers_with_a_cpu_part"]
    found = {
        name: value / max(by_cpu if name in PER_CPU_PART else layers, 1)
        for name, value in spent.items()
        if not name.startswith("layers")
    }
    return {
        **found,
        "layers_with_a_cpu_part": by_cpu / layers,
        "both_worked_share_of_step": spent["both_worked_us"] / (layers / LAYERS) / (1e3 * tpot_ms),
    }


async def profile(engine: Any, context: str, batch: int) -> dict[str, Any]:
    """Profile the GPU over the last decode steps of one batch."""
    folder = Path(tempfile.mkdtemp())
    lists = [ids[: MARGIN - PROFILED_TOKENS] for ids in prompts(context, batch)]
    started = [asyncio.Event() for _ in lists]
    answers = asyncio.gather(
        *(
            token_times(engine, ids, f"profile-{row}", PROFILED_TOKENS, started[row])
            for row, ids in enumerate(lists)
        )
    )
    await asyncio.gather(*(event.wait() for event in started))
    from sglang.srt.managers.io_struct import ProfileReq, ProfileReqType

    manager = engine.tokenizer_manager
    await manager.start_profile(
        ProfileReq(
            req_type=ProfileReqType.START_PROFILE,
            output_dir=str(folder),
            activities=["GPU"],
            with_stack=False,
            record_shapes=False,
        )
    )
    await answers
    await manager.stop_profile()
    traces = sorted(folder.rglob("*.json.gz"))
    return kernel_profile(gpu_events(traces[0]), LAYERS) if traces else {}


def host_tokens(groups: list[list[tuple[str, int]]]) -> int:
    """Tokens that the largest batch needs."""
    return max(batch * CONTEXTS[context] for group in groups for context, batch in group) + 4096


def serve(case: EngineCase, switch: Path, kept: Path) -> None:
    """Start an engine, time its batches, and stop it; what was found so far is kept after every batch."""
    import sglang

    start = time.monotonic()
    engine = sglang.Engine(
        model_path=str(make_shape(Path(tempfile.mkdtemp()) / "qwen3-8b-shape")),
        load_format="dummy",
        skip_tokenizer_init=True,
        attention_backend="fa3" if case.config is None else "rheo",
        page_size=1 if case.config is None else PAGE_SIZE,
        grammar_backend="none",
        cuda_graph_bs_decode=sorted({batch for group in case.groups for _, batch in group}),
        mem_fraction_static=0.88,
        context_length=CONTEXTS["128k"] + 1024,
        chunked_prefill_size=8192,
        disable_prefill_cuda_graph=True,
        max_running_requests=16,
        log_level="info",
        **({} if case.config is None else {"max_total_tokens": host_tokens(case.groups)}),
        **case.arguments,
    )
    found: dict[str, Any] = {"start_s": time.monotonic() - start}
    print(f"started in {found['start_s']:.0f} s", flush=True)
    run = engine.loop.run_until_complete
    for group in case.groups:
        for context, batch in group:
            if case.synthetic:
                switch.write_text("auto")
            warm = run(measure(engine, context, batch, "warm"))
            found[f"{context}_bs{batch}_cold"] = warm
            for way in MISS_MODES if case.synthetic else ("",):
                if way:
                    switch.write_text(way)
                label = f"{context}_bs{batch}" + (f"_{way}" if way else "")
                before = misses(engine)
                found[label] = run(measure(engine, context, batch, label))
                found[label] |= misses_between(before, misses(engine), found[label]["tpot_ms"])
                rate = hit_rate(engine, label)
                if rate is not None:
                    found[label]["hit_rate"] = rate
                print(label, found[label], flush=True)
                kept.write_text(json.dumps(found))
            if (context, batch) in case.profiled:
                found[f"{context}_bs{batch}_profile"] = run(profile(engine, context, batch))
            switch.unlink(missing_ok=True)
            kept.write_text(json.dumps(found))
        engine.flush_cache()
    engine.shutdown()


def chosen_case(name: str, contexts: list[str], batches: list[int]) -> EngineCase:
    """An engine's case with the batches that were asked for."""
    case = ENGINES[name]
    groups = [[pair for pair in group if pair[0] in contexts and pair[1] in batches] for group in case.groups]
    groups = [group for group in groups if group]
    config = case.config
    if config is not None and groups:
        config = {"frame_pool_tokens": host_tokens(groups), **config}
    return replace(case, config=config, groups=groups)


def run_engine(
    name: str, case: EngineCase, folder: Path, locality: str, arguments: list[str]
) -> tuple[dict[str, Any], bool]:
    """Run one engine in a process of its own: what it found, until it ended early if it did, and whether to go on."""
    found, switch = folder / f"{name}.json", folder / "switch"
    environment = {**os.environ, "RHEO_CONFIG": json.dumps(case.config or {})}
    if case.synthetic:
        install(folder)
        environment["PYTHONPATH"] = f"{folder}:{environment.get('PYTHONPATH', '')}"
        environment[ENVIRONMENT] = json.dumps(
            {"result": str(RESULTS / f"{locality}.json"), "page_size": PAGE_SIZE, "switch": str(switch)}
        )
    command = [
        sys.executable,
        "-m",
        "benchmarks.tpot",
        "--engine",
        name,
        "--found",
        str(found),
        "--switch",
        str(switch),
    ]
    going_on = True
    try:
        status = subprocess.run([*command, *arguments], env=environment).returncode
        if status != 0:
            print(f"{name}: ended with status {status}", flush=True)
    except KeyboardInterrupt:
        going_on = False
    return (dict(json.loads(found.read_text())) if found.exists() else {}), going_on


def ratios(metrics: dict[str, Any]) -> dict[str, float]:
    """The keys that the goals are read from."""
    keys: dict[str, float] = {}

    def ratio(key: str, engine: str, label: str, dense: str, other: str = "fa3") -> None:
        if label in metrics.get(engine, {}) and dense in metrics.get(other, {}):
            keys[key] = metrics[engine][label]["tpot_ms"] / metrics[other][dense]["tpot_ms"]

    for context, batch in (pair for group in ALL for pair in group):
        label, suffix = f"{context}_bs{batch}", "" if context == "2k" else "_resident"
        ratio(f"tpot_ratio_{label}{suffix}", "resident", label, label)
        ratio(f"tpot_ratio_{label}{suffix}_default", "default", label, label)
        ratio(f"tpot_default_over_unwatched_{label}", "default", label, label, "unwatched")
        ratio(f"tpot_ratio_{label}{suffix}_rows8", "rows8", label, label)
        for variant in VARIANTS:
            name = variant.replace("-", "_")
            ratio(
                f"tpot_ratio_{label}{suffix}_default{name}",
                f"default{variant}",
                label,
                label,
                f"fa3{variant}",
            )
            ratio(f"tpot{name}_over_default_{label}", f"default{variant}", label, label, "default")
    for batch, suffix in ((batch, suffix) for batch in (1, 4) for suffix in SELECTED):
        label, engine = f"128k_bs{batch}", f"10pct-bs{batch}{suffix}"
        key = f"tpot_ratio_{label}_10pct" + suffix.replace("-", "_")
        for mode in MISS_MODES:
            ratio(f"{key}_{mode}", engine, f"{label}_{mode}", label)
        ratio(f"{key}_raw", f"{engine}-raw", label, label)
        ratio(key, engine, f"{label}_auto", label)
    ratio("tpot_ratio_128k_bs1_10pct_exact", "exact", "128k_bs1", "128k_bs1")
    if "128k_bs1" in metrics.get("fa3", {}):
        keys["fa3_tpot_ms_128k_bs1"] = metrics["fa3"]["128k_bs1"]["tpot_ms"]
    return keys


def main() -> None:
    """Run the engines and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file to write; engines that it has are kept")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--contexts", nargs="+", choices=CONTEXTS, default=list(CONTEXTS))
    parser.add_argument("--batches", nargs="+", type=int, choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--locality", default="locality_smollm2", help="result with the fitted parameters")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--switch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        case = chosen_case(arguments.engine, arguments.contexts, arguments.batches)
        serve(case, arguments.switch, arguments.found)
        return
    if arguments.out is None:
        parser.error("--out is needed: the JSON file to write")
    metrics: dict[str, Any] = {
        "weights": "random, bfloat16",
        "shape": "Qwen3-8B",
        "locality": arguments.locality,
    }
    commands = []
    if arguments.out.exists():
        before = json.loads(arguments.out.read_text())
        metrics |= {name: value for name, value in before["metrics"].items() if name in ENGINES}
        commands.append(before["command"])
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.engines:
            print(f"== {name}", flush=True)
            case = chosen_case(name, arguments.contexts, arguments.batches)
            if not case.groups:
                continue
            choice = ["--contexts", *arguments.contexts, "--batches", *map(str, arguments.batches)]
            metrics[name], going_on = run_engine(name, case, Path(folder), arguments.locality, choice)
            document = result_document(arguments.out.stem, {**ratios(metrics), **metrics}, gpu_in_words())
            document["command"] = "; ".join([*commands, document["command"]])
            keep_result(arguments.out, document)
            if not going_on:
                break
    print(json.dumps(ratios(metrics), indent=1), flush=True)


if __name__ == "__main__":
    main()
