"""StepProcess: a step that runs, its output as it comes, and its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from checks.pytest_output import TestReport
from checks.step import Outcome, Result, Step

CHUNK = 1 << 16


class StepProcess:
    """One step in a process group of its own, so that what it leaves behind is ended with it.

    Parameters
    ----------
    step : Step
        What to run.
    folder : Path
        Its working directory.
    log : Path
        File that receives its output.
    environment : mapping of str to str
        Its environment variables.
    """

    def __init__(self, step: Step, folder: Path, log: Path, environment: Mapping[str, str]) -> None:
        self.step = step
        self.log = log
        self.tests = TestReport()
        self.began = self.last_output = time.monotonic()
        self.ending: Result | None = None
        self.kill_at = float("inf")
        self.partial = ""
        log.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(log, "wb")  # noqa: SIM115 - closed when the process has ended
        self.process = subprocess.Popen(
            step.command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)

    def fileno(self) -> int:
        """The file descriptor of its output, for `select`."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    @property
    def silent_for(self) -> float:
        """Seconds since it last printed something."""
        return time.monotonic() - self.last_output

    def read(self) -> bool:
        """Take in what it has printed; False where the output has ended."""
        try:
            chunk = os.read(self.fileno(), CHUNK)
        except BlockingIOError:
            return True
        if not chunk:
            return False
        self.last_output = time.monotonic()
        self.file.write(chunk)
        self.file.flush()
        *lines, self.partial = (self.partial + chunk.decode(errors="replace")).split("\n")
        for line in lines:
            self.tests.read(line)
        self.tests.read_partial(self.partial)
        return True

    def stop(self, result: Result, patience: float) -> None:
        """Interrupt it, which lets pytest stop its servers and sum up; after ``patience`` seconds it is killed."""
        if self.ending is None:
            self.ending = result
            self.kill_at = time.monotonic() + patience
            self._signal(signal.SIGINT, group=False)

    def kill_if_late(self) -> None:
        """Kill the group of a process that was to stop and did not in time."""
        if time.monotonic() > self.kill_at:
            self._signal(signal.SIGKILL, group=True)

    def finish(self) -> Outcome | None:
        """How the step went, or None while it runs."""
        ended = self.process.poll() is not None
        while ended and self.read_available():
            pass
        if not ended:
            return None
        self._signal(signal.SIGKILL, group=True)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.file.close()
        passed = Result.PASSED if self.process.returncode == 0 else Result.FAILED
        return Outcome(self.step, self.ending or passed, self.seconds, self.log, self.tests)

    def read_available(self) -> bool:
        """Read once more; False where there is nothing to read now."""
        size = self.file.tell()
        return self.read() and self.file.tell() > size

    def _signal(self, number: signal.Signals, group: bool) -> None:
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)
