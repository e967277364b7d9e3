"""What befalls threads: a disk without room, and their end from outside."""

from __future__ import annotations

import ctypes
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

WAIT_SECONDS = 30.0


@contextmanager
def full_disk(most_bytes: int = 4096) -> Iterator[None]:
    """Let no file of this process grow beyond some bytes: writing more is an OSError, as on a full disk."""
    before, writes = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # a cache that is cut off would break later imports
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sys.dont_write_bytecode = writes


def kill(thread: threading.Thread) -> None:
    """Have a thread end the next time it runs Python, wherever it is: it raises SystemExit there."""
    assert thread.ident is not None
    raised = ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
    )
    assert raised == 1, "the thread does not live"


def await_end(thread: threading.Thread) -> None:
    thread.join(WAIT_SECONDS)
    assert not thread.is_alive()


def await_that(condition: object) -> None:
    """Wait until a function returns something true."""
    assert callable(condition)
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
