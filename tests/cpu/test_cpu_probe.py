"""A variant is used by a server only once a child process has seen it work."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from rheo_kernels.cpu import available_isas, probe


@pytest.fixture(autouse=True)
def forget() -> None:
    probe.working_isas.cache_clear()


def test_the_widest_variants_of_this_machine_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RHEO_CPU_ISA", raising=False)
    assert probe.working_isas() == tuple(available_isas()[::-1][: probe.MOST_TRIED])


def test_a_limit_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHEO_CPU_ISA", "generic")
    assert probe.working_isas() == ("generic",)


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
                os.kill(os.getpid(), signal.SIGKILL)
            return attend(problem, threads, isa)

    native = probe._native
    monkeypatch.setattr(probe, "_native", Crashing())
    assert probe.working_isas() == tuple(available_isas()[-2::-1][: probe.MOST_TRIED])
    assert f"{widest} does not work on this machine (killed by SIGKILL)" in caplog.text


def test_the_fastest_variant_is_one_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RHEO_CPU_ISA", raising=False)
    blocks = torch.randn(100, 2, 2, 64 * 16).bfloat16().transpose(0, 1)
    assert probe.fastest_isa(blocks, 4, 16, threads=2) in probe.working_isas()


def test_no_variant_is_fastest_where_none_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "working_isas", lambda: ())
    assert probe.fastest_isa(torch.zeros(1, 1, 2, 256), 1, 16) is None
