"""A failure is printed when it happens: also by a run that never comes to its summary."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = """
import os

def test_that_fails():
    assert 1 + 1 == 3, "sums are off"

def test_that_passes():
    pass

def test_that_ends_the_process():
    os._exit(7)
"""


def printed(folder: Path, *options: str) -> str:
    """What pytest prints of `TESTS` with the plugin."""
    (folder / "test_three.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "failures_at_once", "-p", "no:cacheprovider", *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTHONUNBUFFERED": "1"}
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert finished.returncode == 7
    return finished.stdout


def test_a_run_that_is_cut_off_has_said_what_failed(tmp_path: Path) -> None:
    lines = printed(tmp_path, "-q").splitlines()
    assert "call failed: test_three.py::test_that_fails: AssertionError: sums are off" in lines


def test_verbose_output_says_so_once(tmp_path: Path) -> None:
    assert printed(tmp_path, "-v").count("test_that_fails") == 1
