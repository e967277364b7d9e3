"""available_dram: host memory that this process may still take, within the limits of its container."""

from __future__ import annotations

from pathlib import Path

import psutil

ROOT = Path("/")


def available_dram(root: Path = ROOT) -> int:
    """Bytes that the operating system has and the limits of every enclosing control group leave.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are mounted; another directory in tests.

    Returns
    -------
    int
        The least of what the system has available and what each group has left, at least 0.
    """
    return max(0, min([psutil.virtual_memory().available, *group_rooms(root)]))


def group_rooms(root: Path = ROOT) -> list[int]:
    """Bytes that each control group with a limit leaves, from this process's own group up to the outermost one.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are mounted.

    Returns
    -------
    list of int
        Limit less usage. File cache that the kernel would give back counts as free, as it does in
        ``MemAvailable``. Empty where nothing limits this process.

    Notes
    -----
    Version 2 of control groups says ``max`` where there is no limit; version 1 has a number larger than any memory.
    In a container the path in ``/proc/self/cgroup`` may be the host's, of which only the mounted end is seen; groups
    that are not seen are left out, and the mount's own root is always read.
    """
    rooms = []
    for mount, path, limit, usage, cache in _memory_groups(root):
        directory = mount / path.lstrip("/")
        for group in (directory, *directory.parents):
            if group.is_relative_to(mount):
                room = _room(group, limit, usage, cache)
                if room is not None:
                    rooms.append(room)
    return rooms


def _memory_groups(root: Path) -> list[tuple[Path, str, str, str, str]]:
    """Mount, path, and names of limit, usage and reclaimable cache of each hierarchy that limits memory."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    mounts = root / "sys/fs/cgroup"
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            unified = mounts / "unified" if (mounts / "unified").is_dir() else mounts
            found.append((unified, path, "memory.max", "memory.current", "inactive_file"))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            found.append((mounts / "memory", path, *names))
    return found


def _room(group: Path, limit: str, usage: str, cache: str) -> int | None:
    most = _number(group / limit)
    used = _number(group / usage)
    if most is None or used is None:
        return None
    return most - used + _reclaimable(group / "memory.stat", cache)


def _number(file: Path) -> int | None:
    """The number in a file; None if it says ``max``, or is not there."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _reclaimable(file: Path, name: str) -> int:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), 0)
