"""jobs: what a lease of a GPU machine can run, each with the time that it may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

OLDEST, NEWEST = "0.5.17", "0.5.23"
LEASE = "/tmp/lease"
"""Where everything is on the machine."""
ENVIRONMENT = f"{LEASE}/k/environment.sh"
PYTEST = "python3 -m pytest -p no:cacheprovider -p no:benchmark -q -n 12 --tb=short"
TRACED = tuple(
    f"{session}-{page}-{tokens}"
    for session, page, tokens in (
        *(("generation", 32, 28000), ("review", 32, 28000), ("agent", 32, 28000), ("chat", 32, 28000)),
        *(("questions", 32, 28000), ("agent", 32, 14000), ("chat", 32, 14000), ("agent", 32, 7000)),
        *(("chat", 32, 7000), ("generation", 16, 28000), ("review", 16, 28000)),
    )
)


@dataclass(frozen=True)
class Job:
    """One command; ``$O`` is the folder of results, ``$L`` that of logs, ``$CODER`` the model's checkpoint.

    Attributes
    ----------
    command
        For bash, in the root of the tree.
    seconds
        After which it is interrupted; None for the time that it takes.
    sglang
        Version.
    needs
        Preparations: ``coder`` the weights, ``fa3`` FlashAttention-3, ``models`` the tree's own, ``extra`` the prompts
        in ``$K``.
    after
        Jobs that must have ended.
    """

    command: str
    seconds: float | None = None
    sglang: str = OLDEST
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def _bench(name: str, arguments: str, result: str) -> str:
    return f"mkdir -p $L/{name}; python3 -m benchmarks.{name} {arguments} --out $O/{result}.json --logs $L/{name}"


def _trace(name: str) -> Job:
    session, page, tokens = name.split("-")
    return Job(
        f"python3 -m studies.trace_workloads {session} --page-size {page} --tokens {tokens} --threads 4 "
        f"--name {session}-{page}-{int(tokens) // 1000}k --model $CODER --folder {LEASE}/traces",
        400,
        needs=("coder",),
    )


_BOTH = ("coder", "fa3")
_EIGHT_THREADS = """--set '{"cpu_threads": 8}'"""
JOBS: dict[str, Job] = {
    "serving": Job(
        _bench(
            "serving",
            "--model $CODER --engines rheo hicache fa3 "
            """--set '{"cpu_threads": 8, "residency_bonus": 0.5}'""",
            "serving_gpu",
        ),
        660,
        needs=_BOTH,
    ),
    "joint": Job(
        _bench(
            "serving",
            "--model $CODER --engines rheo rheo_lru rheo_independent --answers 1500 "
            """--set '{"cpu_threads": 8, "residency_bonus": 0.5}' """
            """--variant rheo_lru '{"policy": "lru", "residency_bonus": 0}' '' """
            """--variant rheo_independent '{"policy": "lru", "residency_bonus": 0, "miss_mode": "fetch"}' ''""",
            "serving_joint_gpu",
        ),
        600,
        needs=("coder",),
    ),
    "agents": Job(
        _bench(
            "agents",
            f"--model $CODER --size coder --kv-gib 4 --engines rheo hicache fa3 {_EIGHT_THREADS}",
            "agents_gpu",
        ),
        540,
        needs=_BOTH,
    ),
    "admission": Job(
        _bench(
            "admission",
            f"--model $CODER --servers off admission --concurrency 8 24 48 96 {_EIGHT_THREADS}",
            "admission",
        ),
        700,
        needs=("coder",),
    ),
    "soak": Job(
        "python3 -m benchmarks.soak --minutes 20 --model $CODER --out $O/soak_gpu.json --log $L/soak_server.log",
        1500,
        needs=("coder",),
    ),
    "serving-8b": Job(
        _bench(
            "serving",
            "--model $CODER --load 8b-32k --locality locality_coder_cpu --engines rheo fa3 hicache --answers 400 "
            """--set '{"cpu_threads": 8, "residency_bonus": 0.5}'""",
            "serving_8b_32k",
        ),
        780,
        needs=_BOTH,
    ),
    "quality": Job(
        "python3 -m benchmarks.selection_coder --model $CODER --prompts $K/coder --servers $K/servers/coder.json "
        f"--work {LEASE}/work-coder --samples ruler=6 --out $O/selection_settings.json",
        needs=(*_BOTH, "extra"),
    ),
    "shared": Job(
        "python3 -m benchmarks.estimate_kernels --layouts page32_rows4 --context 28672 --budget 0.08 --batch 2 8 32 "
        "--documents 0 1 --out $O/shared_prefixes_gpu.json",
        120,
    ),
    "tpot-fp8": Job(
        "python3 -m benchmarks.tpot --out $O/tpot_fp8_gpu.json --engines default fa3 default-fp8 fa3-fp8 "
        "--contexts 128k --batches 1 4",
        needs=("fa3",),
    ),
    "tpot-newest": Job(
        "python3 -m benchmarks.tpot --out $O/tpot_newest_gpu.json --engines default fa3 rows8 unwatched "
        "--contexts 2k 128k --batches 1 4",
        sglang=NEWEST,
        needs=("fa3",),
    ),
    "tpot-coder": Job(
        "python3 -m benchmarks.tpot --out $O/tpot_coder_gpu.json --locality locality_coder_cpu --contexts 128k "
        "--batches 1 4 --engines 10pct-bs1-select4 fa3 10pct-bs4-select4",
        needs=("fa3",),
    ),
    "tests-newest": Job(f"{PYTEST} tests/kernels tests/contract", 420, NEWEST),
    "tests": Job(f"{PYTEST} tests/kernels tests/contract", 420),
    "reference": Job(
        "python3 -m benchmarks.selection_coder --model models/rheo-reference --prompts $K/reference "
        f"--servers $K/servers/reference.json --work {LEASE}/work --suites divergence,recall "
        "--out $O/selection_reference.json",
        1000,
        needs=("fa3", "models", "extra"),
    ),
    "every-page": Job(
        "SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK=0 python3 -m exactness.tensor_parallel --model $CODER "
        "--cases 'every page' --out $O/tensor_parallel_gpu.json",
        300,
        needs=("coder",),
    ),
    **{f"trace-{name}": _trace(name) for name in TRACED},
    "fit": Job(
        f"python3 -m studies.fit_served_locality --folder {LEASE}/traces --name locality_coder; "
        "cp docs/benchmarks/results/locality_coder.json $O/",
        after=tuple(f"trace-{name}" for name in TRACED if name.startswith(("generation", "review"))),
    ),
    "replay": Job(
        f"CUDA_VISIBLE_DEVICES= python3 -m studies.replay_workloads --folder {LEASE}/traces "
        "--name replay_coder_gpu --processes 8 --policies lru lfu importance predicted --capacities 1.25 2.5; "
        "cp docs/benchmarks/results/replay_coder_gpu.json $O/",
        after=tuple(f"trace-{name}" for name in TRACED),
    ),
}


def lane_job(name: str, gpus: str, cpus: str, planned: set[str]) -> dict[str, Any]:
    """A job as `gpu_lanes` reads it.

    Parameters
    ----------
    name
        Of the job.
    gpus, cpus
        Where it runs: device numbers, and cores as ``taskset`` reads them.
    planned
        All jobs of the lease; those that are not planned are not waited for.
    """
    job = JOBS[name]
    needs = [f"check-{job.sglang}", *(f"fa3-{job.sglang}" if one == "fa3" else one for one in job.needs)]
    described: dict[str, Any] = {
        "name": name,
        "command": f". {ENVIRONMENT} {job.sglang}; {job.command}",
        "environment": {"CUDA_VISIBLE_DEVICES": gpus},
        "cpus": cpus,
        "needs": needs,
        "after": [one for one in job.after if one in planned],
    }
    if job.seconds is not None:
        described["seconds"] = job.seconds
    return described
