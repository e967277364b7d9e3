#!/usr/bin/env python3
"""Runs every check of the repository from nothing, and ends with a summary.

    python3 scripts/run_tests.py [--no-servers] [--full]

Standard library only. Creates the environments of the oldest and the newest supported SGLang, makes the models, checks
format, lint, types and layers, and tests: with the newest SGLang, and with the oldest what depends on SGLang. Two steps
run at once, each as soon as what it needs is there. A step that has printed nothing for 20 minutes is stopped, later
where the machine is busy; single tests have limits of their own (tests/conftest.py). Every step's output is in
build/test-logs. Exits with 1 if a step failed, and with 130 if it was interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from checks.runner import InterruptedRunError, Runner
from checks.step import Step
from checks.steps import NEWEST, environments, static_checks, test_steps
from checks.summary import summary
from environment.create import REPOSITORY, EnvironmentCreationError, check_supported

CHILD_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "1",
}
INTERRUPTED = 130


def main() -> int:
    """Parse the command line and run the steps; the exit status of `run_steps`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--no-servers", action="store_true", help="leave out the tests that start a server")
    parser.add_argument(
        "--full",
        action="store_true",
        help="every parametrisation, and all unit tests with the oldest SGLang too",
    )
    arguments = parser.parse_args()
    try:
        check_supported(NEWEST)
    except EnvironmentCreationError as error:
        sys.exit(str(error))
    steps = [*environments(), *static_checks(), *test_steps(not arguments.no_servers, arguments.full)]
    return run_steps(steps, REPOSITORY / "build" / "test-logs")


def run_steps(steps: Sequence[Step], logs: Path) -> int:
    """Run steps and print the summary.

    Parameters
    ----------
    steps : sequence of Step
        In the order in which they begin, unless one waits for others.
    logs : Path
        Folder for the steps' output.

    Returns
    -------
    int
        0 if every step passed, 1 if one did not, 130 if the run was interrupted.
    """
    began = time.monotonic()
    runner = Runner(REPOSITORY, logs, {**os.environ, **CHILD_ENVIRONMENT})
    status = 0
    try:
        runner.run(steps)
    except InterruptedRunError:
        status = INTERRUPTED
    print(summary(runner.outcomes, time.monotonic() - began), flush=True)
    return status or int(any(outcome.broken for outcome in runner.outcomes))


if __name__ == "__main__":
    sys.exit(main())
