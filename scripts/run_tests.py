#!/usr/bin/env python3
"""Runs every check of the repository from nothing, and ends with a summary.

    python3 scripts/run_tests.py [--no-servers]

Standard library only. Creates the environments of the oldest and the newest supported SGLang, makes the
models, then formats, lints, type-checks, and tests in both. Exits with 1 if any step failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from environment.create import (
    REPOSITORY,
    SGLANG_VERSIONS,
    EnvironmentCreationError,
    check_supported,
    ensure_environment,
)

OLDEST, NEWEST = SGLANG_VERSIONS[0], SGLANG_VERSIONS[-1]
CHILD_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "", "HF_HUB_OFFLINE": "1"}
STEP_TIMEOUT = 1200.0
INTERRUPT_TIMEOUT = 60.0


@dataclass(frozen=True)
class Step:
    """One command of the run.

    Attributes
    ----------
    name : str
        Shown in the summary.
    sglang : str
        Version whose environment runs it.
    arguments : tuple of str
        Arguments of that environment's Python.
    """

    name: str
    sglang: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """How a step went: its name, whether it passed, and how many seconds it took."""

    name: str
    passed: bool
    seconds: float


def preparation() -> list[Step]:
    """The steps before the tests, in order."""
    return [
        Step("model SmolLM2", NEWEST, ("scripts/convert_model.py", "smollm2-135m-instruct")),
        Step("tiny models", NEWEST, ("scripts/make_tiny_models.py",)),
        Step("format", NEWEST, ("-m", "ruff", "format", "--check", ".")),
        Step("lint", NEWEST, ("-m", "ruff", "check", ".")),
        Step("types", NEWEST, ("-m", "mypy")),
    ]


def tests(version: str, servers: bool) -> list[Step]:
    """The tests of one SGLang version, in order. What does not depend on SGLang is tested with the newest."""
    selected = ("-m", "not server") if version == NEWEST else ("tests/unit", "tests/property")
    listed = [Step(f"tests, SGLang {version}", version, ("-m", "pytest", *selected))]
    if servers:
        pytest_arguments = ("-m", "pytest", "-m", "server", "--durations=10")
        listed.append(Step(f"servers, SGLang {version}", version, pytest_arguments))
    return listed


def create_environments() -> dict[str, Path]:
    """Create both environments side by side and return their Pythons by SGLang version."""

    def create(version: str) -> Path:
        return ensure_environment(version, dev=True, report=lambda line: print(line, flush=True))

    check_supported(NEWEST)
    with ThreadPoolExecutor() as pool:
        pythons = pool.map(create, (OLDEST, NEWEST))
        return dict(zip((OLDEST, NEWEST), pythons, strict=True))


def run(step: Step, python: Path) -> Outcome:
    """Run one step, then print its output, so that steps that run side by side do not mix."""
    print(f"... {step.name}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [python, *step.arguments],
            cwd=REPOSITORY,
            env={**os.environ, **CHILD_ENVIRONMENT},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        late = ""
        try:
            process.wait(STEP_TIMEOUT)
        except subprocess.TimeoutExpired:
            late = f"{step.name}: not finished after {STEP_TIMEOUT:.0f} s.\n"
        finally:
            interrupt(process)
            output.seek(0)
            text = output.read().decode(errors="replace")
            print(f"\n--- {step.name}\n{text}{late}", flush=True)
    return Outcome(step.name, process.returncode == 0, time.monotonic() - began)


def interrupt(process: subprocess.Popen) -> None:
    """End a process that still runs; an interrupted pytest stops the servers it started."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(INTERRUPT_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def summarize(outcomes: list[Outcome], seconds: float) -> None:
    """Print one line for each step, and how long all of it took."""
    print("\n--- summary")
    for outcome in outcomes:
        print(f"{'ok    ' if outcome.passed else 'FAILED'}  {outcome.name:<28} {outcome.seconds:7.1f} s")
    failed = sum(not outcome.passed for outcome in outcomes)
    print(f"{len(outcomes) - failed} of {len(outcomes)} steps passed in {seconds / 60:.1f} min", flush=True)


def main() -> None:
    """Parse the command line, run the steps and exit with their result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--no-servers", action="store_true", help="leave out the tests that start a server")
    arguments = parser.parse_args()
    began = time.monotonic()
    try:
        pythons = create_environments()
    except EnvironmentCreationError as error:
        sys.exit(str(error))
    outcomes = [Outcome("environments", True, time.monotonic() - began)]

    def run_all(steps: list[Step]) -> list[Outcome]:
        return [run(step, pythons[step.sglang]) for step in steps]

    try:
        outcomes += run_all(preparation())
        with ThreadPoolExecutor() as pool:
            lanes = [
                pool.submit(run_all, tests(version, not arguments.no_servers)) for version in (OLDEST, NEWEST)
            ]
        outcomes += [outcome for lane in lanes for outcome in lane.result()]
    except KeyboardInterrupt:
        sys.exit("Stopped.")
    summarize(outcomes, time.monotonic() - began)
    sys.exit(0 if all(outcome.passed for outcome in outcomes) else 1)


if __name__ == "__main__":
    main()
