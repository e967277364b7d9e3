"""Available DRAM is what the system has and every enclosing control group leaves, version 1 and 2."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from rheo_sglang.pools.dram import available_dram, group_rooms

GIB = 1 << 30
UNLIMITED = 9223372036854771712
"""What version 1 says where there is no limit."""
V1_TABLE = "9:name=systemd:/\n8:pids:/app\n4:{controllers}:{path}\n3:cpuset:/\n0::/\n"
STAT_V2 = "anon 1234\nfile 99999\ninactive_anon 7\nactive_file 50\ninactive_file {cache}\nslab 3\n"
STAT_V1 = "cache 99999\nrss 1234\ninactive_file 5\ntotal_cache 8\ntotal_inactive_file {cache}\n"


def machine(root: Path, table: str, groups: dict[str, dict[str, str]]) -> Path:
    """The files of a machine below ``root``: the table of this process's groups, and groups below the mount."""
    proc = root / "proc/self"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text(table)
    for path, files in groups.items():
        directory = root / "sys/fs/cgroup" / path
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / name).write_text(text + "\n")
    return root


def v2(limit: int | str, usage: int, cache: int = 0) -> dict[str, str]:
    stat = STAT_V2.format(cache=cache)
    return {"memory.max": str(limit), "memory.current": str(usage), "memory.stat": stat}


def v1(limit: int, usage: int, cache: int = 0) -> dict[str, str]:
    stat = STAT_V1.format(cache=cache)
    return {"memory.limit_in_bytes": str(limit), "memory.usage_in_bytes": str(usage), "memory.stat": stat}


def test_version_2_leaves_limit_less_usage_and_counts_cache_as_free(tmp_path: Path) -> None:
    machine(tmp_path, "0::/pod\n", {"pod": v2(8 * GIB, 3 * GIB, GIB)})
    assert group_rooms(tmp_path) == [6 * GIB]


def test_version_2_inside_a_container_sees_its_group_as_the_root(tmp_path: Path) -> None:
    machine(tmp_path, "0::/\n", {"": v2(4 * GIB, GIB)})
    assert group_rooms(tmp_path) == [3 * GIB]


def test_max_is_no_limit(tmp_path: Path) -> None:
    machine(tmp_path, "0::/user.slice/session.scope\n", {"user.slice/session.scope": v2("max", GIB)})
    assert group_rooms(tmp_path) == []
    assert available_dram(tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_every_enclosing_group_counts(tmp_path: Path) -> None:
    groups = {
        "kubepods": v2(16 * GIB, 15 * GIB),
        "kubepods/pod": v2("max", 3 * GIB),
        "kubepods/pod/container": v2(8 * GIB, 2 * GIB),
    }
    machine(tmp_path, "0::/kubepods/pod/container\n", groups)
    assert sorted(group_rooms(tmp_path)) == [GIB, 6 * GIB]
    assert available_dram(tmp_path) <= GIB


@pytest.mark.parametrize("controllers", ["memory", "hugetlb,memory", "memory,cpu"])
def test_version_1_has_a_hierarchy_of_its_own(tmp_path: Path, controllers: str) -> None:
    table = V1_TABLE.format(controllers=controllers, path="/docker/abc")
    groups = {"memory": v1(UNLIMITED, 9 * GIB), "memory/docker/abc": v1(2 * GIB, GIB, GIB // 2)}
    machine(tmp_path, table, groups)
    assert min(group_rooms(tmp_path)) == GIB + GIB // 2
    assert available_dram(tmp_path) <= GIB + GIB // 2


def test_version_1_inside_a_container_names_a_path_of_the_host(tmp_path: Path) -> None:
    table = V1_TABLE.format(controllers="memory", path="/kubepods/burstable/pod123/abc")
    machine(tmp_path, table, {"memory": v1(4 * GIB, GIB)})
    assert group_rooms(tmp_path) == [3 * GIB]


def test_both_versions_at_once(tmp_path: Path) -> None:
    table = "4:memory:/a\n0::/b\n"
    machine(tmp_path, table, {"memory/a": v1(4 * GIB, GIB), "unified/b": v2(3 * GIB, GIB)})
    assert sorted(group_rooms(tmp_path)) == [2 * GIB, 3 * GIB]


def test_a_limit_below_the_usage_leaves_nothing(tmp_path: Path) -> None:
    machine(tmp_path, "0::/pod\n", {"pod": v2(GIB, 2 * GIB)})
    assert available_dram(tmp_path) == 0


@pytest.mark.parametrize("table", ["", "5:pids:/x\n"])
def test_a_machine_without_memory_groups_is_what_the_system_says(tmp_path: Path, table: str) -> None:
    machine(tmp_path, table, {})
    assert group_rooms(tmp_path) == []
    assert group_rooms(tmp_path / "nothing here") == []


def test_this_machine_can_be_asked() -> None:
    assert 0 < available_dram() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
