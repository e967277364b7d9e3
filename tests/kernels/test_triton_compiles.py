"""Every Triton kernel compiles for Hopper, without a GPU; the interpreter accepts more than the compiler."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rheo_kernels.triton
from common.measurement import REPOSITORY

TESTS = (
    *(
        str(path.relative_to(REPOSITORY))
        for path in sorted(Path(__file__).parent.glob("test_triton_*.py"))
        if path != Path(__file__)
    ),
    "tests/contract/test_engine_budgets.py::test_a_small_margin_raises_the_next_step_of_its_request_to_the_limit",
)
"""What launches all of them: kernels' own tests, and steps of an engine."""


def launched() -> set[str]:
    """Kernels that the project launches, by module and name."""
    folder = Path(next(iter(rheo_kernels.triton.__path__)))
    return {
        f"rheo_kernels.triton.{path.stem}.{name}"
        for path in folder.glob("*.py")
        for name in re.findall(r"^ +(_\w+)\[\(", path.read_text(), re.MULTILINE)
    }


@pytest.mark.timeout(600)
def test_every_kernel_compiles_for_hopper(tmp_path: Path) -> None:
    file = tmp_path / "compiled.json"
    environment = {**os.environ, "RHEO_COMPILED": str(file), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert file.exists(), done.stdout[-2000:] + done.stderr[-2000:]
    refused = json.loads(file.read_text())
    assert {name: reason for name, reason in refused.items() if reason} == {}
    kernels = {".".join(name.split(".")[:4]) for name in refused}
    assert len(kernels) > 30
    assert kernels == launched()
