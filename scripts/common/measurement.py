"""What every measurement shares: real text, the machine in words, and result files."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[1]
REPOSITORY = SCRIPTS.parent
RESULTS = REPOSITORY / "docs" / "benchmarks" / "results"
RESULT_OPTIONS = ("--out", "--onto", "--tpot")
"""Options of measurements that name result files."""
MODEL = REPOSITORY / ".models" / "smollm2-135m-instruct"


def language_reference() -> str:
    """Long real text that every Python brings along: the topics of its language reference."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def tokenizer(model: Path) -> Any:
    """The checkpoint's tokenizer."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(model / "tokenizer.json"))


def text_prompts(model: Path, lengths: list[int]) -> list[list[int]]:
    """Token ids of consecutive passages of `language_reference`, one of each length."""
    needed = sum(lengths)
    ids = tokenizer(model).encode(language_reference()[: 8 * needed]).ids
    prompts, start = [], 0
    for length in lengths:
        prompts.append(ids[start : start + length])
        start += length
    return prompts


def machine_in_words() -> str:
    """Processor, cores and memory of this machine."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0].split(":", 1)[1].strip() if names else name
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    ours, all_cores = len(os.sched_getaffinity(0)), os.cpu_count()
    cores = f"{ours} cores" if ours == all_cores else f"{ours} of {all_cores} cores"
    return f"{cores} of a {name}, {memory:.0f} GiB DRAM, no GPU"


def gpu_in_words() -> str:
    """The GPUs and the host around them."""
    import torch

    count = torch.cuda.device_count()
    gpus = f"one {torch.cuda.get_device_name()}" if count == 1 else f"{count} {torch.cuda.get_device_name()}"
    return f"{gpus}, {machine_in_words().removesuffix(', no GPU')}"


def result_document(
    name: str, metrics: dict[str, Any], machine: str | None = None, shape: str | None = None
) -> dict[str, Any]:
    """A result as it is kept in ``docs/benchmarks/results``.

    Parameters
    ----------
    name
        Of the result, which is its file's.
    metrics
        What was measured.
    machine
        In words; this one without its GPU by default.
    shape
        What was measured on, in words, if that is not among the metrics.
    """
    versions = {}
    for package in ("rheo-sglang", "sglang", "torch", "triton"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    versions["python"] = platform.python_version()
    module = Path(sys.argv[0]).resolve().relative_to(SCRIPTS).with_suffix("")
    arguments = list(sys.argv[1:])
    for i, option in enumerate(arguments[:-1]):
        if option in RESULT_OPTIONS:
            file = f"{name}.json" if option == "--out" else Path(arguments[i + 1]).name
            arguments[i + 1] = f"docs/benchmarks/results/{file}"
    arguments = [Path(word).name if Path(word).is_absolute() else word for word in arguments]
    return {
        "name": name,
        "date": datetime.date.today().isoformat(),
        "machine": machine or machine_in_words(),
        "versions": versions,
        "command": shlex.join(["python", "-m", ".".join(module.parts), *arguments]),
        **({} if shape is None else {"shape": shape}),
        "metrics": metrics,
    }


def measured_where(document: dict[str, Any], measured: Path) -> dict[str, Any]:
    """A result that is computed from what another one's servers said: date, machine and versions are that one's."""
    about = json.loads(measured.read_text())
    return {**document, **{key: about[key] for key in ("date", "machine", "versions")}}


def keep_result(path: Path, document: dict[str, Any]) -> None:
    """Write a result into a file, whose folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def write_result(name: str, metrics: dict[str, Any], machine: str | None = None) -> Path:
    """Write ``docs/benchmarks/results/NAME.json`` and return its path."""
    path = RESULTS / f"{name}.json"
    keep_result(path, result_document(name, metrics, machine))
    return path
