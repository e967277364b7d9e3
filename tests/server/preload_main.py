"""A process that imports SGLang once and forks servers that find it imported: `preload_main.py FD`.

Importing SGLang takes 10 to 13 s of a core in each of a server's three processes, more than all else that the tests
ask of it. A server that is forked here runs ``sglang.launch_server`` as a new interpreter would, with its own command
line, environment and output. Its processes that multiprocessing spawns are its own children, with the environment and
files that spawning hands them; each was forked, with SGLang imported, before the server did anything. Neither this
process nor those that wait import the plugin: SGLang loads it in each process as in any other server.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import multiprocessing.util
import os
import runpy
import signal
import socket
import sys
from collections.abc import Callable, Sequence

IMPORTED = (
    "sglang.srt.entrypoints.http_server",
    "sglang.srt.managers.scheduler",
    "sglang.srt.managers.detokenizer_manager",
    "sglang.srt.models.registry",
)
SPARES = 3
"""Processes that wait to be spawned: the schedulers of two ranks, and the detokenizer."""
MESSAGE = 1 << 18
"""Bytes of a message at most: command line and environment."""
FREE_FILES = 200
"""From this number on, files are kept whose own numbers are being given away."""
PR_SET_PDEATHSIG = 1
Body = Callable[[], object]


def main() -> None:
    """Import SGLang, fork servers until the tests' end of the socket is closed, or run as one of them.

    A process can be given a title, as SGLang gives its schedulers one, if it has had one since before its environment
    was changed.
    """
    requests = socket.socket(fileno=int(sys.argv[1]))
    for name in IMPORTED:
        importlib.import_module(name)
    importlib.import_module("setproctitle").setproctitle("sglang, imported")
    gc.freeze()
    body = fork_servers(requests)
    if body is not None:
        body()


def fork_servers(requests: socket.socket) -> Body | None:
    """What the process is to run: a forked server its main module; None in the process that forked them."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    requests.send(b"ready")
    while True:
        message, files, _, _ = socket.recv_fds(requests, MESSAGE, 2)
        if not message:
            return None
        log, status = files
        if os.fork() == 0:
            requests.close()
            return watched_server(json.loads(message), log, status)
        os.close(log)
        os.close(status)


def watched_server(request: dict, log: int, status: int) -> Body | None:
    """Fork a server, say its process id and how it ends: ``"PID\\n"``, then its exit status as Popen has it."""
    end_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    process = os.fork()
    if process == 0:
        os.close(status)
        return server(request, log)
    os.write(status, f"{process}\n".encode())
    _, ended = os.waitpid(process, 0)
    os.write(status, f"{os.waitstatus_to_exitcode(ended)}\n".encode())
    os._exit(0)


def server(request: dict, log: int) -> Body:
    """Become a session of its own with the request's output, environment and command line."""
    os.setsid()
    end_with_parent(signal.SIGTERM)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    adopt(request["environment"])
    spares: list[tuple[int, socket.socket]] = []
    for _ in range(SPARES):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = os.fork()
        if process == 0:
            for end in (ours, *(end for _, end in spares)):
                end.close()
            return spare(theirs)
        theirs.close()
        spares.append((process, ours))
    spawn_from(spares)
    sys.argv = ["launch_server.py", *request["arguments"]]
    return lambda: runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)


def spare(work: socket.socket) -> Body:
    """Wait to be spawned, then run what multiprocessing would have a new interpreter run."""
    message, files, _, _ = socket.recv_fds(work, MESSAGE, 16)
    if not message:
        os._exit(0)
    spawned = json.loads(message)
    work.close()
    kept = [fcntl.fcntl(file, fcntl.F_DUPFD, FREE_FILES) for file in files]
    for file in files:
        os.close(file)
    for file, number in zip(kept, spawned["files"], strict=True):
        os.dup2(file, number)
        os.close(file)
    adopt(spawned["environment"])
    *_, code, option = spawned["command"]
    sys.argv = ["-c", option]
    return lambda: exec(code, {"__name__": "__main__"})


def spawn_from(spares: list[tuple[int, socket.socket]]) -> None:
    """Have multiprocessing hand what it spawns to the processes that wait, as long as there are some."""
    execute = multiprocessing.util.spawnv_passfds

    def spawn(path: bytes, command: Sequence[str], files: Sequence[int]) -> int:
        if not spares or command[-1] != "--multiprocessing-fork":
            return execute(path, command, files)
        numbers = [int(file) for file in files]
        message = {
            "command": [os.fsdecode(part) for part in command],
            "environment": dict(os.environ),
            "files": numbers,
        }
        process, work = spares.pop(0)
        with work:
            socket.send_fds(work, [json.dumps(message).encode()], numbers)
        return process

    multiprocessing.util.spawnv_passfds = spawn


def adopt(environment: dict[str, str]) -> None:
    """Have these environment variables and no others."""
    os.environ.clear()
    os.environ.update(environment)


def end_with_parent(number: int) -> None:
    """Have the kernel end this process when its parent dies (`prctl(2)`, Linux)."""
    with contextlib.suppress(OSError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


if __name__ == "__main__":
    main()
