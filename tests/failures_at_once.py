"""failures_at_once: which test failed, and why, in one line as soon as it has; a run that is cut off has no summary."""

from __future__ import annotations

import pytest


class FailuresAtOnce:
    """Prints a line for every failure, unless the terminal is verbose and says so itself."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None and self.config.get_verbosity() <= 0:
            terminal.write_line(f"\n{report.when} failed: {report.nodeid}: {reason(report)}")
            terminal.flush()


def reason(report: pytest.TestReport) -> str:
    """The first line of what was raised, or the last that was printed of it."""
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = crash.message.splitlines()[:1] if crash else str(report.longrepr).strip().splitlines()[-1:]
    return "".join(lines)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(FailuresAtOnce(config))
