"""`rheo doctor` says in one line each what is there and what is missing, whatever is broken, and its status says so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LINE = re.compile(r"^(ok  |FAIL|--  ) [\w\-' ]+: \S.*$")
BROKEN = {
    "raises ImportError": "raise ImportError('libcudart.so.12: cannot open shared object file')",
    "raises OSError": "raise OSError('undefined symbol: _ZN5torch3jit\\nsecond line')",
    "exits": "import sys; sys.exit('no licence')",
    "is no Python": "this is no Python",
    "is empty": "",
}
MODULES = ("torch", "sglang", "sgl_kernel", "rich", "triton", "numpy")


def doctor(broken: dict[str, str], tmp_path: Path, **environment: str) -> tuple[int, list[str], str]:
    """Exit status, lines and errors of the command, with modules on the path that are broken in earnest."""
    for name, text in broken.items():
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").write_text(text + "\n")
    path = [str(tmp_path), os.environ.get("PYTHONPATH", ""), str(REPOSITORY)]
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "rheo_sglang.cli", "doctor"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return process.returncode, process.stdout.splitlines(), process.stderr


def assert_report(lines: list[str], errors: str) -> dict[str, str]:
    """Each check's mark and line; nothing else was printed."""
    *checks, _ = lines
    assert all(LINE.match(line) for line in checks), checks
    assert "Traceback" not in errors
    return {line[5:].split(":")[0]: line for line in checks}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("module", ["torch", "sglang"])
def test_a_broken_package_is_one_line(module: str, how: str, tmp_path: Path) -> None:
    status, lines, errors = doctor({module: BROKEN[how]}, tmp_path)
    checks = assert_report(lines, errors)
    assert status == 1
    assert checks[module].startswith("FAIL")
    assert checks["Python"].startswith("ok")
    assert checks["plugin"].startswith("--"), "what needs it says so"
    assert lines[-1].startswith("A server cannot start here")


def test_everything_broken_at_once_is_reported(tmp_path: Path) -> None:
    status, lines, errors = doctor(dict.fromkeys(MODULES, BROKEN["raises ImportError"]), tmp_path)
    checks = assert_report(lines, errors)
    assert status == 1
    assert {name for name, line in checks.items() if line.startswith("ok")} <= {
        "Python",
        "rheo-sglang",
        "memory",
    }
    assert "libcudart.so.12" in checks["torch"]


def test_a_plugin_that_sglang_is_told_to_leave_out_is_said(tmp_path: Path) -> None:
    broken = dict.fromkeys(("torch", "sglang"), BROKEN["raises ImportError"])
    status, lines, errors = doctor(broken, tmp_path, SGLANG_PLUGINS="other, another")
    assert status == 1
    assert "SGLANG_PLUGINS='other, another' leaves rheo out" in assert_report(lines, errors)["rheo-sglang"]


def test_a_sound_installation_is_available(tmp_path: Path) -> None:
    status, lines, errors = doctor({}, tmp_path)
    checks = assert_report(lines, errors)
    assert status == 0, lines
    assert all(line.startswith("ok") for line in checks.values())
    assert lines[-1] == "--attention-backend rheo is available."
