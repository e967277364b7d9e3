"""Result files: what was measured, with which command, on what machine."""

import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def metric_name(task: str, length: int) -> str:
    """Name of a task's accuracy at a length, such as ``needle_32k``."""
    return f"{task}_{length // 1024}k" if length % 1024 == 0 else f"{task}_{length}"


def result_document(
    name: str, command: str, metrics: Mapping[str, float], packages: Sequence[str], accelerator: str | None
) -> dict[str, Any]:
    """Describe a measurement.

    Parameters
    ----------
    name
        Name of the measurement.
    command
        Command line that repeats it.
    metrics
        Figures by name.
    packages
        Distributions whose versions matter; those not installed are left out.
    accelerator
        GPU in words, or None where none was used.
    """
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    cores = f"{os.cpu_count()} {platform.machine()} CPU cores"
    return {
        "name": name,
        "date": datetime.date.today().isoformat(),
        "machine": f"one {accelerator}, {cores}" if accelerator else cores,
        "versions": versions,
        "command": command,
        "metrics": dict(metrics),
    }


def write_result(document: Mapping[str, Any], path: Path) -> None:
    """Write a measurement as JSON; the folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
