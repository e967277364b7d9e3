"""Of servers that are measured one after the other, one that fails costs no other its turn."""

from __future__ import annotations

import subprocess

import pytest
import requests

from common.servers_in_turn import going_on
from common.sglang_server import ServerError

FAULTS = [
    ServerError("The server stopped while it was starting."),
    requests.ConnectionError("refused"),
    subprocess.TimeoutExpired("bench_serving", 60.0),
    subprocess.CalledProcessError(1, "bench_serving"),
    ExceptionGroup("clients", [RuntimeError("no answer")]),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_failure_is_told_and_the_next_server_is_measured(
    fault: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    failed: list[str] = []
    measured = []
    for name in ("one", "two"):
        with going_on(name, failed):
            if name == "one":
                raise fault
            measured.append(name)
    assert failed == ["one"] and measured == ["two"]
    assert "one failed: " in capsys.readouterr().out


def test_our_own_mistakes_and_interrupts_are_not_passed_over() -> None:
    for error in (KeyError("p99"), KeyboardInterrupt()):
        failed: list[str] = []
        with pytest.raises(type(error)), going_on("one", failed):
            raise error
        assert failed == []
