"""going_on: servers that are measured one after the other, so that one that fails costs no other its turn."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator


@contextlib.contextmanager
def going_on(name: str, failed: list[str]) -> Iterator[None]:
    """Tell what went wrong with a server and add its name to ``failed``, instead of passing the error on."""
    try:
        yield
    except (OSError, RuntimeError, subprocess.SubprocessError, ExceptionGroup) as error:
        print(f"{name} failed: {error}", flush=True)
        failed.append(name)
