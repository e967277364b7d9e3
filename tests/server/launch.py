"""RheoServer: a real server with the rheo backend on a test model, as a context manager."""

import contextlib
import functools
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from preloaded import PreloadedSGLang

from common.checkpoints import MODELS
from common.sglang_server import CPU_ENVIRONMENT, SGLangServer

TRITON_FREE_SINCE = (0, 5, 23)
END_TIMEOUT = 5.0
"""Seconds for the processes of a server that was killed."""


class RheoServer(SGLangServer):
    """A server on the CPU with the arguments that tests vary.

    Parameters
    ----------
    model : str
        Name of a checkpoint that the test command makes, for example `tiny-llama-group4`.
    log : Path
        File for the server's output.
    rheo_config : mapping, optional
        Contents of `--rheo-config`; the defaults when omitted. Only for the rheo backend.
    backend : str
        Attention backend; another one than `rheo` serves as a reference.
    page_size : int, optional
        Tokens of a page; the backend's default when omitted.
    max_running_requests : int
        Most requests decoded together.
    arguments : sequence of str
        Further command line arguments.
    environment : mapping, optional
        Further environment variables.
    ranks : int
        Ranks of tensor parallelism. SGLang wants to be told the cores of each where a machine has fewer NUMA nodes.
    fresh : bool
        Whether its processes are new interpreters, as a user's are. Else they are forked with SGLang imported, which
        takes a fifth of the time (preload_main.py); what SGLang reads from the environment as it is imported, it has
        read by then.
    """

    def __init__(
        self,
        model: str,
        log: Path,
        *,
        rheo_config: Mapping[str, Any] | None = None,
        backend: str = "rheo",
        page_size: int | None = None,
        max_running_requests: int = 8,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        ranks: int = 1,
        fresh: bool = False,
    ) -> None:
        line = ["--attention-backend", backend, "--max-running-requests", str(max_running_requests)]
        if rheo_config is not None:
            line += ["--rheo-config", json.dumps(rheo_config)]
        if page_size is not None:
            line += ["--page-size", str(page_size)]
        variables = dict(environment or {})
        if backend != "rheo" and self.needs_triton_interpreter():
            variables["TRITON_INTERPRET"] = "1"
        if ranks > 1:
            line += ["--tp-size", str(ranks)]
            cores = sorted(os.sched_getaffinity(0))
            variables["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(
                str(cores[rank % len(cores)]) for rank in range(ranks)
            )
        super().__init__(MODELS / model, [*line, *arguments], log, environment=variables)
        self.fresh = fresh

    def start(self) -> None:
        """Start its processes; `wait_ready` says when it serves."""
        if self.fresh:
            super().start()
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        arguments = self.command[self.command.index("--model-path") :]
        self.process = preloaded_sglang().launch(arguments, self.environment, self.log)

    @staticmethod
    def needs_triton_interpreter() -> bool:
        """Whether this SGLang's own paged allocator runs Triton kernels on the CPU."""
        installed = tuple(int(part) for part in version("sglang").split(".")[:3])
        return installed < TRITON_FREE_SINCE

    def stop(self) -> None:
        """End it by force: asked to, which test_faults does, SGLang takes five seconds.

        Its other processes end with the main one; the last, after it has removed what they shared.
        """
        if self.process is not None and self.running:
            os.kill(self.process.pid, signal.SIGKILL)
            deadline = time.monotonic() + END_TIMEOUT
            with contextlib.suppress(ProcessLookupError):
                while time.monotonic() < deadline:
                    os.killpg(self.process.pid, 0)
                    time.sleep(0.02)
        super().stop()

    def rheo_state(self) -> dict[str, Any]:
        """The plugin's part of `server_info`: `config`, `counters`, `recorder` and `prefixes`."""
        (state,) = self.server_info()["internal_states"]
        return state["rheo"]

    def counters(self) -> dict[str, int]:
        """Pages, frames and requests in use."""
        return self.rheo_state()["counters"]


@functools.cache
def preloaded_sglang() -> PreloadedSGLang:
    """The process that this one's servers are forked from."""
    environment = {**os.environ, **CPU_ENVIRONMENT}
    if RheoServer.needs_triton_interpreter():
        environment["TRITON_INTERPRET"] = "1"
    return PreloadedSGLang(environment)
