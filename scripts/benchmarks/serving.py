#!/usr/bin/env python3
"""Throughput that clients see when requests outgrow HBM: fa3, HiCache and rheo with the same HBM for KV.

    PYTHONPATH=scripts python -m benchmarks.serving --model FOLDER --out FILE [--answers 400 1500]

SGLang's ``bench_serving``, unchanged, asks twice about each of 24 documents of 28K tokens, 48 requests at once. Every
server has the same memory of the GPU for KV: fa3 and HiCache a pool of that size (HiCache with DRAM beyond it), rheo
frames, page summaries and page table together. The first run of a server, with short answers, has the documents
prefilled and kernels compiled. Ratios are of output tokens a second. ``p99_gap_over_median_step`` is the P99 gap of a
stream over the median time per output token.

``--load 8b-32k`` and ``8b-110k`` have the shape of Qwen3-8B with random weights instead, 16 GiB for KV, and documents
of 31K and 110K tokens, the longest that a dense pool of that size holds; ``--model`` then gives the tokenizer, and
rheo's page scores have the locality of ``--locality``, that of SmolLM2 by default (docs/benchmarks/locality.md). These
loads were not run on a GPU yet.

``--variant NAME SETTINGS ARGUMENTS`` measures rheo once more with further settings (JSON) and arguments of the server,
for example ``--variant rheo_fp8 '{}' '--kv-cache-dtype fp8_e4m3'``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.bench_serving import bench, documents, write_dataset
from common.measurement import RESULTS, gpu_in_words, keep_result, result_document
from common.qwen3_shape import make_shape
from common.servers_in_turn import going_on
from common.sglang_server import SGLangServer
from locality.plugin import ENVIRONMENT, install

WARM_TOKENS = 4
PAGE_SIZE = 32
"""Rheo's default, and what the locality is taken at."""
GENERATED = re.compile(r"gen throughput \(token/s\): ([\d.]+)")
"""In SGLang's log, once in some steps: what the scheduler makes, whenever clients get it."""


@dataclass(frozen=True)
class Load:
    """What clients ask for, and the memory that every server has for its KV.

    Attributes
    ----------
    documents, tokens
        How many, and how long each; every one is asked about twice.
    context
        Of the servers: a document and its answer.
    kv_gib, frames_gib
        HBM for KV, and what of it are rheo's frames; the rest is page summaries and page table.
    host_gib
        DRAM of rheo: documents and answers, and little more, since the metadata of host pages is in HBM.
    dram_gib
        DRAM of HiCache.
    random
        Whether the model is the shape of Qwen3-8B with random weights.
    """

    documents: int
    tokens: int
    context: int
    kv_gib: float
    frames_gib: float
    host_gib: float
    dram_gib: int
    random: bool = False

    @property
    def at_once(self) -> int:
        """Requests at a time: all of them."""
        return 2 * self.documents


LOADS = {
    "coder": Load(24, 28_000, 32_768, 4.0, 2.9, 21.5, 40),
    "8b-32k": Load(12, 31_000, 34_816, 16.0, 12.8, 60.0, 64, random=True),
    "8b-110k": Load(4, 110_000, 114_688, 16.0, 12.4, 68.0, 72, random=True),
}


