"""Runner: runs steps, a few at a time, says how they get on, and stops them when told to or when silent."""

from __future__ import annotations

import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from checks.machine import busy_factor
from checks.process import StepProcess
from checks.step import Outcome, Result, Step

PATIENCE = 60.0
"""Seconds that an interrupted step has to sum up."""
PROGRESS_EVERY = 30.0
POLL = 0.5
FAILURE_LINES = 200


class InterruptedRunError(Exception):
    """SIGINT or SIGTERM arrived; the running steps have been stopped."""


class Runner:
    """Runs steps and keeps their outcomes.

    Parameters
    ----------
    folder : Path
        Working directory of the steps.
    logs : Path
        Folder for one log file a step.
    environment : mapping of str to str
        Environment variables of the steps.
    slots : int
        Steps that run at once.
    say : callable
        Receives the lines for people.
    patience : float
        Seconds that an interrupted step has to end.
    progress_every : float
        Seconds between two lines on a running step.

    Attributes
    ----------
    outcomes : list of Outcome
        In the order in which steps ended; steps that were not run come last.
    """

    def __init__(
        self,
        folder: Path,
        logs: Path,
        environment: Mapping[str, str],
        slots: int = 2,
        say: Callable[[str], None] = lambda line: print(line, flush=True),
        patience: float = PATIENCE,
        progress_every: float = PROGRESS_EVERY,
    ) -> None:
        self.folder = folder
        self.logs = logs
        self.environment = environment
        self.slots = slots
        self.patience = patience
        self.progress_every = progress_every
        self.outcomes: list[Outcome] = []
        self.began = time.monotonic()
        self._say = say
        self._running: list[StepProcess] = []
        self._interrupts = 0

    def run(self, steps: Sequence[Step]) -> None:
        """Run steps, ``slots`` at a time: always the first one whose predecessors have ended.

        Raises
        ------
        InterruptedRunError
            After SIGINT or SIGTERM, when the running steps have ended; `outcomes` is complete. A second signal kills
            them at once. Signals are handled here even where they were ignored, as they are in processes that a shell
            started in the background.
        """
        handlers = {
            number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            self._run(list(steps))
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self._interrupts:
            raise InterruptedRunError

    def _run(self, waiting: list[Step]) -> None:
        reported = time.monotonic()
        while self._running or waiting:
            waiting = self._without_lost(waiting)
            while len(self._running) < self.slots and (step := self._next(waiting)) is not None:
                waiting.remove(step)
                self._start(step)
            self._look_after()
            if time.monotonic() - reported > self.progress_every:
                reported = time.monotonic()
                for process in self._running:
                    self._report_progress(process)

    def _next(self, waiting: Sequence[Step]) -> Step | None:
        ended = {outcome.step.name for outcome in self.outcomes}
        return next((step for step in waiting if ended.issuperset(step.after)), None)

    def _without_lost(self, waiting: list[Step]) -> list[Step]:
        """The steps that can still run; of the others, note that they were not run."""
        while True:
            lost = {
                outcome.step.name
                for outcome in self.outcomes
                if outcome.broken and (outcome.step.needed or outcome.result is Result.NOT_RUN)
            }
            ended = [step for step in waiting if self._interrupts or lost.intersection(step.after)]
            if not ended:
                return waiting
            self.outcomes += [Outcome(step, Result.NOT_RUN) for step in ended]
            waiting = [step for step in waiting if step not in ended]

    def _start(self, step: Step) -> None:
        self.say(f"{step.name}: begins")
        log = self.logs / f"{step.name.replace('/', '-').replace(' ', '-').replace(',', '')}.log"
        self._running.append(StepProcess(step, self.folder, log, self.environment))

    def _look_after(self) -> None:
        """Wait a moment for output, then see which steps have printed, ended or gone silent."""
        readable, _, _ = select.select(self._running, [], [], POLL if self._running else 0)
        for process in readable:
            failed = len(process.tests.broken)
            if not process.read():
                time.sleep(0.05)
            for test in process.tests.broken[failed:]:
                self.say(f"{process.step.name}: FAILED {test}")
        scale = busy_factor()
        for process in list(self._running):
            if self._interrupts:
                process.stop(Result.STOPPED, self.patience if self._interrupts == 1 else 0.0)
                process.kill_at = process.kill_at if self._interrupts == 1 else 0.0
            elif process.silent_for > process.step.silence * scale:
                if process.ending is None:
                    at = f", at {process.tests.running}" if process.tests.running else ""
                    self.say(
                        f"{process.step.name}: nothing printed for {process.silent_for:.0f} s{at}; stopped"
                    )
                process.stop(Result.SILENT, self.patience)
            process.kill_if_late()
            outcome = process.finish()
            if outcome is not None:
                self._running.remove(process)
                self.outcomes.append(outcome)
                self._report_end(outcome)

    def _report_progress(self, process: StepProcess) -> None:
        tests = process.tests
        now = f", now {tests.running}" if tests.running else ""
        what = tests.in_words() or f"runs for {process.seconds:.0f} s"
        self.say(f"{process.step.name}: {what}{now}")

    def _report_end(self, outcome: Outcome) -> None:
        tests = outcome.tests.in_words()
        what = f"{outcome.result.value} after {outcome.seconds:.0f} s"
        self.say(f"{outcome.step.name}: {what}{', ' + tests if tests else ''}")
        if outcome.result in (Result.FAILED, Result.SILENT) and outcome.log is not None:
            text = failure_text(outcome.log)
            self._say(f"\n--- {outcome.step.name}: end of {outcome.log}\n{text}\n---\n")

    def say(self, line: str) -> None:
        """Print one line with the minutes since the start."""
        self._say(f"[{(time.monotonic() - self.began) / 60:5.1f} min] {line}")

    def _interrupt(self, number: int, frame: object) -> None:
        self._interrupts += 1


def failure_text(log: Path) -> str:
    """The part of a step's output that says why it failed: pytest's report, else the last lines."""
    lines = log.read_text(errors="replace").splitlines()
    headings = [i for i, line in enumerate(lines) if line.strip("=").strip() in ("FAILURES", "ERRORS")]
    shown = lines[headings[0] :] if headings else lines
    return "\n".join(shown[-FAILURE_LINES:])
