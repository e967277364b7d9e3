"""RheoServer: a real server with the rheo backend on a test model, as a context manager."""

import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.checkpoints import MODELS
from common.sglang_server import SGLangServer

TRITON_FREE_SINCE = (0, 5, 23)


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

    @staticmethod
    def needs_triton_interpreter() -> bool:
        """Whether this SGLang's own paged allocator runs Triton kernels on the CPU."""
        installed = tuple(int(part) for part in version("sglang").split(".")[:3])
        return installed < TRITON_FREE_SINCE

    def rheo_state(self) -> dict[str, Any]:
        """The plugin's part of `server_info`: `config`, `counters`, `recorder` and `prefixes`."""
        (state,) = self.server_info()["internal_states"]
        return state["rheo"]

    def counters(self) -> dict[str, int]:
        """Pages, frames and requests in use."""
        return self.rheo_state()["counters"]
