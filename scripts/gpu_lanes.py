#!/usr/bin/env python3
"""Jobs side by side on a machine with several GPUs, in lanes: the jobs of a lane run one after the other.

    python3 scripts/gpu_lanes.py LANES.json --logs FOLDER

``LANES.json`` maps names of lanes to their jobs, in order::

    {"timings": [{"name": "tpot", "command": "bash scripts/gpu_run.sh tpot", "cpus": "0-15", "seconds": 560,
                  "environment": {"CUDA_VISIBLE_DEVICES": "0"}, "after": ["weights.gguf"]}],
     "tests":   [{"name": "contract", "command": "...", "environment": {"CUDA_VISIBLE_DEVICES": "1"}}]}

A job waits for what ``after`` and ``needs`` name: other jobs, or files that arrive in pieces. Where a job that it needs
did not exit with 0, it is skipped. ``--pieces FOLDER --manifest FILE`` says which files: the manifest is
``{"piece": BYTES, "files": [[NAME, BYTES], ...]}``, the pieces are what ``split -b BYTES -d`` made of the files one
after the other, and each file is put together in ``--into`` as soon as its last piece is there.
A job whose ``seconds`` are over is interrupted, so that it can tell what it has, and killed a little later.
``status.txt`` among the logs says what began and ended when, and ``idle`` once all jobs of the file are over; more jobs
can be added to a lane as ``LANE.NUMBER.json`` in the same folder. It needs nothing but Python, and ends when it is told
to.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.2
GRACE_SECONDS = 30.0


class Lanes:
    """Runs jobs and knows what is done.

    Parameters
    ----------
    logs
        Folder of the jobs' logs and ``status.txt``.
    """

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.began = time.monotonic()
        self._done: dict[str, threading.Event] = {}
        self.failed: set[str] = set()
        self._lock = threading.Lock()

    def done(self, name: str) -> threading.Event:
        """Set once a job or lane is over, or a file is there."""
        with self._lock:
            return self._done.setdefault(name, threading.Event())

    def say(self, *words: object) -> None:
        """Add a line to ``status.txt``."""
        with self._lock, open(self.logs / "status.txt", "a") as file:
            print(f"{time.monotonic() - self.began:7.1f}", *words, file=file)

    def run(self, job: dict[str, Any]) -> None:
        """Run one job, after what it waits for, or skip it."""
        needs = job.get("needs", ())
        for name in (*job.get("after", ()), *needs):
            self.done(name).wait()
        if lacks := [name for name in needs if name in self.failed]:
            self.say("skip", job["name"], "needs", *lacks)
            self._over(job["name"], failed=True)
            return
        self.say("begin", job["name"])
        start = time.monotonic()
        bound = ["taskset", "-c", job["cpus"]] if "cpus" in job else []
        with open(self.logs / f"{job['name']}.log", "ab") as log:
            process = subprocess.Popen(
                [*bound, "bash", "-c", job["command"]],
                env={**os.environ, **job.get("environment", {})},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                process.wait(job.get("seconds"))
            except subprocess.TimeoutExpired:
                self._end(process)
        self.say("end", job["name"], process.returncode, f"{time.monotonic() - start:.0f} s")
        self._over(job["name"], failed=process.returncode != 0)

    def _over(self, name: str, failed: bool) -> None:
        if failed:
            self.failed.add(name)
        self.done(name).set()

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        """Interrupt a job, and kill its processes that are left."""
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def lane(self, name: str, jobs: list[dict[str, Any]], ends: bool) -> None:
        """Run a lane's jobs, and those that are added unless it ``ends``."""
        for job in jobs:
            self.run(job)
        self.done(f"lane {name}").set()
        added: set[Path] = set()
        while not ends:
            for path in sorted(set(self.logs.glob(f"{name}.*.json")) - added):
                added.add(path)
                self.run(json.loads(path.read_text()))
            time.sleep(POLL_SECONDS)

    def assemble(self, pieces: Path, manifest: dict[str, Any], into: Path) -> None:
        """Put files together as their pieces arrive."""
        size, offset = manifest["piece"], 0
        total = sum(length for _, length in manifest["files"])
        for name, length in manifest["files"]:
            end = offset + length
            while not all(
                (pieces / f"{number:02d}").exists() for number in range(-(-min(end, total) // size))
            ):
                time.sleep(POLL_SECONDS)
            with open(into / name, "wb") as target:
                for number in range(offset // size, -(-end // size)):
                    with open(pieces / f"{number:02d}", "rb") as piece:
                        first, last = max(offset - number * size, 0), min(end - number * size, size)
                        piece.seek(first)
                        target.write(piece.read(last - first))
            offset = end
            self.say("file", name)
            self.done(name).set()


def main() -> None:
    """Run all lanes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lanes", type=Path, help="JSON file")
    parser.add_argument("--logs", type=Path, required=True, help="folder")
    parser.add_argument(
        "--pieces", type=Path, help="folder in which pieces of files arrive, numbered 00, 01 ..."
    )
    parser.add_argument("--manifest", type=Path, help="JSON file that says what they are pieces of")
    parser.add_argument("--into", type=Path, default=Path("."), help="folder for the files")
    parser.add_argument("--ends", action="store_true", help="end after the last job; no more can be added")
    options = parser.parse_args()
    # What a shell starts in the background ignores interrupts, and so would the jobs.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    options.logs.mkdir(parents=True, exist_ok=True)
    lanes, planned = Lanes(options.logs), json.loads(options.lanes.read_text())
    threads = [
        threading.Thread(target=lanes.lane, args=(name, jobs, options.ends), daemon=True)
        for name, jobs in planned.items()
    ]
    if options.manifest is not None:
        options.into.mkdir(parents=True, exist_ok=True)
        manifest = json.loads(options.manifest.read_text())
        arguments = options.pieces, manifest, options.into
        threads.append(threading.Thread(target=lanes.assemble, args=arguments, daemon=True))
    for thread in threads:
        thread.start()
    for name in planned:
        lanes.done(f"lane {name}").wait()
    lanes.say("idle")
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
