"""A lease of a GPU machine: parcels hold what was packed, and nothing runs that lacks what it needs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
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
    beside = {path.name for path in (out / "k").iterdir()}
    assert beside == {"machine.sh", "environment.sh", "lanes.json", "manifest.json", "parcels.txt", "servers"}
    assert (out / "k" / "parcels.txt").read_text() == "00\n"


def test_a_parcel_and_the_tree_fit_into_a_call(bundle: Path, tmp_path: Path) -> None:
    """Files as large as a call allows, and prompts that would take half of one: no parcel is too large."""
    with open(bundle / "site.tar.xz", "wb") as site:
        site.truncate(parcels.CALL + 1)
    extra, out = tmp_path / "extra", tmp_path / "out"
    (extra / "coder").mkdir(parents=True)
    with open(extra / "coder" / "ruler.jsonl.xz", "wb") as prompts:
        prompts.truncate(parcels.CALL // 2)
    done = packed(bundle, out, "--extra", str(extra), "--lane", "one", "0", "0-15", "shared")
    assert done.returncode == 0, done.stderr
    parts = sorted(out.glob("part*"))
    assert (out / "k" / "parcels.txt").read_text().split() == [p.name.removeprefix("part") for p in parts]
    beside = parcels.travels((out / "k").rglob("*")) + parcels.travels(parcels.tree_files())
    assert len(parts) >= 2
    assert all(beside + parcels.travels([part]) < parcels.CALL for part in parts)


@pytest.fixture
def lease(tmp_path: Path) -> Path:
    """A machine's folder after one of two parcels: a job has ended, another one waits for the second parcel."""
    folder = tmp_path / "lease"
    for name in ("tree", "pieces", "k", "logs", "out"):
        (folder / name).mkdir(parents=True)
    (folder / "pieces" / "00").write_bytes(b"first")
    (folder / "k" / "parcels.txt").write_text("00\n01\n")
    (folder / "logs" / "status.txt").write_text("    1.0 begin check\n    2.0 end check 0 1 s\n")
    (folder / "lanes.log").write_text("")
    return folder


def get(lease: Path, seconds: int) -> tuple[subprocess.CompletedProcess[str], float]:
    machine = ["bash", str(SCRIPTS / "lease" / "machine.sh"), "get", str(seconds), "3"]
    began = time.monotonic()
    environment = {**os.environ, "LEASE": str(lease), "OUT": str(lease)}
    done = subprocess.run(machine, env=environment, capture_output=True, text=True)
    return done, time.monotonic() - began


def test_nobody_waits_where_no_parcel_came(tmp_path: Path) -> None:
    done, took = get(tmp_path / "nothing", 30)
    assert done.returncode == 3
    assert "no parcel is here; take them before get" in done.stderr
    assert took < 15


def test_nobody_waits_for_parcels_that_are_missing(lease: Path) -> None:
    done, took = get(lease, 30)
    assert took < 15
    assert "parcel 01 is missing" in done.stdout
    assert (lease / "rest.tgz").exists()


def test_a_job_that_runs_is_waited_for_though_a_parcel_is_missing(lease: Path) -> None:
    with open(lease / "logs" / "status.txt", "a") as status:
        status.write("    3.0 begin kernels\n")
    assert get(lease, 3)[1] >= 3


def test_nobody_waits_where_all_jobs_are_over(lease: Path) -> None:
    (lease / "pieces" / "01").write_bytes(b"second")
    assert get(lease, 3)[1] >= 3
    with open(lease / "logs" / "status.txt", "a") as status:
        status.write("    3.0 idle\n")
    assert get(lease, 30)[1] < 15


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--lane", "one", "0", "0-15", "swimming"),
            "--lane: swimming not known; allowed: admission, agents",
        ),
        (
            ("--lane", "one", "0", "0-15", "tests-newest"),
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
