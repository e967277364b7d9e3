"""The CPU kernels run once with every instruction-set variant that the machine has."""

from __future__ import annotations

import pytest
from cpu_cases import ISAS

from rheo_kernels.cpu import available_isas


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Force one variant, or skip the test where the machine lacks it."""
    needed = "avx512_bf16" if request.param == "amx_emulated" else request.param
    if needed not in available_isas():
        pytest.skip(f"this machine's processor has no {needed}")
    monkeypatch.setenv("RHEO_CPU_ISA", request.param)
    return request.param
