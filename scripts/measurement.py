"""What every measurement shares: real text, the machine in words, and result files."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "docs" / "benchmarks" / "results"
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
    return f"{os.cpu_count()} cores of a {name}, {memory:.0f} GiB DRAM, no GPU"


def gpu_in_words() -> str:
    """The GPU and the host around it."""
    import torch

    return f"one {torch.cuda.get_device_name()}, {machine_in_words().removesuffix(', no GPU')}"


def result_document(name: str, metrics: dict[str, Any], machine: str | None = None) -> dict[str, Any]:
    """A result as it is kept in ``docs/benchmarks/results``."""
    versions = {
        package: importlib.metadata.version(package) for package in ("rheo-sglang", "sglang", "torch")
    }
    versions["python"] = platform.python_version()
    script = Path(sys.argv[0]).resolve().relative_to(REPOSITORY)
    arguments = list(sys.argv[1:])
    if "--out" in arguments[:-1]:
        arguments[arguments.index("--out") + 1] = f"docs/benchmarks/results/{name}.json"
    return {
        "name": name,
        "date": datetime.date.today().isoformat(),
        "machine": machine or machine_in_words(),
        "versions": versions,
        "command": shlex.join(["python", str(script), *arguments]),
        "metrics": metrics,
    }


def write_result(name: str, metrics: dict[str, Any], machine: str | None = None) -> Path:
    """Write ``docs/benchmarks/results/NAME.json`` and return its path."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result_document(name, metrics, machine), indent=1) + "\n")
    return path
