"""One build of the CPU kernel, in a process of its own: answers each line of its input with GB/s.

A line is ``read``, or a variant and a group size: ``avx512f 4``. Started by benchmarks/cpu_builds.py with the build in
front of every other on the path.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import rheo_kernels
from benchmarks.cpu_attention import PAGES_PER_THREAD, Attended, HostPool, gbps, read_gbps
from rheo_kernels.cpu import CPU_ISA


def main() -> None:
    """Say which build this is, then measure what is asked for until the input ends."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--gib", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    pool = HostPool(int(arguments.gib * 2**30))
    pages = PAGES_PER_THREAD * arguments.threads
    tasks: dict[str, Attended] = {}
    print(Path(rheo_kernels.__path__[0]).parent, flush=True)
    for line in sys.stdin:
        asked = line.strip()
        if asked == "read":
            print(read_gbps(pool, pages, arguments.threads, arguments.seconds), flush=True)
            continue
        if asked not in tasks:
            isa, group = asked.split()
            os.environ[CPU_ISA] = isa
            tasks[asked] = Attended(pool, int(group), pages, arguments.threads)
            tasks[asked].prepare()()
        print(gbps(tasks[asked].prepare, pages, arguments.seconds), flush=True)


if __name__ == "__main__":
    main()
