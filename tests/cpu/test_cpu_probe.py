"""A variant is used by a server only once a child process has seen it work."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
import torch

from rheo_kernels.cpu import available_isas, probe
from rheo_sglang.pools.blocks import host_pool


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


def test_the_choice_reads_memory_and_leaves_pages_as_they_are() -> None:
    written = torch.randn(100, 2, 2, 64 * 16).bfloat16()
    before = written.clone()
    probe.fastest_isa(written.transpose(0, 1), 4, 16, threads=2)
    assert torch.equal(written, before)

    unwritten = host_pool(1, 4096, 2, 64, 32, torch.bfloat16)[0]
    process = psutil.Process()
    resident = process.memory_info().rss
    probe.fastest_isa(unwritten.transpose(0, 1), 4, 32, threads=2)
    assert process.memory_info().rss - resident > 0.9 * unwritten.nbytes
    assert not unwritten.any()


def test_no_variant_is_fastest_where_none_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "working_isas", lambda: ())
    assert probe.fastest_isa(torch.zeros(1, 1, 2, 256), 1, 16) is None
