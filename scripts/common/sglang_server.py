"""A real SGLang server as a child process: start on a free loopback port, wait, talk HTTP, stop.

Used by the demo and by the server tests. The server runs in its own process group, so that stopping it also
stops its scheduler and detokenizer processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import requests

CPU_ARGUMENTS = ("--device", "cpu", "--dtype", "float32", "--skip-server-warmup")
CPU_ENVIRONMENT = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONDONTWRITEBYTECODE": "",
}
READY_TIMEOUT = 600.0
GPU_READY_TIMEOUT = 240.0
STOP_TIMEOUT = 15.0
TAIL_LINES = 40
PR_SET_PDEATHSIG = 1


class ServerError(RuntimeError):
    """The server did not start or did not answer; the message ends with the last lines of its log."""


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def end_with_parent() -> None:
    """Have the kernel end this process when its parent dies without stopping it (`prctl(2)`, Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class SGLangServer:
    """One server process and a client for it; a context manager that stops the process at the end.

    Parameters
    ----------
    model : Path
        Checkpoint directory.
    arguments : sequence of str
        Command line arguments beyond the model, the address and, unless on a GPU, `CPU_ARGUMENTS`.
    log : Path
        File that receives the server's standard output and error.
    port : int, optional
        TCP port on 127.0.0.1; a free one when omitted.
    environment : mapping, optional
        Environment variables added to this process's own and, unless on a GPU, to `CPU_ENVIRONMENT`.
    gpu : bool
        Whether it runs on a GPU.

    Attributes
    ----------
    base_url : str
        Address without a trailing slash.
    """

    def __init__(
        self,
        model: Path,
        arguments: Sequence[str],
        log: Path,
        port: int | None = None,
        environment: Mapping[str, str] | None = None,
        gpu: bool = False,
    ) -> None:
        self.model = model
        self.port = port or free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self.command = [
            *(sys.executable, "-m", "sglang.launch_server", "--model-path", str(model)),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *(() if gpu else CPU_ARGUMENTS),
            *arguments,
        ]
        self.environment = {**os.environ, **({} if gpu else CPU_ENVIRONMENT), **(environment or {})}
        self.ready_timeout = GPU_READY_TIMEOUT if gpu else READY_TIMEOUT
        self.process: subprocess.Popen | None = None
        self.session = requests.Session()
        self.session.trust_env = False

    def __enter__(self) -> SGLangServer:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process; `wait_ready` says when it serves."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "wb") as output:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    def wait_ready(self, timeout: float | None = None, on_wait: Callable[[], None] | None = None) -> None:
        """Wait until the server answers its health check.

        Parameters
        ----------
        timeout : float, optional
            Seconds; `GPU_READY_TIMEOUT` or `READY_TIMEOUT` when omitted.
        on_wait : callable, optional
            Called about four times a second, for a progress display.

        Raises
        ------
        ServerError
            If the process ends or the time runs out; the message carries the end of the log.
        """
        timeout = self.ready_timeout if timeout is None else timeout
        deadline = time.monotonic() + timeout
        while not self._healthy():
            if not self.running:
                raise self._failure("The server stopped while it was starting.")
            if time.monotonic() > deadline:
                raise self._failure(f"The server did not answer within {timeout:.0f} s.")
            if on_wait is not None:
                on_wait()
            time.sleep(0.25)

    @property
    def running(self) -> bool:
        """Whether the process has been started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """End the whole process group: politely, then by force."""
        if self.process is None:
            return
        self._signal(signal.SIGTERM)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT)
        finally:
            self._signal(signal.SIGKILL)
            self.process.wait()
            self.session.close()

    def log_tail(self, lines: int = TAIL_LINES) -> str:
        """The last lines of the log that are not blank."""
        if not self.log.exists():
            return ""
        written = self.log.read_text(errors="replace").splitlines()
        return "\n".join([line for line in written if line.strip()][-lines:])

    def generate(
        self,
        prompt: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
        max_new_tokens: int = 32,
        timeout: float = 300.0,
        **options: Any,
    ) -> Any:
        """Complete a prompt greedily, or with the given sampling, over `POST /generate`.

        Parameters
        ----------
        prompt : str, token ids, or a list of either
            One prompt or a batch.
        max_new_tokens : int
            Most tokens to generate.
        timeout : float
            Seconds to wait for the answer.
        **options
            Entries of `sampling_params`, for example `ignore_eos=True`; `request` is a dict of further
            fields of the request itself.

        Returns
        -------
        dict or list of dict
            The server's answer, with `text`, `output_ids` and `meta_info`.

        Raises
        ------
        requests.HTTPError
            If the server refuses the request; the message holds its reason.
        """
        body = self._generate_body(prompt, max_new_tokens, options)
        return self._checked(
            self.session.post(self.base_url + "/generate", json=body, timeout=timeout)
        ).json()

    def stream(
        self, prompt: str | Sequence[int], max_new_tokens: int = 32, timeout: float = 300.0, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """Like `generate` for one prompt, yielding the cumulative answer each time it has grown."""
        body = self._generate_body(prompt, max_new_tokens, options) | {"stream": True}
        url = self.base_url + "/generate"
        with self._checked(self.session.post(url, json=body, timeout=timeout, stream=True)) as response:
            for line in response.iter_lines():
                if not line.startswith(b"data:"):
                    continue
                event = line.removeprefix(b"data:").strip()
                if event == b"[DONE]":
                    return
                answer = json.loads(event)
                if "error" in answer:
                    raise ServerError(f"The server refused the request: {answer['error']}")
                yield answer

    def flush_cache(self, timeout: float = 30.0) -> None:
        """Empty the radix cache; waits up to `timeout` seconds for running requests to finish."""
        url = f"{self.base_url}/flush_cache"
        self._checked(self.session.post(url, params={"timeout": timeout}, timeout=timeout + 30))

    def server_info(self) -> dict[str, Any]:
        """The server's arguments and internal states, `GET /server_info`."""
        return self._checked(self.session.get(self.base_url + "/server_info", timeout=60)).json()

    @staticmethod
    def _generate_body(prompt: Any, max_new_tokens: int, options: dict[str, Any]) -> dict[str, Any]:
        first = prompt if isinstance(prompt, str) else prompt[0]
        is_text = isinstance(first, str)
        request = options.pop("request", {})
        sampling = {"temperature": 0.0, "max_new_tokens": max_new_tokens, **options}
        return {"text" if is_text else "input_ids": prompt, "sampling_params": sampling, **request}

    @staticmethod
    def _checked(response: requests.Response) -> requests.Response:
        if response.ok:
            return response
        raise requests.HTTPError(f"HTTP {response.status_code}: {response.text.strip()}", response=response)

    def _healthy(self) -> bool:
        try:
            return self.session.get(self.base_url + "/health", timeout=5).status_code == requests.codes.ok
        except requests.RequestException:
            return False

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _failure(self, sentence: str) -> ServerError:
        return ServerError(f"{sentence} Last lines of {self.log}:\n{self.log_tail()}")
