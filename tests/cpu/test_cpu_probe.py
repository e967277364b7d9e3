"""A variant is used by a server only once a child process has seen it work."""

from __future__ import annotations

import os
import signal

import pytest

from rheo_kernels.cpu import available_isas, probe


@pytest.fixture(autouse=True)
def forget() -> None:
    probe.working_isa.cache_clear()


def test_the_widest_variant_of_this_machine_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RHEO_CPU_ISA", raising=False)
    assert probe.working_isa() == available_isas()[-1]


def test_a_limit_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHEO_CPU_ISA", "generic")
    assert probe.working_isa() == "generic"


def test_a_variant_that_crashes_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RHEO_CPU_ISA", raising=False)
    widest = available_isas()[-1]
    attend = probe._native.attend

    class Crashing:
        """The extension, with one variant that kills its process."""

        def __getattr__(self, name: str) -> object:
            return getattr(native, name)

        @staticmethod
        def attend(problem: object, threads: int, isa: str) -> object:
            if isa == widest:
                os.kill(os.getpid(), signal.SIGSEGV)
            return attend(problem, threads, isa)

    native = probe._native
    monkeypatch.setattr(probe, "_native", Crashing())
    expected = available_isas()[-2] if len(available_isas()) > 1 else None
    assert probe.working_isa() == expected
    assert f"{widest} does not work on this machine (killed by SIGSEGV)" in caplog.text
