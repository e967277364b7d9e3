"""Asks a running server for its rheo state, with one sentence for everything that can go wrong."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

BAD_ARGUMENT = 2
NOT_REACHED = 3
TIMED_OUT = 4
NOT_ALLOWED = 5
NOT_SGLANG = 6
NOT_RHEO = 7
SERVER_FAILED = 8


class ServerInfoError(Exception):
    """Why there is no state; ``status`` is the exit status that tells reasons apart."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add which server is asked, and how, to a command's arguments."""
    parser.add_argument("--url", default="http://127.0.0.1:30000", help="address of the server")
    parser.add_argument(
        "--api-key",
        help="the server's --api-key; by default OPENAI_API_KEY, else API_KEY, of the environment",
    )
    parser.add_argument("--timeout", type=seconds, default=30.0, help="seconds to wait for the server")


def seconds(text: str) -> float:
    """A time of the command line, up to a day."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not supported; allowed: seconds, up to 86400")
    return value


def ask(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """`fetch_internal_states` of the server that a command's arguments name."""
    key = arguments.api_key or os.environ.get("OPENAI_API_KEY") or os.environ.get("API_KEY")
    return fetch_internal_states(arguments.url, key, arguments.timeout)


def fetch_states(url: str, api_key: str | None = None, timeout: float = 30.0) -> list[dict[str, Any]]:
    """The ``rheo`` state of every scheduler of a server; see `fetch_internal_states`."""
    return [state["rheo"] for state in fetch_internal_states(url, api_key, timeout)]


def fetch_internal_states(
    url: str, api_key: str | None = None, timeout: float = 30.0
) -> list[dict[str, Any]]:
    """SGLang's internal state of every scheduler of a server that runs rheo, ``rheo``'s within it.

    Parameters
    ----------
    url
        Address, ``http://host:port`` or ``https://...``.
    api_key
        The server's ``--api-key``, sent as a bearer token.
    timeout
        Seconds to wait for the connection, and for each part of the answer.

    Raises
    ------
    ServerInfoError
        On a bad address or key, and where no server with the rheo backend answers.
    """
    body = _get(_request(url, api_key), url, api_key is not None, timeout)
    try:
        info = json.loads(body, parse_constant=lambda _: None)
    except ValueError:
        raise ServerInfoError(
            NOT_SGLANG, f"what answers at {url} is no SGLang server: its /server_info is not JSON"
        ) from None
    states = info.get("internal_states") if isinstance(info, dict) else None
    if not isinstance(states, list):
        raise ServerInfoError(
            NOT_SGLANG,
            f"what answers at {url} is no SGLang server: its /server_info has no 'internal_states'",
        )
    found = [state for state in states if isinstance(state, dict) and isinstance(state.get("rheo"), dict)]
    if not found:
        raise ServerInfoError(NOT_RHEO, f"the server at {url} does not run --attention-backend rheo")
    return found


def _request(url: str, api_key: str | None) -> urllib.request.Request:
    try:
        parts = urlsplit(url)
        well_formed = (
            bool(parts.hostname)
            and parts.port != 0
            and url.isascii()
            and url.isprintable()
            and " " not in url
        )
    except ValueError:
        well_formed = False
    if not well_formed or parts.scheme not in ("http", "https"):
        raise ServerInfoError(
            BAD_ARGUMENT, f"--url={url!r} is not supported; allowed: http://HOST:PORT or https://HOST:PORT"
        )
    request = urllib.request.Request(f"{url.rstrip('/')}/server_info")
    if api_key is not None:
        if not (api_key.isascii() and api_key.isprintable()):
            raise ServerInfoError(
                BAD_ARGUMENT, "the API key is not supported; allowed: printable ASCII characters"
            )
        request.add_unredirected_header("Authorization", f"Bearer {api_key}")
    return request


def _get(request: urllib.request.Request, url: str, has_key: bool, timeout: float) -> bytes:
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.read()
    except urllib.error.HTTPError as error:
        raise _http_error(error.code, url, has_key) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise ServerInfoError(
                TIMED_OUT, f"the server at {url} did not answer within {timeout:g} s (--timeout)"
            ) from None
        if isinstance(reason, ConnectionRefusedError):
            message = f"no server listens at {url} (connection refused)"
        elif isinstance(reason, socket.gaierror):
            message = f"the host of {url} is not known"
        elif isinstance(error, http.client.HTTPException):
            raise ServerInfoError(
                NOT_SGLANG, f"what answers at {url} is no SGLang server: it does not speak HTTP"
            ) from None
        else:
            message = f"no server can be reached at {url} ({reason})"
        raise ServerInfoError(NOT_REACHED, message) from None


def _http_error(code: int, url: str, has_key: bool) -> ServerInfoError:
    if code in (401, 403):
        reason = "does not accept this API key" if has_key else "asks for an API key: give --api-key"
        return ServerInfoError(NOT_ALLOWED, f"the server at {url} {reason} (HTTP {code})")
    if code == 404:
        return ServerInfoError(
            NOT_SGLANG, f"what answers at {url} is no SGLang server: it has no /server_info (HTTP 404)"
        )
    return ServerInfoError(SERVER_FAILED, f"the server at {url} could not answer /server_info (HTTP {code})")
