"""Compare two trees of this repository on one GPU machine, in turns: kernels and time per output token.

    PYTHONPATH=scripts python -m benchmarks.compare_trees --before DIR --before-path A:B --after-path C:D --out FILE

A round runs a benchmark in one tree and then in the other; the next round begins with the other one. ``K_us_before``
and ``K_us_after`` are medians over rounds, ``K_ratio`` and ``tpot_ratio_after_before`` medians over rounds of the ratio
within a round. A run that fails or takes too long is named under ``failed``, and the others go on; the file is written
after every run. ``--onto`` adds to the rounds of earlier results, and with no new rounds joins their files:

    PYTHONPATH=scripts python -m benchmarks.compare_trees --onto A.json B.json --out FILE
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.measurement import REPOSITORY, keep_result, machine_in_words, result_document

RENAMED = {"attend_listed": "attend_dense", "hand_over": "offload"}
"""Kernels by the name that the tree before has, and the tree after."""
KERNEL_BATCHES, KERNEL_CONTEXTS = ("1", "4"), ("8k", "128k")
TPOT_CASES = {
    "resident": ("--contexts", "2k", "128k", "--batches", "1"),
    "10pct-bs1-select4": ("--contexts", "128k", "--batches", "1"),
    "10pct-bs4-select4": ("--contexts", "128k", "--batches", "4"),
}
"""Engines of the benchmark of time per output token: on one H200 about 65, 45 and 95 s in each tree."""
KERNEL_TIMEOUT, TPOT_TIMEOUT = 150.0, 240.0
KERNEL_KEY = re.compile(r"^(?P<kernel>\w+)_us_(?P<case>bs\d+_\w+)$")
SIDES = ("before", "after")


@dataclass(frozen=True)
class Tree:
    """One tree.

    Attributes
    ----------
    folder : Path
        Its root.
    path : str
        PYTHONPATH under which its installed packages are found, and SGLang.
    """

    folder: Path
    path: str

    def command(self, benchmark: str, *arguments: str) -> list[str]:
        """The command of ``kernels`` or ``tpot``, in the old layout of scripts/ or in this one."""
        script = self.folder / "scripts" / f"bench_{benchmark}.py"
        program = [str(script)] if script.exists() else ["-m", f"benchmarks.{benchmark}"]
        return [sys.executable, *program, *arguments]

    def run(self, benchmark: str, arguments: tuple[str, ...], timeout: float) -> dict[str, Any]:
        """Metrics of one run.

        Raises
        ------
        RuntimeError
            With one sentence, if it left no result.
        """
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "result.json"
            path = os.pathsep.join((self.path, str(self.folder / "scripts")))
            process = subprocess.Popen(
                self.command(benchmark, *arguments, "--out", str(out)),
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
            try:
                status: int | str = process.wait(timeout)
            except subprocess.TimeoutExpired:
                status = f"none after {timeout:.0f} s"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, 9)
                    process.wait()
            if not out.exists():
                raise RuntimeError(f"{benchmark} left no result; exit status: {status}")
            metrics: dict[str, Any] = json.loads(out.read_text())["metrics"]
            return metrics


def kernel_times(metrics: dict[str, Any], renamed: dict[str, str]) -> dict[str, float]:
    """Microseconds by ``KERNEL_bsN_CONTEXT``, under the names of the tree after."""
    found = {}
    for key, value in metrics.items():
        if match := KERNEL_KEY.match(key):
            kernel = match["kernel"]
            found[f"{renamed.get(kernel, kernel)}_{match['case']}"] = float(value)
    return found


def token_times(metrics: dict[str, Any]) -> dict[str, float]:
    """Milliseconds per output token by ``ENGINE/CONTEXT_bsN``, prompts that warm up left out."""
    return {
        f"{engine}/{label}": float(case["tpot_ms"])
        for engine, cases in metrics.items()
        if isinstance(cases, dict)
        for label, case in cases.items()
        if isinstance(case, dict) and "tpot_ms" in case and not label.endswith("_cold")
    }


def merged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds of what both trees have.

    Parameters
    ----------
    runs
        Each with ``part`` (``kernels`` or ``tpot``), ``side`` (``before`` or ``after``), ``round`` and ``metrics``.
    """
    times: dict[str, dict[str, dict[tuple[Any, str], float]]] = {
        part: defaultdict(dict) for part in ("kernels", "tpot")
    }
    for run in runs:
        if run["part"] == "kernels":
            found = kernel_times(run["metrics"], RENAMED if run["side"] == "before" else {})
        else:
            found = token_times(run["metrics"])
        for key, value in found.items():
            times[run["part"]][key][run["round"], run["side"]] = value
    result: dict[str, Any] = {}
    lonely: dict[str, list[str]] = {side: [] for side in SIDES}
    ratios: dict[str, float] = {}
    for part, keys in times.items():
        for key, values in keys.items():
            sides = {side: [value for (_, which), value in values.items() if which == side] for side in SIDES}
            rounds = {number for number, side in values if side == "before" and (number, "after") in values}
            if not rounds:
                lonely["before" if sides["before"] else "after"].append(key)
                continue
            ratio = statistics.median(values[number, "after"] / values[number, "before"] for number in rounds)
            unit = "us" if part == "kernels" else "tpot_ms"
            for side in SIDES:
                result[f"{key}_{unit}_{side}"] = round(statistics.median(sides[side]), 4)
            if part == "kernels":
                result[f"{key}_ratio"] = round(ratio, 4)
            else:
                ratios[key] = round(ratio, 4)
    slower = {key: value for key, value in result.items() if key.endswith("_ratio") and value > 1.02}
    if ratios:
        ratios["median"] = round(statistics.median(ratios.values()), 4)
    return {"tpot_ratio_after_before": ratios, "kernels_slower_by_2_percent": slower, **result} | {
        f"only_{side}": sorted(keys) for side, keys in lonely.items() if keys
    }


