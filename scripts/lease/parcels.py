#!/usr/bin/env python3
"""Parcels for a GPU machine without a network, and the lanes of jobs that it runs as soon as it has what they need.

    PYTHONPATH=scripts python3 -m lease.parcels --bundle 0.5.17=DIR --coder FILE.gguf
        --lane timings 0 0-15 serving,agents --lane soak 1 16-31 soak

Each parcel and the tree travel to the machine in a call of its own, where ``scripts/lease/machine.sh take NN`` keeps
it; ``get SECONDS LINES`` brings results back, and returns at once when nothing is left to wait for, also where parcels
did not arrive. Parcels are as large as the tree leaves room for, so pack after the last change. Have all calls ready
before the first one: a machine that waits between two of them may be given back, with what it holds. A parcel can be
sent again, and the lanes go on with it. Nothing starts before its bundle has passed the imports of ``gpu_run.sh
check`` there: where one is broken, a lease ends after a minute. ``--bundle`` is a folder of `environment.gpu_bundle`,
one for each version of SGLang that jobs need. What is in ``--extra`` is ``$K`` to the jobs: folders ``coder`` and
``reference`` of `benchmarks.selection_prompts`, for those of quality. ``models`` of the tree travels in the parcels, so
move it aside for the calls.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.measurement import REPOSITORY
from lease.jobs import ENVIRONMENT, JOBS, LEASE, OLDEST, lane_job

HERE = Path(__file__).parent
CALL = 64 * 2**20
"""Bytes that travel with a call at most: the tree, a parcel and what is beside it."""
PER_FILE = 1024
"""Bytes that a file takes beside its own, in an archive."""
SPARE = 2**20
LEAST_PARCEL = 16 * 2**20
UNPACK = (
    'python3 -c "import sys, zstandard; '
    "zstandard.ZstdDecompressor(max_window_size=2**31).copy_stream(sys.stdin.buffer, sys.stdout.buffer)"
    '"'
)


def bundle_files(version: str, folder: Path) -> dict[str, Path]:
    """Files of a bundle by their names in the parcels."""
    found = {name: folder / name for name in ("site.tar.xz", "torch.tar.zst", "fa3.zst")}
    return {f"{version}-{name}": path for name, path in found.items() if path.exists()}


def preparations(version: str, files: dict[str, Path]) -> dict[str, list[dict[str, Any]]]:
    """Lanes that unpack a bundle, check it, and unpack FlashAttention-3."""
    site = f"{LEASE}/site-{version}"
    into = f"{LEASE}/files/{version}"
    unpack = f"set -o pipefail; mkdir -p {site} && tar -xJf {into}-site.tar.xz -C {site}"
    needs = [f"{version}-site.tar.xz"]
    if f"{version}-torch.tar.zst" in files:
        unpack += f" && PYTHONPATH={site} {UNPACK} < {into}-torch.tar.zst | tar -x -C {site}"
        needs.append(f"{version}-torch.tar.zst")
    install = (
        f"cd {LEASE}/tree && env -u PYTHONPATH python3 -m pip install -q --no-index --no-deps --no-build-isolation "
        f"--upgrade --target {LEASE}/package-{version} ."
    )
    check = f". {ENVIRONMENT} {version} && python3 -W ignore -m environment.bundle_imports"
    fa3 = f"PYTHONPATH={site} {UNPACK} < {into}-fa3.zst > {site}/sgl_kernel/flash_ops.abi3.so"
    lanes: dict[str, list[dict[str, Any]]] = {
        f"bundle-{version}": [
            {"name": f"site-{version}", "command": unpack, "needs": needs},
            {"name": f"package-{version}", "command": install},
            {
                "name": f"check-{version}",
                "command": check,
                "needs": [f"site-{version}", f"package-{version}"],
                "seconds": 120,
            },
        ]
    }
    if f"{version}-fa3.zst" in files:
        lanes[f"fa3-{version}"] = [
            {"name": f"fa3-{version}", "command": fa3, "needs": [f"{version}-fa3.zst", f"site-{version}"]}
        ]
    return lanes


def weights() -> dict[str, list[dict[str, Any]]]:
    """Lanes that convert the weights and put the tree's own model back into it."""
    convert = (
        f". {ENVIRONMENT} {OLDEST}; python3 scripts/convert_model.py qwen2.5-coder-1.5b-instruct --dtype bfloat16 "
        f"--source {LEASE}/files/coder.gguf --out $CODER"
    )
    models = f"tar -xf {LEASE}/files/models.tar -C {LEASE}/tree"
    extra = f"tar -xf {LEASE}/files/extra.tar -C {LEASE}/k"
    return {
        "extra": [{"name": "extra", "command": extra, "needs": ["extra.tar"]}],
        "coder": [{"name": "coder", "command": convert, "needs": ["coder.gguf", f"check-{OLDEST}"]}],
        "models": [{"name": "models", "command": models, "needs": ["models.tar"]}],
    }


