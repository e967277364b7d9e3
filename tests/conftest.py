"""What all tests share: reproducible random numbers, hypothesis profiles, the limit of a test, and `--full`."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from checks.machine import busy_factor

TEST_LIMIT, SERVER_TEST_LIMIT = 300.0, 900.0
"""Seconds that one test may take with its fixtures on a machine without other work."""

settings.register_profile(
    "local", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run tests marked `full` too")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave `full` tests out unless they are asked for, and give every test its limit, longer on a busy machine."""
    if not config.getoption("--full"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("full")])
        items[:] = [item for item in items if not item.get_closest_marker("full")]
    if config.pluginmanager.hasplugin("timeout"):
        busy = busy_factor()
        for item in items:
            if item.get_closest_marker("timeout") is None:
                limit = SERVER_TEST_LIMIT if item.get_closest_marker("server") else TEST_LIMIT
                item.add_marker(pytest.mark.timeout(limit * busy))


@pytest.fixture(autouse=True)
def seed() -> None:
    """Give every test the same random numbers, whichever tests run before it."""
    torch.manual_seed(0)
