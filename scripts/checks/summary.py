"""The summary of a run: steps, what was slow, why tests were skipped, what failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from checks.step import Outcome, Result

SLOWEST = 15


def summary(outcomes: Sequence[Outcome], seconds: float) -> str:
    """One line for each step, the slowest tests, the reasons of skips and the names of failed tests.

    Parameters
    ----------
    outcomes : sequence of Outcome
        Of all steps.
    seconds : float
        Of the whole run.
    """
    lines = []
    durations = sorted(
        ((time, test, one.step.name) for one in outcomes for time, test in one.tests.durations), reverse=True
    )
    if durations:
        lines += ["", "--- slowest tests"]
        lines += [f"{time:7.1f} s  {test}  [{step}]" for time, test, step in durations[:SLOWEST]]
    skips: Counter[str] = Counter()
    for one in outcomes:
        skips.update(one.tests.skips)
    if skips:
        lines += ["", "--- skipped tests"]
        lines += [f"{count:7d}    {reason}" for reason, count in skips.most_common()]
    broken = [f"{test}  [{one.step.name}]" for one in outcomes for test in one.tests.broken]
    if broken:
        lines += ["", "--- failed tests", *broken]
    lines += ["", "--- summary"]
    for one in outcomes:
        tests = f"  {one.tests.in_words()}" if one.tests.selected else ""
        stopped = one.result in (Result.SILENT, Result.STOPPED) and one.tests.running
        at = f", stopped at {one.tests.running}" if stopped else ""
        lines.append(f"{one.result.value:<8} {one.step.name:<34} {one.seconds:7.1f} s{tests}{at}")
    passed = sum(one.result is Result.PASSED for one in outcomes)
    lines.append(f"{passed} of {len(outcomes)} steps passed in {seconds / 60:.1f} min")
    return "\n".join(lines)
