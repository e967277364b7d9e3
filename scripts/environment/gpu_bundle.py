#!/usr/bin/env python3
"""Packs SGLang for a machine with a GPU and without a network, where torch for CUDA is installed.

    python3 scripts/environment/gpu_bundle.py --sglang 0.5.17 --out .gpu [--fa3]

The other machine is x86-64 Linux with Python 3.12, CUDA 13.0 and what torch brings. ``site.tar.xz`` is what SGLang
needs beyond that, ``fa3.zst`` FlashAttention-3's library. Where a version of SGLang wants another torch, that is
``torch.tar.zst``. `scripts/gpu_run.sh` unpacks all three if it finds them in ``.gpu``, whole or in parts made by
``split``, and its step ``check`` imports what servers import: try a new bundle with it under Python 3.12 with that
torch, which needs no GPU, before it is carried. Wheels are kept in ``--cache``. Needs pip, ``strip`` and ``zstd``.

Results on GPUs were measured with the wheels of 0.5.17. Those of 0.5.23 were not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import ast
import configparser
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

LISTS = Path(__file__).parent / "gpu_wheels"
PYTHON = "3.12"
GLIBC_MINORS = (39, 35, 34, 31, 28, 27, 26, 24, 18, 17, 12)
LEFT_OUT = (
    *("sglang/multimodal_gen", "sglang/test", "test", "tools", "torch/test"),
    *("sgl_kernel/sm100", "sgl_kernel/flashmla_ops.abi3.so", "sgl_kernel/infllm_ops*.so"),
    "xgrammar/lib/libxgrammar.a",
)
"""Not needed to serve a text model on Hopper GPUs."""
FA3 = "sgl_kernel/flash_ops.abi3.so"
STRIPPED = ("libxgrammar_bindings.so",)
STAND_INS = {
    "IPython/__init__.py": "version_info = (9, 0, 0)\n\n\ndef get_ipython():\n    return None\n",
    "IPython/display.py": "class HTML:\n    def __init__(self, *arguments, **keywords): ...\n\n\n"
    "def display(*arguments, **keywords): ...\n",
    "soundfile.py": "def available_formats():\n    return {}\n",
    "datasets.py": "class Dataset: ...\n\n\ndef load_dataset(*arguments, **keywords):\n"
    "    raise RuntimeError('no network on this machine')\n",
}
"""Modules that SGLang imports at its start and uses for notebooks, sound and data sets alone."""


def versions() -> list[str]:
    """Versions of SGLang that there are lists of wheels for."""
    return sorted(path.stem for path in LISTS.glob("*.txt") if not path.stem.endswith("-torch"))


def wheels_of(name: str) -> list[str]:
    """Requirements of a list of wheels, one version each."""
    lines = (LISTS / f"{name}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def download(requirements: list[str], folder: Path) -> list[Path]:
    """Wheels for the other machine, without what they depend on.

    Raises
    ------
    subprocess.CalledProcessError
        If pip finds no such wheel.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", PYTHON, "--implementation", "cp", "-d", str(folder)]
    for platform in (*(f"manylinux_2_{minor}" for minor in GLIBC_MINORS), "manylinux2014", "manylinux1"):
        command += ["--platform", f"{platform}_x86_64"]
    subprocess.run([*command, *requirements], check=True)
    return sorted(folder.glob("*.whl"))


def unpack(wheels: list[Path], site: Path) -> None:
    """Unpack wheels into a folder."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)


def trim(site: Path) -> None:
    """Take out what is not needed, and add stand-ins where SGLang is."""
    for pattern in LEFT_OUT:
        for path in site.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    for name in STRIPPED:
        for path in site.rglob(name):
            subprocess.run(["strip", str(path)], check=True)
    for name, text in STAND_INS.items() if (site / "sglang").is_dir() else ():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def lacking(site: Path) -> list[str]:
    """What packages would look for in vain: names of stand-ins, and modules of Triton's backends.

    Parameters
    ----------
    site
        Unpacked and trimmed.
    """
    given = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): _names(ast.parse(text))
        for name, text in STAND_INS.items()
    }
    found = set()
    for path in site.glob("sglang/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8-sig"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module in given:
                wanted = {one.name for one in node.names} - given[node.module]
                found |= {f"{node.module}.{name}" for name in wanted} - given.keys()
    for path in site.glob("*.dist-info/entry_points.txt"):
        points = configparser.ConfigParser(delimiters="=")
        points.read(path)
        for module in dict(points["triton.backends"]).values() if "triton.backends" in points else ():
            if not (site / module.replace(".", "/")).is_dir():
                found.add(module)
    return sorted(found)


def _names(module: ast.Module) -> set[str]:
    """What a module defines at its top."""
    defined = {node.name for node in module.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    assigned = {
        target.id
        for node in module.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return defined | assigned


def compress(source: Path, target: Path) -> None:
    """Compress a file with zstd, as `scripts/gpu_run.sh` reads it."""
    subprocess.run(["zstd", "-q", "-9", "--long=31", "-T0", "-f", str(source), "-o", str(target)], check=True)


def pack(site: Path, target: Path) -> None:
    """Pack a folder: ``.tar.xz``, or ``.tar.zst`` where that is the target's ending."""
    if target.suffix == ".xz":
        with tarfile.open(target, "w:xz", preset=6) as archive:
            archive.add(site, ".")
        return
    plain = target.with_suffix("")
    with tarfile.open(plain, "w") as archive:
        archive.add(site, ".")
    compress(plain, target)
    plain.unlink()


def make(name: str, target: Path, cache: Path, fa3: Path | None = None) -> Path:
    """Make an archive of a list's wheels.

    Parameters
    ----------
    name
        Of the list.
    target
        The archive.
    cache
        Folder for wheels.
    fa3
        Where FlashAttention-3's library goes, if it is wanted.
    """
    requirements = wheels_of(name)
    digest = hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:8]
    print(f"{target.name}: {len(requirements)} wheels", flush=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        site = Path(folder)
        unpack(download(requirements, cache / f"{name}-{digest}"), site)
        library = site / FA3
        if fa3 is not None:
            compress(library, fa3)
        library.unlink(missing_ok=True)
        trim(site)
        if missing := lacking(site):
            raise SystemExit(
                f"gpu_bundle.py: {target.name} would lack {', '.join(missing)}; extend STAND_INS"
            )
        pack(site, target)
    return target


def main() -> None:
    """Make the bundle of one version."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sglang", choices=versions(), required=True, help="version")
    parser.add_argument("--out", type=Path, default=Path(".gpu"), help="folder of the bundle")
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "rheo-gpu-bundle", help="folder of wheels"
    )
    parser.add_argument("--fa3", action="store_true", help="FlashAttention-3, too")
    options = parser.parse_args()
    if missing := [tool for tool in ("zstd", "strip") if shutil.which(tool) is None]:
        raise SystemExit(f"gpu_bundle.py needs {' and '.join(missing)}: install it and start again")
    options.out.mkdir(parents=True, exist_ok=True)
    fa3 = options.out / "fa3.zst" if options.fa3 else None
    made = [make(options.sglang, options.out / "site.tar.xz", options.cache, fa3)]
    if (LISTS / f"{options.sglang}-torch.txt").exists():
        made.append(make(f"{options.sglang}-torch", options.out / "torch.tar.zst", options.cache))
    for path in [*made, *filter(None, [fa3])]:
        print(f"{path}: {path.stat().st_size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
