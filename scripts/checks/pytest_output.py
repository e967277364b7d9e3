"""TestReport: what `pytest -v -rs --durations=N` prints, read while it is printed."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

COLLECTED = re.compile(r"^(?:collecting \.\.\. )?collected (\d+) items?(?: / (\d+) deselected)?")
FINISHED = re.compile(
    r"^(\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b(?: \(.*\))? *(?:\[ *\d+%\])?$"
)
STARTED = re.compile(r"^(\S+::.*?) ?$")
SKIPPED = re.compile(r"^SKIPPED \[(\d+)\] (\S+?)(?::\d+)?: (.*)$")
DURATION = re.compile(r"^ *(\d+\.\d+)s (call|setup|teardown) +(\S+::.*)$")
BROKEN = ("FAILED", "ERROR")


@dataclass
class TestReport:
    """Counts, skips and durations of one run of pytest.

    Attributes
    ----------
    selected : int
        Tests to run; 0 before collection.
    results : Counter of str
        Tests by how they ended (``PASSED``, ``FAILED``, ...).
    broken : list of str
        Node ids of tests that failed, in order.
    running : str
        Node id of the test that runs now.
    skips : Counter of str
        Skipped tests by reason.
    durations : list of (float, str)
        Seconds and name of the slowest calls and fixtures.
    """

    __test__ = False

    selected: int = 0
    results: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    running: str = ""
    skips: Counter[str] = field(default_factory=Counter)
    durations: list[tuple[float, str]] = field(default_factory=list)

    def read(self, line: str) -> None:
        """Take one whole line in."""
        if match := FINISHED.match(line):
            self.running = ""
            self.results[match[2]] += 1
            if match[2] in BROKEN:
                self.broken.append(match[1])
        elif match := COLLECTED.match(line):
            self.selected = int(match[1]) - int(match[2] or 0)
        elif match := SKIPPED.match(line):
            self.skips[match[3]] += int(match[1])
        elif match := DURATION.match(line):
            phase = "" if match[2] == "call" else f" ({match[2]})"
            self.durations.append((float(match[1]), match[3] + phase))

    def read_partial(self, line: str) -> None:
        """Look at a line that has not ended: the name of the test that runs."""
        if match := STARTED.match(line):
            self.running = match[1]

    @property
    def done(self) -> int:
        """Tests that have ended."""
        return sum(self.results.values())

    def in_words(self) -> str:
        """Progress in a few words; empty before collection."""
        if not self.selected:
            return ""
        failed = sum(self.results[kind] for kind in BROKEN)
        return f"{self.done} of {self.selected} tests done, {failed} failed"
