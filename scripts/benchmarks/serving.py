#!/usr/bin/env python3
"""Throughput that clients see when requests outgrow HBM: fa3, HiCache and rheo with the same HBM for KV.

    PYTHONPATH=scripts python -m benchmarks.serving --model FOLDER --out FILE [--answers 400 1500]

SGLang's ``bench_serving``, unchanged, asks twice about each of 24 documents of 28K tokens, 48 requests at once. Every
server has the same memory of the GPU for KV: fa3 and HiCache a pool of that size (HiCache with DRAM beyond it), rheo
frames, page summaries and page table together. The first run of a server, with short answers, has the documents
prefilled and kernels compiled. Ratios are of output tokens a second. ``p99_gap_over_median_step`` is the P99 gap of a
stream over the median time per output token.

``--variant NAME SETTINGS ARGUMENTS`` measures rheo once more with further settings (JSON) and arguments of the server,
for example ``--variant rheo_fp8 '{}' '--kv-cache-dtype fp8_e4m3'``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

from common.bench_serving import bench, documents, write_dataset
from common.measurement import RESULTS, gpu_in_words, keep_result, result_document
from common.sglang_server import SGLangServer

DOCUMENTS = 24
DOCUMENT_TOKENS = 28000
AT_ONCE = 48
WARM_TOKENS = 4
GENERATED = re.compile(r"gen throughput \(token/s\): ([\d.]+)")
"""In SGLang's log, once in some steps: what the scheduler makes, whenever clients get it."""
KV_GIB = 4.0
DRAM_GIB = 40
"""Of HiCache."""
HOST_GIB = 21.5
"""Of rheo: documents and answers, and little more, since the metadata of host pages is in HBM."""
SERVER_ARGUMENTS = (
    *(
        "--context-length",
        "32768",
        "--max-running-requests",
        str(AT_ONCE),
        "--cuda-graph-max-bs",
        str(AT_ONCE),
    ),
    *("--mem-fraction-static", "0.8", "--grammar-backend", "none", "--disable-prefill-cuda-graph"),
    *("--tokenizer-worker-num", "8"),
)
"""One tokenizer's process takes 85 ms for a document, longer than a server takes to begin an answer to a cached one."""


def kv_bytes_of_a_token(model: Path) -> int:
    """K and V of all layers in bfloat16."""
    config = json.loads((model / "config.json").read_text())
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return 2 * 2 * head * int(config["num_key_value_heads"]) * int(config["num_hidden_layers"])


def dense_tokens(model: Path, gib: float) -> int:
    """Tokens that a pool of dense KV holds."""
    return int(gib * 2**30) // kv_bytes_of_a_token(model)


def engines(
    model: Path,
    gib: float,
    frames_gib: float,
    config: dict[str, Any],
    dram_gib: int = DRAM_GIB,
    host_gib: float = HOST_GIB,
) -> dict[str, list[str]]:
    """Arguments of each server; ``dram_gib`` is HiCache's DRAM, ``host_gib`` rheo's."""
    dense = ["--attention-backend", "fa3", "--max-total-tokens", str(dense_tokens(model, gib))]
    hicache = [
        *("--enable-hierarchical-cache", "--hicache-size", str(dram_gib), "--page-size", "64"),
        *("--hicache-write-policy", "write_through"),
        *("--hicache-io-backend", "kernel", "--hicache-mem-layout", "page_first"),
    ]
    settings = {"frame_pool_gib": frames_gib, "host_pool_gib": host_gib, **config}
    return {
        "fa3": dense,
        "hicache": [*dense, *hicache],
        "rheo": ["--attention-backend", "rheo", "--rheo-config", json.dumps(settings)],
    }


def told(server: SGLangServer) -> dict[str, Any]:
    """What a server says of its steps and, in its log, of its memory."""
    (state,) = server.server_info()["internal_states"]
    overall = (state.get("rheo", {}).get("recorder") or {}).get("overall") or {}
    lines = server.log.read_text(errors="replace").splitlines()
    return {
        "scheduler_tokens_per_s": [float(rate) for rate in GENERATED.findall("\n".join(lines))],
        "recorder": {key: value for key, value in overall.items() if isinstance(value, int | float)},
        "memory": [line.split("] ", 1)[-1] for line in lines if " GiB" in line and "rheo" in line],
    }


