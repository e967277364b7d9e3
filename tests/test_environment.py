"""environment: what stops the creation of an environment, in one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from environment.create import EnvironmentCreationError, ensure_environment


def test_a_full_disk_stops_before_anything_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_230_000_000))
    with pytest.raises(EnvironmentCreationError, match=r"needs 4 GB of disk, and .* has 1\.2 GB free"):
        ensure_environment("0.5.23", tmp_path / "env")
    assert not (tmp_path / "env").exists()


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "env" / "thesis.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    with pytest.raises(EnvironmentCreationError, match="neither empty nor a virtual environment"):
        ensure_environment("0.5.23", kept.parent)
    assert kept.read_text() == "mine"
