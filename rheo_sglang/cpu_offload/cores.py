"""keep_to_spare_cores: move the process's other threads off the cores of CPU attention."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from rheo_kernels.cpu import placement

logger = logging.getLogger(__name__)

TASKS = Path("/proc/self/task")
OURS = "rheo-"
"""Prefix of the names of threads that attend."""


def keep_to_spare_cores(threads: int) -> list[int]:
    """Move all other threads of the process to the cores that ``threads`` threads of CPU attention leave.

    Every thread that attends has a core of its own then: where two threads take turns on one, the whole layer waits.
    Threads started later inherit the affinity of the thread that starts them. Does nothing where no core is left; where
    the operating system does not let threads be moved, a warning says so.

    Parameters
    ----------
    threads
        Threads of CPU attention, the doorbell's included.

    Returns
    -------
    list of int
        The cores that are left, if the others keep to them.
    """
    spare = sorted(placement()[threads:])
    if not spare or not TASKS.is_dir():
        return spare
    for task in TASKS.iterdir():
        try:
            if not (task / "comm").read_text().startswith(OURS):
                os.sched_setaffinity(int(task.name), spare)
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread has ended
        except PermissionError as error:
            logger.warning("rheo: the scheduler's threads share the cores of CPU attention: %s", error)
            return []
    logger.info("rheo: the scheduler's own threads keep to CPU %s", ", ".join(map(str, spare)))
    return spare