def server_arguments(load: Load) -> list[str]:
    """Of every server. One tokenizer's process takes 85 ms for a document of 28K tokens, longer than a server takes to
    begin an answer to a cached one."""
    return [
        *("--context-length", str(load.context), "--max-running-requests", str(load.at_once)),
        *("--cuda-graph-max-bs", str(load.at_once), "--mem-fraction-static", "0.8"),
        *("--grammar-backend", "none", "--disable-prefill-cuda-graph", "--tokenizer-worker-num", "8"),
        *(("--load-format", "dummy") if load.random else ()),
    ]


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
    dram_gib: int,
    host_gib: float,
) -> dict[str, list[str]]:
    """Arguments of each server; ``dram_gib`` is HiCache's DRAM, ``host_gib`` rheo's."""
    dense = ["--attention-backend", "fa3", "--max-total-tokens", str(dense_tokens(model, gib))]
    hicache = [
        # SGLang counts 1e9 bytes here
        *("--enable-hierarchical-cache", "--hicache-size", str(math.ceil(dram_gib * 2**30 / 1e9))),
        *("--page-size", "64"),
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


def measure(server: SGLangServer, dataset: Path, load: Load, answers: list[int]) -> Iterator[dict[str, Any]]:
    """Figures of one server, more of them with each length of answers: a run to warm up, then one of each."""
    found: dict[str, Any] = {"warm": bench(server, dataset, load.at_once, load.at_once, WARM_TOKENS)}
    for tokens in answers:
        found[str(tokens)] = bench(server, dataset, load.at_once, load.at_once, tokens)
        found["told"] = told(server)
        print(f"{tokens} tokens: {json.dumps(found[str(tokens)])}", flush=True)
        yield found


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


def load_engines(model: Path, load: Load, config: dict[str, Any]) -> dict[str, list[str]]:
    """Arguments of each server under a load."""
    return engines(model, load.kv_gib, load.frames_gib, config, load.dram_gib, load.host_gib)


def variants(
    asked: list[list[str]], model: Path, load: Load, settings: dict[str, Any]
) -> dict[str, list[str]]:
    """Arguments of each variant's server, by its name.

    Raises
    ------
    ValueError
        If a name does not begin with ``rheo_``.
    """
    found = {}
    for name, more, arguments in asked:
        if not name.startswith("rheo_"):
            raise ValueError(f"--variant {name}: allowed are names that begin with rheo_")
        line = load_engines(model, load, {**settings, **json.loads(more)})["rheo"]
        found[name] = [*line, *shlex.split(arguments)]
    return found


def served_model(given: Path, load: Load, folder: Path) -> Path:
    """The checkpoint that servers get: the one given, or the random model's shape with its tokenizer."""
    if not load.random:
        return given
    shape = make_shape(folder / "qwen3-8b-shape")
    for file in given.iterdir():
        if file.suffix in (".json", ".txt", ".jinja") and not file.name.startswith(("config", "model")):
            shutil.copy(file, shape)
    return shape


def environment_of(engine: str, load: Load, folder: Path, locality: str) -> dict[str, str]:
    """Of a server: rheo's pages are scored by the fitted locality where weights are random."""
    if not load.random or not engine.startswith("rheo"):
        return {}
    install(folder)
    fitted = {"result": str(RESULTS / f"{locality}.json"), "page_size": PAGE_SIZE}
    path = f"{folder}:{os.environ.get('PYTHONPATH', '')}"
    return {"PYTHONPATH": path, ENVIRONMENT: json.dumps(fitted)}


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--load", choices=LOADS, default="coder", help="documents, and memory for KV")
    parser.add_argument("--answers", type=int, nargs="+", default=[400, 1500], help="tokens of an answer")
    parser.add_argument("--engines", nargs="+", help="servers to measure, in this order; all by default")
    parser.add_argument(
        "--variant", nargs=3, action="append", default=[], metavar=("NAME", "SETTINGS", "ARGUMENTS")
    )
    parser.add_argument("--locality", default="locality_smollm2", help="result with the fitted parameters")
    parser.add_argument("--set", default="{}", help="more settings of rheo, as JSON")
    parser.add_argument("--logs", type=Path, help="folder that keeps the servers' logs")
    parser.add_argument("--out", type=Path, help="result file; serving_gpu, or of another load serving_LOAD")
    options = parser.parse_args(arguments)
    name = "serving_gpu" if options.load == "coder" else f"serving_{options.load.replace('-', '_')}"
    options.out = options.out or RESULTS / f"{name}.json"
    return options


def main() -> None:
    """Measure the servers, one after the other, and write the result after every run."""
    options = options_of()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    load, settings = LOADS[options.load], json.loads(options.set)
    found: dict[str, dict[str, Any]] = {}
    figures: dict[str, float] = {}
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        model = served_model(options.model, load, folder)
        commands = load_engines(model, load, settings) | variants(options.variant, model, load, settings)
        if unknown := sorted(set(options.engines or ()) - set(commands)):
            raise SystemExit(f"--engines {' '.join(unknown)}: allowed are {', '.join(commands)}")
        dataset = folder / "documents.json"
        write_dataset(documents(model, load.documents, load.tokens) * 2, dataset)
        common = server_arguments(load)
        for engine in options.engines or commands:
            print(f"== {engine}", flush=True)
            log = (options.logs or folder) / f"serving_{engine}.log"
            line, environment = (
                [*common, *commands[engine]],
                environment_of(engine, load, folder, options.locality),
            )
            with (
                going_on(engine, failed),
                SGLangServer(model, line, log, gpu=True, environment=environment) as server,
            ):
                for found[engine] in measure(server, dataset, load, options.answers):
                    figures = ratios(found, options.load, load.kv_gib, options.answers)
                    metrics = {
                        **figures,
                        **found,
                        "model": "Qwen3-8B's shape, random weights" if load.random else options.model.name,
                        **({"locality": options.locality} if load.random else {}),
                        "servers": {name: " ".join([*common, *line]) for name, line in commands.items()},
                    }
                    keep_result(options.out, result_document(options.out.stem, metrics, gpu_in_words()))
    print(json.dumps(figures, indent=1))
    raise SystemExit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
