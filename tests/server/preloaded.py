"""PreloadedSGLang: starts servers from a process that has imported SGLang (preload_main.py), for all of a test run."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

MAIN = Path(__file__).with_name("preload_main.py")


class PreloadedSGLang:
    """The process that forks servers; it ends with this one.

    Parameters
    ----------
    environment : mapping
        Its environment variables: those that SGLang reads when it is imported are those of every server.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, str(MAIN), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=dict(environment),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        assert self.requests.recv(16) == b"ready", "SGLang cannot be imported"

    def launch(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> ForkedServer:
        """Start ``python -m sglang.launch_server`` with these arguments, variables and file for its output."""
        told, status = os.pipe()
        request = {"arguments": list(arguments), "environment": dict(environment)}
        with open(log, "wb") as output:
            socket.send_fds(self.requests, [json.dumps(request).encode()], [output.fileno(), status])
        os.close(status)
        return ForkedServer(told)

    def close(self) -> None:
        """End it; servers that still run end too."""
        self.requests.close()
        self.process.wait()


class ForkedServer:
    """What `subprocess.Popen` tells of a server's main process, of one that another process forked.

    Attributes
    ----------
    pid : int
        Of the process, which leads a process group.
    returncode : int, optional
        None until `poll` or `wait` has seen its end.
    """

    def __init__(self, told: int) -> None:
        self._told = os.fdopen(told, "rb", buffering=0)
        self.pid = int(self._told.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, a signal's number negated, or None while it runs."""
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; raises `subprocess.TimeoutExpired` after so many seconds."""
        found = self._look(timeout)
        if found is None:
            raise subprocess.TimeoutExpired("sglang.launch_server", timeout or 0.0)
        return found

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._told], [], [], timeout)[0]:
            self.returncode = int(self._told.readline())
            self._told.close()
        return self.returncode
