"""Step and Outcome: one command of the test command, and how it went."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from checks.pytest_output import TestReport

SILENCE = 1200.0
"""Seconds without output after which a step is stopped. Above the limit of a single test (tests/conftest.py)."""


@dataclass(frozen=True)
class Step:
    """One command of the run.

    Attributes
    ----------
    name : str
        Shown while it runs and in the summary; names its log file.
    command : tuple of str
        Program and arguments.
    silence : float
        Seconds without output after which the step is stopped.
    after : tuple of str
        Names of steps that must have ended before.
    needed : bool
        Whether steps after it cannot run unless it passed.
    """

    name: str
    command: tuple[str, ...]
    silence: float = SILENCE
    after: tuple[str, ...] = ()
    needed: bool = False


class Result(Enum):
    """How a step ended."""

    PASSED = "ok"
    FAILED = "FAILED"
    SILENT = "SILENT"
    STOPPED = "stopped"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Outcome:
    """How a step went.

    Attributes
    ----------
    step : Step
        Which.
    result : Result
        How it ended.
    seconds : float
        Wall-clock time.
    log : Path, optional
        Its whole output.
    tests : TestReport
        What pytest said, where the step is pytest.
    """

    step: Step
    result: Result
    seconds: float = 0.0
    log: Path | None = None
    tests: TestReport = field(default_factory=TestReport)

    @property
    def broken(self) -> bool:
        """Whether the step did not do what it was to do."""
        return self.result is not Result.PASSED
