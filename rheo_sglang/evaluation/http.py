"""ask: one HTTP request to a server, with one sentence for everything that can go wrong."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from typing import Any

import requests

NOT_THERE = (404, 405, 501)


def ask(
    address: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 1800.0,
) -> Any:
    """What a server answers, parsed as JSON: GET without a body, else POST.

    Parameters
    ----------
    address
        ``http://HOST:PORT`` or ``https://HOST:PORT``, without a trailing slash.
    path
        From the slash on.
    body
        Sent as JSON.
    headers
        Further ones.
    timeout
        Seconds to wait.

    Raises
    ------
    requests.RequestException
        If the server cannot be reached or refuses; its message is meant for the user.
    """
    method = "GET" if body is None else "POST"
    try:
        reply = requests.request(method, address + path, json=body, headers=headers, timeout=timeout)
    except requests.Timeout:
        raise requests.Timeout(f"the server at {address} did not answer within {timeout:g} s") from None
    except (requests.ConnectionError, ValueError) as error:
        raise requests.ConnectionError(_unreachable(address, error)) from None
    if not reply.ok:
        raise requests.HTTPError(_refusal(address, path, reply))
    try:
        return reply.json()
    except ValueError:
        raise requests.RequestException(
            f"what answers at {address} is no such server: its {path} is not JSON"
        ) from None


def _unreachable(address: str, error: Exception) -> str:
    """Why there was no answer. What `requests` finds wrong with an address is a ValueError, too."""
    causes = list(_causes(error))
    if any(isinstance(one, ConnectionRefusedError) for one in causes):
        return f"no server listens at {address} (connection refused)"
    if any(isinstance(one, socket.gaierror) for one in causes):
        return f"the host of {address} is not known"
    if isinstance(error, requests.ConnectionError):
        return f"the server at {address} ended the connection without an answer"
    return (
        f"{address!r} is not supported as a server's address; allowed: http://HOST:PORT or https://HOST:PORT"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised for and what it wraps."""
    seen: list[BaseException] = [error]
    for one in seen:
        yield one
        others = (one.__cause__, one.__context__, getattr(one, "reason", None), *one.args)
        seen += [other for other in others if isinstance(other, BaseException) and other not in seen]


def _refusal(address: str, path: str, reply: requests.Response) -> str:
    """What a server says that refuses: its own sentence where it has one."""
    if reply.status_code in (401, 403):
        return f"the server at {address} wants another API key (HTTP {reply.status_code}); give --api-key"
    if "json" not in reply.headers.get("Content-Type", ""):
        if reply.status_code in NOT_THERE:
            return f"what answers at {address} is no such server: {path} gave HTTP {reply.status_code}"
        return f"the server at {address} could not answer {path} (HTTP {reply.status_code})"
    return f"{address}{path} answered {reply.status_code}: {reply.text[:300]}"
