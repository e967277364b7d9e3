"""`rheo doctor`: whether a server with ``--attention-backend rheo`` can start here, and what is missing."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from rheo_sglang.sglang_settings import CPU_ENGINE

PYTHONS = ((3, 11), (3, 12))
OLDEST, NEWEST = (0, 5, 17), (0, 5, 23)
PLUGIN_GROUP = "sglang.srt.plugins"
PLUGIN_MODULES = (
    "plugin",
    "validate",
    "backend",
    "pools.allocator",
    "pools.sizing",
    "tree.component",
    "state",
)


class CheckFailedError(Exception):
    """What a check found missing or broken, in one line."""


class Check(NamedTuple):
    """One line of the report.

    Attributes
    ----------
    name
        What is looked at.
    look
        Returns what was found; whatever it raises is what is wrong.
    needs
        Names of checks without which this one says nothing.
    """

    name: str
    look: Callable[[], str]
    needs: tuple[str, ...] = ()


def add_parser(commands: Any) -> None:
    """Add the subcommand to the ``rheo`` command."""
    doctor = commands.add_parser("doctor", help="whether a server can start here, and what is missing")
    doctor.set_defaults(run=run_doctor)


def run_doctor(arguments: argparse.Namespace) -> int:
    """Print one line for each check; 1 if one failed, else 0."""
    warnings.simplefilter("ignore")
    failed: set[str] = set()
    for check in CHECKS:
        missing = [name for name in check.needs if name in failed]
        if missing:
            failed.add(check.name)
            print(f"--   {check.name}: not checked without {missing[0]}")
            continue
        try:
            print(f"ok   {check.name}: {check.look()}", flush=True)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            failed.add(check.name)
            print(f"FAIL {check.name}: {_line(error)}", flush=True)
    if failed:
        print("A server cannot start here: see the lines that say FAIL.")
        return 1
    print("--attention-backend rheo is available.")
    return 0


def check_python() -> str:
    """Whether this Python is one that is tested."""
    found = sys.version_info[:2]
    if found not in PYTHONS:
        raise CheckFailedError(f"{found[0]}.{found[1]}; needed: 3.11 or 3.12")
    return sys.version.split()[0]


def check_rheo() -> str:
    """Whether the package is installed with the entry point by which SGLang finds it."""
    version = _installed("rheo-sglang", "pip install .")
    if "rheo" not in [entry.name for entry in importlib.metadata.entry_points(group=PLUGIN_GROUP)]:
        raise CheckFailedError(f"{version} without its entry point; install the package with 'pip install .'")
    chosen = os.environ.get("SGLANG_PLUGINS", "")
    if chosen and "rheo" not in [name.strip() for name in chosen.split(",")]:
        raise CheckFailedError(f"{version}, but SGLANG_PLUGINS={chosen!r} leaves rheo out")
    return f"{version}, known to SGLang as a plugin"


def check_torch() -> str:
    """Whether torch loads, and what it computes on."""
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        return f"{torch.__version__}, {torch.cuda.get_device_name()}"
    return f"{torch.__version__}, no GPU: 'rheo serve' starts a server on the CPU"


def check_kernels() -> str:
    """Whether the compiled CPU attention loads."""
    importlib.import_module("rheo_kernels.cpu")
    return "CPU attention loads"


def check_sglang() -> str:
    """Whether SGLang is there in a version that is tested."""
    version = _installed("sglang", f"pip install sglang=={_dotted(NEWEST)}")
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if not OLDEST <= numbers <= NEWEST:
        raise CheckFailedError(f"{version}; needed: {_dotted(OLDEST)} to {_dotted(NEWEST)}")
    importlib.import_module("sglang.srt.plugins")
    return version


def check_engine() -> str:
    """Whether SGLang's compiled kernels load for the device that a server would use here."""
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        os.environ[CPU_ENGINE] = "1"
    kernels = importlib.import_module("sgl_kernel")
    device = "GPU" if torch.cuda.is_available() else f"CPU ({CPU_ENGINE}=1, which 'rheo serve' sets)"
    return f"sgl_kernel {getattr(kernels, '__version__', '')} for the {device}"


def check_plugin() -> str:
    """Load the plugin as SGLang does, but let its errors through."""
    for module in PLUGIN_MODULES:
        importlib.import_module(f"rheo_sglang.{module}")
    importlib.import_module("rheo_sglang.plugin").register()
    return "loads"


def check_memory() -> str:
    """How much host memory a host pool can have."""
    from rheo_sglang.pools.dram import available_dram

    return f"{available_dram() / (1 << 30):.1f} GiB of DRAM are available, container limits included"


CHECKS = (
    Check("Python", check_python),
    Check("rheo-sglang", check_rheo),
    Check("memory", check_memory),
    Check("torch", check_torch),
    Check("rheo_kernels", check_kernels, ("torch",)),
    Check("sglang", check_sglang),
    Check("SGLang's kernels", check_engine, ("torch",)),
    Check("plugin", check_plugin, ("torch", "sglang", "SGLang's kernels", "rheo_kernels")),
)


def _installed(package: str, remedy: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise CheckFailedError(f"not installed; {remedy}") from None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _line(error: BaseException) -> str:
    """An error as one line, with its kind unless it is the check's own."""
    text = " ".join(str(error).split())
    return text if isinstance(error, CheckFailedError) else f"{type(error).__name__}: {text}"
