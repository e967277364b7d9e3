"""Hook: a function that SGLang calls before, after, around or instead of one of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"


class Hook(NamedTuple):
    """One of them.

    Attributes
    ----------
    target
        Dotted name of SGLang's function.
    function
        ``BEFORE`` gets the target's arguments, ``AFTER`` its result and arguments, ``AROUND`` the target itself and its
        arguments, ``REPLACE`` its arguments.
    kind
        When it is called, as SGLang's ``HookType`` has it.
    """

    target: str
    function: Callable[..., Any]
    kind: Literal["BEFORE", "AFTER", "AROUND", "REPLACE"]
