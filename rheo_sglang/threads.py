"""start_thread: a thread beside the scheduler whose end is told, whatever ended it."""

from __future__ import annotations

import threading
from collections.abc import Callable


def start_thread(name: str, run: Callable[[], None], died: Callable[[str], None]) -> threading.Thread:
    """Run something beside the scheduler for as long as the process lives, or until it returns.

    Parameters
    ----------
    name
        Of the thread.
    run
        What the thread does.
    died
        Called in the thread when ``run`` raised anything, with the exception in words: it turns the feature off, so
        that nobody waits for the thread any more, and logs why. The process goes on.

    Returns
    -------
    threading.Thread
        A daemon thread, started.
    """

    def guarded() -> None:
        try:
            run()
        except BaseException as error:
            died(in_words(error))

    thread = threading.Thread(target=guarded, name=name, daemon=True)
    thread.start()
    return thread


def in_words(error: BaseException) -> str:
    """Type and message of an exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
