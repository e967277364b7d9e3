#!/usr/bin/env python3
"""Compare builds of the CPU kernel on one machine, in turns, since its memory is now faster, now slower.

    PYTHONPATH=scripts python -m benchmarks.cpu_builds 39fbaef . --threads 1 2

A build is a git revision or a folder with the sources; the first is what the others are compared with. Each runs in
several processes, on scattered pages of their own; a round asks every process for the same figure, in one order and
then in the other, and a build's is the mean of its processes'. Prints GB/s, the median ratio to the first build, and
how far the processes of the first build differ; ``--out`` keeps them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tqdm import tqdm

from benchmarks.cpu_attention import GROUPS
from common.measurement import REPOSITORY, SCRIPTS, keep_result, result_document
from rheo_kernels.cpu import available_isas


def build(source: str, target: Path) -> Path:
    """Install the package from a revision or a folder into a folder below ``target``, and return that."""
    folder = Path(source)
    if not folder.is_dir():
        archive = subprocess.run(["git", "archive", source], cwd=REPOSITORY, capture_output=True)
        if archive.returncode:
            raise SystemExit(f"{source} is neither a folder nor a revision of this repository.")
        folder = target / "source"
        folder.mkdir(parents=True)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    installed = target / "installed"
    options = (
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--disable-pip-version-check",
        "--target",
        installed,
    )
    if subprocess.run([sys.executable, "-m", "pip", "install", *options, folder.resolve()]).returncode:
        raise SystemExit(f"{source} could not be built; see pip's message above.")
    return installed


class Worker:
    """A process that measures one build.

    Parameters
    ----------
    process
        Of benchmarks/cpu_build_worker.py.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ask(self, what: str) -> float:
        """GB/s of ``read``, or of a variant and a group size."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return float(self.answer())

    def answer(self) -> str:
        """The next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise SystemExit("A build's process ended; see its message above.")
        return line


@contextmanager
def worker(installed: Path, threads: int, gib: float, seconds: float) -> Iterator[Worker]:
    """Start the process of one build; without site (-S) no editable install comes before it."""
    libraries = (sysconfig.get_path("purelib"), os.environ.get("PYTHONPATH"))
    path = os.pathsep.join(map(str, (installed, SCRIPTS, *filter(None, libraries))))
    options = ("--threads", str(threads), "--gib", str(gib), "--seconds", str(seconds))
    process = subprocess.Popen(
        [sys.executable, "-S", "-m", "benchmarks.cpu_build_worker", *options],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        started = Worker(process)
        loaded = Path(started.answer())
        if loaded != installed:
            raise SystemExit(f"Instead of the build, {loaded} was loaded.")
        yield started


def compare(builds: list[list[Worker]], what: str, rounds: int) -> dict[str, float]:
    """Median GB/s of every build, its ratio to the first, and the spread of the first one's processes."""
    turns = [(build, copy) for copy in range(len(builds[0])) for build in range(len(builds))]
    rates: list[list[list[float]]] = [[[] for _ in workers] for workers in builds]
    for turn in range(rounds):
        for build, copy in turns if turn % 2 == 0 else reversed(turns):
            rates[build][copy].append(builds[build][copy].ask(what))
    means = [[statistics.mean(copies) for copies in zip(*mine, strict=True)] for mine in rates]
    found = {f"build{i}_gbps": statistics.median(mine) for i, mine in enumerate(means)}
    for i, mine in enumerate(means[1:], 1):
        found[f"build{i}_ratio"] = statistics.median(
            one / base for one, base in zip(mine, means[0], strict=True)
        )
    copies = [statistics.median(mine) for mine in rates[0]]
    found["same_build_spread"] = max(copies) / min(copies)
    return found


def main() -> None:
    """Build, compare, print, and keep the result if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "builds", nargs="+", metavar="BUILD", help="a git revision, or a folder with the sources"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="numbers of threads (default: 1)")
    parser.add_argument(
        "--isas",
        nargs="+",
        choices=available_isas(),
        help="variants (default: all that run here but generic)",
    )
    parser.add_argument("--copies", type=int, default=2, help="processes of every build (default: 2)")
    parser.add_argument(
        "--rounds", type=int, default=15, help="turns of every build for a figure (default: 15)"
    )
    parser.add_argument("--seconds", type=float, default=0.05, help="shortest time of a turn (default: 0.05)")
    parser.add_argument(
        "--gib", type=float, default=2.0, help="GiB of host pages for each process (default: 2)"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    isas = arguments.isas or [isa for isa in available_isas() if isa != "generic"]
    asked = ["read", *(f"{isa} {group}" for isa in isas for group in GROUPS)]
    metrics: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        targets = [
            build(name, Path(folder).resolve() / str(i))
            for i, name in enumerate(tqdm(arguments.builds, desc="builds", leave=False))
        ]
        for threads in arguments.threads:
            with ExitStack() as stack:
                workers = [
                    [
                        stack.enter_context(worker(target, threads, arguments.gib, arguments.seconds))
                        for _ in range(arguments.copies)
                    ]
                    for target in targets
                ]
                for what in asked:
                    found = compare(workers, what, arguments.rounds)
                    metrics |= {
                        f"{what.replace(' ', '_g')}_{threads}t_{key}": value for key, value in found.items()
                    }
                    figures = ", ".join(f"{key} {value:.3f}" for key, value in found.items())
                    print(f"{threads} threads, {what}: {figures}", flush=True)
    if arguments.out is not None:
        rounded = {key: float(f"{value:.4g}") for key, value in metrics.items()}
        shape = "8 KV heads of 128, page 32, bfloat16; build 0 is the first of the command"
        keep_result(arguments.out, result_document(arguments.out.stem, rounded, shape=shape))


if __name__ == "__main__":
    main()
