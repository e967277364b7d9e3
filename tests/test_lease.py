"""A lease of a GPU machine: parcels hold what was packed, and nothing runs that lacks what it needs."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lease import parcels
from lease.jobs import JOBS, lane_job

from common.measurement import SCRIPTS


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "site.tar.xz").write_bytes(b"site" * 1000)
    (folder / "fa3.zst").write_bytes(b"fa3")
    return folder


def packed(bundle: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "lease.parcels",
        "--bundle",
        f"0.5.17={bundle}",
        "--out",
        str(out),
        *arguments,
    ]
    return subprocess.run(command, cwd=SCRIPTS, capture_output=True, text=True)


def test_parcels_are_the_files_one_after_the_other(bundle: Path, tmp_path: Path) -> None:
    files = {"site": bundle / "site.tar.xz", "fa3": bundle / "fa3.zst"}
    manifest = parcels.split(files, tmp_path, piece=1500)
    assert manifest == {"piece": 1500, "files": [["site", 4000], ["fa3", 3]]}
    found = b"".join(path.read_bytes() for path in sorted(tmp_path.glob("part*")))
    assert found == b"".join(path.read_bytes() for path in files.values())
    assert [path.stat().st_size for path in sorted(tmp_path.glob("part*"))] == [1500, 1500, 1003]


def test_every_job_waits_for_preparations_that_are_planned(bundle: Path, tmp_path: Path) -> None:
    weights, out = tmp_path / "coder.gguf", tmp_path / "out"
    weights.write_bytes(b"weights")
    lanes = (
        "--lane",
        "one",
        "0",
        "0-15",
        "serving,fit",
        "--lane",
        "two",
        "1",
        "16-31",
        "trace-review-32-28000",
    )
    done = packed(bundle, out, "--coder", str(weights), *lanes)
    assert done.returncode == 0, done.stderr
    planned = json.loads((out / "k" / "lanes.json").read_text())
    manifest = json.loads((out / "k" / "manifest.json").read_text())
    known = {name for name, _ in manifest["files"]} | {
        job["name"] for jobs in planned.values() for job in jobs
    }
    waited = {
        name
        for jobs in planned.values()
        for job in jobs
        for name in (*job.get("needs", ()), *job.get("after", ()))
    }
    assert waited <= known
    assert planned["one"][1]["after"] == ["trace-review-32-28000"]
    assert {"machine.sh", "environment.sh", "lanes.json", "manifest.json"} <= {
        p.name for p in (out / "k").iterdir()
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--lane", "one", "0", "0-15", "swimming"),
            "--lane: swimming not known; allowed: admission, agents",
        ),
        (
            ("--lane", "one", "0", "0-15", "kernels-newest"),
            "--bundle: none of SGLang 0.5.23, which jobs need",
        ),
        (("--lane", "one", "0", "0-15", "soak"), "--coder: no weights, which jobs need"),
    ],
)
def test_a_plan_that_cannot_run_is_refused(
    bundle: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = packed(bundle, tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_bundle_without_flash_attention_3_is_refused_where_a_job_needs_it(
    bundle: Path, tmp_path: Path
) -> None:
    (bundle / "fa3.zst").unlink()
    done = packed(bundle, tmp_path / "out", "--lane", "one", "0", "0-15", "tpot-coder")
    assert done.returncode == 2
    assert "that of SGLang 0.5.17 has no fa3.zst, which jobs need" in done.stderr


def jobs() -> list[dict[str, Any]]:
    files = {"0.5.23-torch.tar.zst": Path(), "0.5.23-fa3.zst": Path()}
    prepared = {**parcels.weights(), **parcels.preparations("0.5.23", files)}
    return [job for lane in prepared.values() for job in lane] + [
        lane_job(name, "0", "0", set()) for name in JOBS
    ]


@pytest.mark.parametrize("job", jobs(), ids=lambda job: job["name"])
def test_a_job_is_a_command_of_modules_that_exist(job: dict[str, Any]) -> None:
    subprocess.run(["bash", "-n", "-c", job["command"]], check=True)
    for module in re.findall(r"python3 (?:-W ignore )?-m ((?!pip|pytest)[\w.]+)", job["command"]):
        assert importlib.util.find_spec(module) is not None
    for script in re.findall(r"python3 (scripts/\S+)", job["command"]):
        assert (SCRIPTS.parent / script).exists()