def measure(server: SGLangServer, dataset: Path, answers: list[int]) -> dict[str, Any]:
    """Figures of one server: a run to warm up, then one of each length of answers."""
    found: dict[str, Any] = {"warm": bench(server, dataset, 2 * DOCUMENTS, AT_ONCE, WARM_TOKENS)}
    for tokens in answers:
        found[str(tokens)] = bench(server, dataset, 2 * DOCUMENTS, AT_ONCE, tokens)
        print(f"{tokens} tokens: {json.dumps(found[str(tokens)])}", flush=True)
    found["told"] = told(server)
    return found


def ratios(found: dict[str, dict[str, Any]], model: str, gib: float, answers: list[int]) -> dict[str, float]:
    """The figures that goals name, of rheo and then of each of its variants."""
    result = {}
    for name, ours in found.items():
        variant = name.removeprefix("rheo")
        others = ("fa3", "hicache", "rheo") if variant else ("fa3", "hicache")
        for tokens in map(str, answers):
            if not name.startswith("rheo") or tokens not in ours:
                continue
            for engine in others:
                if tokens in found.get(engine, {}):
                    theirs = found[engine][tokens]["output_throughput"]
                    key = f"throughput{variant}_vs_{engine}_{model}_{gib:g}gib_{tokens}"
                    result[key] = round(ours[tokens]["output_throughput"] / theirs, 3)
            result[f"p99_gap_over_median_step{variant}_{tokens}"] = round(
                ours[tokens]["p99_itl_ms"] / ours[tokens]["median_tpot_ms"], 2
            )
    return result


def variants(options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, list[str]]:
    """Arguments of each variant's server, by its name.

    Raises
    ------
    ValueError
        If a name does not begin with ``rheo_``.
    """
    found = {}
    for name, more, arguments in options.variant:
        if not name.startswith("rheo_"):
            raise ValueError(f"--variant {name}: allowed are names that begin with rheo_")
        config = {**settings, **json.loads(more)}
        line = engines(options.model, options.gib, options.frames_gib, config)["rheo"]
        found[name] = [*line, *shlex.split(arguments)]
    return found


def main() -> None:
    """Measure the servers, one after the other, and write the result after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--name", default="coder", help="what keys call the model")
    parser.add_argument("--answers", type=int, nargs="+", default=[400, 1500], help="tokens of an answer")
    parser.add_argument("--gib", type=float, default=KV_GIB, help="HBM for KV of every server, GiB")
    parser.add_argument("--frames-gib", type=float, default=2.9, help="of it, rheo's frames")
    parser.add_argument("--engines", nargs="+", help="servers to measure, in this order; all by default")
    parser.add_argument(
        "--variant", nargs=3, action="append", default=[], metavar=("NAME", "SETTINGS", "ARGUMENTS")
    )
    parser.add_argument("--set", default="{}", help="more settings of rheo, as JSON")
    parser.add_argument("--logs", type=Path, help="folder that keeps the servers' logs")
    parser.add_argument("--out", type=Path, default=RESULTS / "serving_gpu.json")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    settings = json.loads(options.set)
    commands = engines(options.model, options.gib, options.frames_gib, settings)
    commands |= variants(options, settings)
    unknown = sorted(set(options.engines or ()) - set(commands))
    if unknown:
        parser.error(f"--engines {' '.join(unknown)}: allowed are {', '.join(commands)}")
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "documents.json"
        write_dataset(documents(options.model, DOCUMENTS, DOCUMENT_TOKENS) * 2, dataset)
        for engine in options.engines or commands:
            print(f"== {engine}", flush=True)
            log = (options.logs or Path(folder)) / f"serving_{engine}.log"
            arguments = [*SERVER_ARGUMENTS, *commands[engine]]
            with SGLangServer(options.model, arguments, log, gpu=True) as server:
                found[engine] = measure(server, dataset, options.answers)
            metrics = {
                **ratios(found, options.name, options.gib, options.answers),
                **found,
                "model": options.model.name,
                "servers": {name: " ".join([*SERVER_ARGUMENTS, *line]) for name, line in commands.items()},
            }
            keep_result(options.out, result_document("serving_gpu", metrics, gpu_in_words()))
    print(json.dumps(ratios(found, options.name, options.gib, options.answers), indent=1))


if __name__ == "__main__":
    main()
