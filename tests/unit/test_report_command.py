"""`rheo report` against real HTTP servers: one sentence and one exit status for everything that can go wrong."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rheo_sglang import server_info
from rheo_sglang.cli import CLOSED_PIPE, main

KEY = "secret-key"
STATE = {
    "config": {"policy": "lru"},
    "counters": {"frames_used": 12},
    "recorder": None,
    "misses": None,
    "prefixes": [],
    "not_finite": 0,
}
GOOD = json.dumps({"internal_states": [{"load": 1, "rheo": STATE}]})


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "API_KEY"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def http_server(body: str | bytes, status: int = 200, key: str | None = None) -> Iterator[str]:
    """Address of a server that answers /server_info with ``body``, to those who know ``key``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = status
            if self.path != "/server_info":
                answer = 404
            elif key is not None and self.headers.get("Authorization") != f"Bearer {key}":
                answer = 401
            self.send_response(answer)
            self.end_headers()
            self.wfile.write(body.encode() if isinstance(body, str) else body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def tcp_server(answer: bytes | None) -> Iterator[str]:
    """Address of something that accepts connections and sends ``answer``, or nothing for as long as it lives."""
    listener = socket.create_server(("127.0.0.1", 0))
    accepted: list[socket.socket] = []

    def serve() -> None:
        connection, _ = listener.accept()
        accepted.append(connection)
        if answer is not None:
            connection.recv(65536)
            connection.sendall(answer)
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for connection in (*accepted, listener):
            connection.close()


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def rheo(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run ``rheo report``: exit status, output, errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["report", *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def assert_one_sentence(result: tuple[int, str, str], status: int, *said: str) -> None:
    got, out, err = result
    assert out == ""
    assert err.startswith("rheo report: error: ") and err.count("\n") == 1
    for part in said:
        assert part in err
    assert got == status


def test_the_tables_and_the_json_of_a_server_are_printed(rheo: Command) -> None:
    with http_server(GOOD) as url:
        status, out, err = rheo("--url", url)
        assert (status, err) == (0, "")
        assert "frames used" in out
        status, out, err = rheo("--url", f"{url}/", "--json")
        assert (status, err) == (0, "")
        assert json.loads(out) == [STATE]


def test_a_number_that_is_not_json_is_null(rheo: Command) -> None:
    with http_server(GOOD.replace("12", "NaN")) as url:
        status, out, _ = rheo("--url", url, "--json")
    assert status == 0
    assert json.loads(out)[0]["counters"] == {"frames_used": None}


@pytest.mark.parametrize(
    "url",
    [
        "localhost:30000",
        "127.0.0.1:30000",
        "localhost",
        "",
        "http://",
        "http://:30000",
        "ftp://localhost:30000",
        "file:///etc/passwd",
        "http://localhost:port",
        "http://localhost:99999",
        "http://localhost:30000/ x",
        "http://local\nhost:30000",
        "http://[::1:30000",
        "[/x]",
    ],
)
def test_an_address_that_is_none(rheo: Command, url: str) -> None:
    assert_one_sentence(rheo("--url", url), server_info.BAD_ARGUMENT, "--url=", "allowed: http://HOST:PORT")


def test_a_refused_connection(rheo: Command) -> None:
    url = closed_port()
    assert_one_sentence(rheo("--url", url), server_info.NOT_REACHED, url, "connection refused")


def test_a_host_that_is_not_known(rheo: Command) -> None:
    url = "http://no-such-host.invalid:30000"
    assert_one_sentence(rheo("--url", url), server_info.NOT_REACHED, url, "is not known")


def test_a_server_that_does_not_answer(rheo: Command) -> None:
    with tcp_server(None) as url:
        result = rheo("--url", url, "--timeout", "0.2")
    assert_one_sentence(result, server_info.TIMED_OUT, url, "within 0.2 s (--timeout)")


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_out_that_is_none(rheo: Command, timeout: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        rheo(f"--timeout={timeout}")
    assert exit_.value.code == server_info.BAD_ARGUMENT
    assert "--timeout" in capsys.readouterr().err


def test_a_server_that_asks_for_a_key(rheo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with http_server(GOOD, key=KEY) as url:
        assert_one_sentence(rheo("--url", url), server_info.NOT_ALLOWED, url, "give --api-key", "401")
        wrong = rheo("--url", url, "--api-key", "another")
        assert_one_sentence(wrong, server_info.NOT_ALLOWED, url, "does not accept this API key")
        assert "another" not in wrong[2]
        assert rheo("--url", url, "--api-key", KEY)[0] == 0
        monkeypatch.setenv("API_KEY", KEY)
        assert rheo("--url", url)[0] == 0
        monkeypatch.setenv("OPENAI_API_KEY", "another")
        assert rheo("--url", url)[0] == server_info.NOT_ALLOWED
        assert rheo("--url", url, "--api-key", KEY)[0] == 0


@pytest.mark.parametrize("key", ["a\nb", "schlüssel", "\u2028"])
def test_a_key_that_no_header_can_hold(rheo: Command, key: str) -> None:
    result = rheo("--url", closed_port(), "--api-key", key)
    assert_one_sentence(result, server_info.BAD_ARGUMENT, "API key", "printable ASCII")
    assert key not in result[2]


@pytest.mark.parametrize(
    "body", ["<html>hello</html>", "", "{", b"\xff\xfe", "[]", "3", "null", "{}", '{"internal_states": 3}']
)
def test_an_answer_that_is_not_sglangs(rheo: Command, body: str | bytes) -> None:
    with http_server(body) as url:
        assert_one_sentence(rheo("--url", url), server_info.NOT_SGLANG, url, "is no SGLang server")


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"]
)
def test_something_that_does_not_speak_http(rheo: Command, answer: bytes) -> None:
    with tcp_server(answer) as url:
        assert_one_sentence(rheo("--url", url), server_info.NOT_SGLANG, url, "does not speak HTTP")


def test_a_server_of_something_else(rheo: Command) -> None:
    with http_server("not found", status=404) as url:
        assert_one_sentence(rheo("--url", url), server_info.NOT_SGLANG, url, "no /server_info (HTTP 404)")


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_fails(rheo: Command, status: int) -> None:
    with http_server("Internal Server Error", status=status) as url:
        result = rheo("--url", url)
    assert_one_sentence(result, server_info.SERVER_FAILED, url, f"HTTP {status}")


@pytest.mark.parametrize("states", [[], [{"load": 1}], [{"rheo": None}], [3]])
def test_a_server_with_another_backend(rheo: Command, states: list) -> None:
    with http_server(json.dumps({"internal_states": states})) as url:
        assert_one_sentence(rheo("--url", url), server_info.NOT_RHEO, url, "--attention-backend rheo")


def test_statuses_tell_reasons_apart() -> None:
    names = (
        "BAD_ARGUMENT",
        "NOT_REACHED",
        "TIMED_OUT",
        "NOT_ALLOWED",
        "NOT_SGLANG",
        "NOT_RHEO",
        "SERVER_FAILED",
    )
    statuses = {getattr(server_info, name) for name in names}
    assert len(statuses) == len(names) and not statuses & {0, 1, CLOSED_PIPE}


@pytest.mark.parametrize("form", [["--json"], []])
def test_a_reader_that_leaves_early_ends_the_command_quietly(form: list[str]) -> None:
    """As in ``rheo report --json | head``: more than a pipe holds, and a reader of one line."""
    state = {**STATE, "counters": {f"counter {number}": number for number in range(5000)}}
    with http_server(json.dumps({"internal_states": [{"rheo": state}]})) as url:
        process = subprocess.Popen(
            [sys.executable, "-m", "rheo_sglang.cli", "report", "--url", url, *form],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ,
        )
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        process.stderr.close()
        assert process.wait() == CLOSED_PIPE
    assert errors == b""
