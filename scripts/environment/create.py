#!/usr/bin/env python3
"""Creates the virtual environments in which SGLang and this package run on a machine without a GPU.

    python3 scripts/environment/create.py --sglang 0.5.23 [--path .venv/sglang-0.5.23] [--dev]

Standard library only, so that it runs on a fresh machine. An environment consists of layers (`base`,
`package`, `dev`); each records a digest of what it was made from, so a second call does nothing, a changed
list or `pyproject.toml` renews what depends on it, and an interrupted creation is started over.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
SITE_PACKAGES = HERE / "site_packages"
SGLANG_VERSIONS = ("0.5.17", "0.5.20", "0.5.23")
DEFAULT_SGLANG = "0.5.23"
PYTHON_VERSIONS = ((3, 11), (3, 12))
TORCH = "torch==2.13.0"
TORCHVISION = "torchvision==0.28.0"
BUILD_TOOLS = ("scikit-build-core>=0.11", "nanobind>=2.0", "cmake>=3.18", "ninja")
RECORD = "rheo-environment.json"
FREE_GB = 4
"""An environment takes 3.1 GB of the disk, and pip unpacks what it downloads beside that."""


class EnvironmentCreationError(Exception):
    """An environment could not be created; the message is meant for the user."""


def default_path(sglang: str) -> Path:
    """Where the environment of one SGLang version lives when no path is given."""
    return REPOSITORY / ".venv" / f"sglang-{sglang}"


def ensure_environment(
    sglang: str, path: Path | None = None, *, dev: bool = False, report: Callable[[str], None] | None = None
) -> Path:
    """Create or complete an environment and return the path of its Python.

    Parameters
    ----------
    sglang : str
        One of `SGLANG_VERSIONS`.
    path : Path, optional
        Directory of the environment; `default_path(sglang)` when omitted.
    dev : bool
        Also install the tools that format, lint, type-check and test the repository.
    report : callable, optional
        Receives one line for each finished step. Prints them when omitted.

    Raises
    ------
    EnvironmentCreationError
        If this Python or the SGLang version is not supported, the directory holds something else, or an
        installation step fails.
    """
    check_supported(sglang)
    path = (path or default_path(sglang)).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path.with_name(path.name + ".lock")):
        environment = Environment(sglang, path, report)
        environment.complete(dev)
    return environment.python


def check_supported(sglang: str) -> None:
    """Raise unless the running Python and the SGLang version are supported."""
    if not sys.platform.startswith("linux"):
        raise EnvironmentCreationError(f"SGLang's CPU server runs on Linux; this is {sys.platform}.")
    if sys.version_info[:2] not in PYTHON_VERSIONS:
        running = ".".join(map(str, sys.version_info[:3]))
        raise EnvironmentCreationError(
            f"Python {running} is running; RheoServe supports Python 3.11 and 3.12."
        )
    if sglang not in SGLANG_VERSIONS:
        raise EnvironmentCreationError(
            f"--sglang {sglang} has no environment; choose one of {', '.join(SGLANG_VERSIONS)}."
        )


@contextlib.contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold a file lock, so that two commands never create the same environment at once."""
    with open(lock, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def digest(*parts: str | Path) -> str:
    """Digest of texts and of the names and contents of files."""
    state = hashlib.sha256()
    for part in parts:
        content = part.name.encode() + b"\0" + part.read_bytes() if isinstance(part, Path) else part.encode()
        state.update(content + b"\0")
    return state.hexdigest()


class Environment:
    """One virtual environment and the layers installed in it.

    Parameters
    ----------
    sglang : str
        SGLang version to install.
    path : Path
        Directory of the virtual environment.
    report : callable, optional
        Receives one line for each finished step.
    """

    def __init__(self, sglang: str, path: Path, report: Callable[[str], None] | None) -> None:
        self.sglang = sglang
        self.path = path
        self.python = path / "bin" / "python"
        self.record = path / RECORD
        self.report = report
        self.began = time.monotonic()

    def complete(self, dev: bool) -> None:
        """Install every layer that is missing or out of date."""
        changed = self._layer("base", self._base_digest(), self._install_base)
        changed |= self._layer("package", digest(REPOSITORY / "pyproject.toml"), self._install_package)
        if dev:
            changed |= self._layer("dev", digest(HERE / "requirements" / "dev.txt"), self._install_dev)
        if changed:
            self._say(f"ready: {os.path.relpath(self.path)}", time.monotonic() - self.began)

    def _layer(self, name: str, wanted: str, install: Callable[[], None]) -> bool:
        layers = self._recorded()
        if layers.get(name) == wanted:
            return False
        install()
        layers = self._recorded() | {name: wanted}
        pending = self.record.with_suffix(".tmp")
        pending.write_text(json.dumps(layers, indent=1) + "\n")
        pending.replace(self.record)
        return True

    def _recorded(self) -> dict[str, str]:
        if not self.record.is_file() or not self.python.exists():
            return {}
        return json.loads(self.record.read_text())

    def _base_digest(self) -> str:
        lists = [HERE / "requirements" / name for name in ("common.txt", f"sglang-{self.sglang}.txt")]
        shims = sorted(path for path in SITE_PACKAGES.rglob("*") if path.suffix in (".py", ".pth"))
        return digest(f"{sys.version_info[:2]}", self.sglang, Path(__file__), *lists, *shims)

    def _install_base(self) -> None:
        self._remove_previous()
        self._check_free()
        self._step("virtual environment", [sys.executable, "-m", "venv", str(self.path)])
        self._pip(TORCH, TORCH)
        self._pip(
            "SGLang's requirements",
            *("-r", str(HERE / "requirements" / f"sglang-{self.sglang}.txt")),
            *BUILD_TOOLS,
        )
        self._pip(
            f"SGLang {self.sglang}",
            "--no-deps",
            TORCHVISION,
            f"sglang=={self.sglang}",
        )
        library = subprocess.check_output(
            [self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        )
        shutil.copytree(
            SITE_PACKAGES, library.strip(), dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )

    def _install_package(self) -> None:
        with exclusive(self.path.parent / "package.lock"):
            self._pip("this package", "--no-deps", "--no-build-isolation", "--editable", str(REPOSITORY))

    def _install_dev(self) -> None:
        self._pip("development tools", "-r", str(HERE / "requirements" / "dev.txt"))

    def _remove_previous(self) -> None:
        if not self.path.exists():
            return
        if any(self.path.iterdir()) and not (self.path / "pyvenv.cfg").is_file():
            raise EnvironmentCreationError(
                f"--path {self.path} is neither empty nor a virtual environment; name another directory."
            )
        shutil.rmtree(self.path)

    def _check_free(self) -> None:
        free = shutil.disk_usage(self.path.parent).free / 1e9
        if free < FREE_GB:
            raise EnvironmentCreationError(
                f"The environment of SGLang {self.sglang} needs {FREE_GB} GB of disk, and {self.path.parent} has "
                f"{free:.1f} GB free; free some first."
            )

    def _pip(self, what: str, *arguments: str) -> None:
        """Install with pip, without bytecode: Python writes it for the modules that are imported."""
        quiet = ("--quiet", "--no-compile", "--no-input", "--disable-pip-version-check")
        self._step(what, [str(self.python), "-m", "pip", "install", *quiet, *arguments])

    def _step(self, what: str, command: list[str]) -> None:
        """Run one command, silent unless it fails, and report how long it took."""
        began = time.monotonic()
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )
            try:
                self._wait(process, what, began)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
            if process.returncode != 0:
                output.seek(0)
                raise EnvironmentCreationError(
                    f"{output.read().strip()}\nInstalling {what} failed; see pip's message above."
                )
        self._say(what, time.monotonic() - began)

    def _wait(self, process: subprocess.Popen, what: str, began: float) -> None:
        live = self.report is None and sys.stdout.isatty()
        while True:
            try:
                process.wait(timeout=0.5 if live else None)
                return
            except subprocess.TimeoutExpired:
                print(
                    f"\r\033[Ksglang {self.sglang}: {what} ... {time.monotonic() - began:.0f} s",
                    end="",
                    flush=True,
                )

    def _say(self, what: str, seconds: float) -> None:
        line = f"sglang {self.sglang}: {what} ({seconds:.1f} s)"
        if self.report is not None:
            self.report(line)
        else:
            print(("\r\033[K" if sys.stdout.isatty() else "") + line, flush=True)


def main() -> None:
    """Parse the command line and create the environment."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--sglang", default=DEFAULT_SGLANG, help=f"one of {', '.join(SGLANG_VERSIONS)} (default: %(default)s)"
    )
    parser.add_argument(
        "--path", type=Path, help="directory of the environment (default: .venv/sglang-VERSION)"
    )
    parser.add_argument(
        "--dev", action="store_true", help="also install the tools that lint and test this repository"
    )
    arguments = parser.parse_args()
    try:
        python = ensure_environment(arguments.sglang, arguments.path, dev=arguments.dev)
    except EnvironmentCreationError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Stopped; the next call starts the unfinished part over.")
    print(f"Python of the environment: {os.path.relpath(python)}")


if __name__ == "__main__":
    main()