def travels(paths: Iterable[Path]) -> int:
    """Bytes that files take on their way."""
    return sum(path.stat().st_size + PER_FILE for path in paths if path.is_file())


def tree_files() -> list[Path]:
    """What of the tree travels with every call: ``models`` is moved aside."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    return [REPOSITORY / name for name in listed.split("\0") if name and not name.startswith("models/")]


def split(files: dict[str, Path], out: Path, piece: int) -> dict[str, Any]:
    """Cut files, one after the other, into parcels; the manifest that `gpu_lanes` reads."""
    command = f'cat "${{@:2}}" | split -b {piece} -d -a 2 - "$1/part"'
    paths = [str(path) for path in files.values()]
    subprocess.run(["bash", "-o", "pipefail", "-c", command, "split", str(out), *paths], check=True)
    return {"piece": piece, "files": [[name, path.stat().st_size] for name, path in files.items()]}


def main() -> None:
    """Write parcels, lanes and what the machine needs beside them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", action="append", required=True, metavar="VERSION=DIR")
    parser.add_argument("--coder", type=Path, help="GGUF file of Qwen2.5-Coder-1.5B-Instruct")
    parser.add_argument(
        "--lane", nargs=4, action="append", required=True, metavar=("NAME", "GPUS", "CPUS", "JOBS")
    )
    parser.add_argument("--extra", type=Path, help="folder of folders of prompts")
    parser.add_argument("--out", type=Path, default=REPOSITORY / ".gpu")
    options = parser.parse_args()
    asked = [(name, gpus, cpus, jobs.split(",")) for name, gpus, cpus, jobs in options.lane]
    if unknown := sorted({job for *_, jobs in asked for job in jobs} - set(JOBS)):
        parser.error(f"--lane: {', '.join(unknown)} not known; allowed: {', '.join(sorted(JOBS))}")
    bundles = dict(one.split("=", 1) for one in options.bundle)
    planned = {job for *_, jobs in asked for job in jobs}
    if absent := sorted({JOBS[job].sglang for job in planned} - set(bundles)):
        parser.error(f"--bundle: none of SGLang {', '.join(absent)}, which jobs need")
    dense = {JOBS[job].sglang for job in planned if "fa3" in JOBS[job].needs}
    if bare := sorted(version for version in dense if not (Path(bundles[version]) / "fa3.zst").exists()):
        parser.error(
            f"--bundle: that of SGLang {', '.join(bare)} has no fa3.zst, which jobs need; make it with --fa3"
        )
    if options.coder is None and any("coder" in JOBS[job].needs for job in planned):
        parser.error("--coder: no weights, which jobs need")
    beside = options.out / "k"
    shutil.rmtree(beside, ignore_errors=True)
    for old in options.out.glob("part[0-9]*"):
        old.unlink()
    beside.mkdir(parents=True)
    shutil.copytree(HERE / "servers", beside / "servers")
    for script in ("environment.sh", "machine.sh"):
        shutil.copy(HERE / script, beside)
    models, extra = options.out / "models.tar", options.out / "extra.tar"
    with tarfile.open(models, "w") as archive:
        archive.add(REPOSITORY / "models", "models")
    with tarfile.open(extra, "w") as archive:
        if options.extra is not None:
            archive.add(options.extra, ".")
    first, *others = (bundle_files(version, Path(folder)) for version, folder in bundles.items())
    files = {"extra.tar": extra, **first, **({"coder.gguf": options.coder} if options.coder else {})}
    files["models.tar"] = models
    for one in others:
        files |= one
    lanes = weights()
    if not options.coder:
        del lanes["coder"]
    for version in bundles:
        lanes |= preparations(version, files)
    for name, gpus, cpus, jobs in asked:
        lanes[name] = [lane_job(job, gpus, cpus, planned) for job in jobs]
    (beside / "lanes.json").write_text(json.dumps(lanes, indent=1) + "\n")
    room = CALL - travels(tree_files()) - travels(beside.rglob("*")) - SPARE
    if room < LEAST_PARCEL:
        parser.error(
            f"the tree leaves {room / 1e6:.1f} MB of a call for a parcel; allowed: {LEAST_PARCEL / 1e6:.0f}"
        )
    (beside / "manifest.json").write_text(json.dumps(split(files, options.out, room)) + "\n")
    models.unlink()
    extra.unlink()
    parts = sorted(path.name.removeprefix("part") for path in options.out.glob("part*"))
    (beside / "parcels.txt").write_text("".join(f"{part}\n" for part in parts))
    print(f"{len(parts)} parcels of {room / 1e6:.1f} MB in {options.out}")


if __name__ == "__main__":
    main()
