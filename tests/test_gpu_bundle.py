"""A bundle of SGLang for a GPU machine without a network: its lists, and what is left out of it."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest

from environment import gpu_bundle
from environment.bundle_imports import broken

PINNED = re.compile(r"^[A-Za-z0-9_.\-]+==[A-Za-z0-9_.!+\-]+$")


def test_the_oldest_and_the_newest_sglang_have_lists() -> None:
    from environment.create import SGLANG_VERSIONS

    assert {SGLANG_VERSIONS[0], SGLANG_VERSIONS[-1]} <= set(gpu_bundle.versions())


@pytest.mark.parametrize("name", sorted(path.stem for path in gpu_bundle.LISTS.glob("*.txt")))
def test_a_list_names_each_wheel_once(name: str) -> None:
    wheels = gpu_bundle.wheels_of(name)
    packages = [wheel.split("==")[0].lower().replace("_", "-") for wheel in wheels]
    assert all(PINNED.match(wheel) for wheel in wheels)
    assert len(set(packages)) == len(packages)
    version = name.removesuffix("-torch")
    assert name != version or f"sglang=={version}" in wheels


def test_what_serving_needs_is_packed_and_the_rest_is_not(tmp_path: Path) -> None:
    site, archive = tmp_path / "site", tmp_path / "site.tar.xz"
    kept = ["sglang/srt/server.py", "sgl_kernel/sm90/common_ops.abi3.so", "triton/backends/amd/driver.py"]
    left_out = [
        "sglang/test/x.py",
        "sgl_kernel/sm100/x.so",
        "sgl_kernel/infllm_ops.cpython-310.so",
        "tools/x.py",
    ]
    for name in kept + left_out:
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(name)
    gpu_bundle.trim(site)
    gpu_bundle.pack(site, archive)
    with tarfile.open(archive) as packed:
        names = {member.name.removeprefix("./") for member in packed if member.isfile()}
    assert names == {*kept, *gpu_bundle.STAND_INS}


def test_stand_ins_go_only_where_sglang_is(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    gpu_bundle.trim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["torch"]


def packed(site: Path, files: dict[str, str]) -> list[str]:
    for name, text in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    gpu_bundle.trim(site)
    return gpu_bundle.lacking(site)


def test_names_that_a_stand_in_does_not_have_are_told(tmp_path: Path) -> None:
    served = (
        "\ufefffrom IPython.display import HTML, display\nfrom IPython import display as shown, get_ipython\n"
    )
    assert packed(tmp_path, {"sglang/utils.py": served}) == []
    served += "def load():\n    from datasets import Dataset, concatenate_datasets\n"
    assert packed(tmp_path, {"sglang/utils.py": served}) == ["datasets.concatenate_datasets"]


def test_a_backend_that_triton_looks_for_is_there(tmp_path: Path) -> None:
    points = {"triton-3.dist-info/entry_points.txt": "[triton.backends]\namd = triton.backends.amd\n"}
    assert packed(tmp_path, points) == ["triton.backends.amd"]
    assert packed(tmp_path, {**points, "triton/backends/amd/driver.py": ""}) == []


def test_what_cannot_be_imported_is_told() -> None:
    found = broken(("json", "no.such.module"))
    assert list(found) == ["no.such.module"]
    assert found["no.such.module"].startswith("ModuleNotFoundError")