def next_round(runs: list[dict[str, Any]]) -> int:
    """Number of the round after some runs."""
    return 1 + max((run["round"] for run in runs), default=-1)


def gpu_name() -> str:
    """The first GPU as the driver names it, without a CUDA context in this process."""
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (IndexError, OSError, subprocess.CalledProcessError):
        return "unknown"


def main() -> int:
    """Run the rounds and write the result; 1 if a run failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="root of the tree before; without it no new rounds")
    parser.add_argument("--before-path", default="", help="PYTHONPATH of its packages and SGLang")
    parser.add_argument("--after-path", default="", help="PYTHONPATH of this tree's packages and SGLang")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--onto", type=Path, nargs="+", default=[], help="earlier results to add to")
    parser.add_argument("--kernel-batches", nargs="+", default=KERNEL_BATCHES, help="of the kernel benchmark")
    parser.add_argument("--kernel-rounds", type=int, default=3)
    parser.add_argument("--tpot-rounds", type=int, default=1)
    parser.add_argument("--engines", nargs="+", choices=list(TPOT_CASES), default=list(TPOT_CASES)[:2])
    parser.add_argument("--seconds", type=float, default=540.0, help="begin no run after this time")
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = []
    failed: list[str] = []
    machine = f"one {gpu_name()}, {machine_in_words().removesuffix(', no GPU')}"
    for earlier in arguments.onto:
        document = json.loads(earlier.read_text())
        machine = document["machine"]
        first = next_round(runs)
        runs += [{**run, "round": first + run["round"]} for run in document["runs"]]
        failed += document["failed"]
    failed_before, began = len(failed), time.monotonic()

    def keep() -> dict[str, Any]:
        metrics = merged(runs)
        document = result_document(arguments.out.stem, metrics, machine)
        document["command"] = (
            "python -m benchmarks.compare_trees --before DIR --before-path ... --after-path ... --out FILE "
            f"--kernel-rounds {arguments.kernel_rounds} --tpot-rounds {arguments.tpot_rounds} "
            f"--engines {' '.join(arguments.engines)} --kernel-batches {' '.join(arguments.kernel_batches)}"
        )
        keep_result(arguments.out, {**document, "runs": runs, "failed": failed})
        return metrics

    if arguments.before is None:
        keep()
        return 0
    trees = {
        "before": Tree(arguments.before.resolve(), arguments.before_path),
        "after": Tree(REPOSITORY, arguments.after_path),
    }
    cases = ("--batches", *arguments.kernel_batches, "--contexts", *KERNEL_CONTEXTS)
    kernels: list[tuple[str, str, tuple[str, ...], float]] = [
        ("kernels", "kernels", cases, KERNEL_TIMEOUT)
    ] * arguments.kernel_rounds
    tpot = [
        ("tpot", name, ("--engines", name, *TPOT_CASES[name]), TPOT_TIMEOUT)
        for _ in range(arguments.tpot_rounds)
        for name in arguments.engines
    ]
    for number, (part, name, options, timeout) in enumerate(
        kernels[:1] + tpot + kernels[1:], next_round(runs)
    ):
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            what = f"round {number}, {name}, {side}"
            if time.monotonic() - began > arguments.seconds:
                failed.append(f"{what}: no time left")
            else:
                print(f"== {what}", flush=True)
                try:
                    metrics = trees[side].run(part, options, timeout)
                    runs.append({"part": part, "side": side, "round": number, "metrics": metrics})
                except (RuntimeError, OSError, KeyError, ValueError) as error:
                    failed.append(f"{what}: {error}")
                    print(f"Error: {failed[-1]}", flush=True)
            keep()
    shown = {key: value for key, value in keep().items() if not isinstance(value, float)}
    print(json.dumps({**shown, "failed": failed[failed_before:]}, indent=1), flush=True)
    return int(len(failed) > failed_before)


if __name__ == "__main__":
    sys.exit(main())
