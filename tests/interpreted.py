"""How Triton's interpreter runs the project's kernels: few programs, and the language is patched once a launch."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import pytest

PROGRAMS = 16
"""Programs that fill the interpreter: each is run after the other."""


def interpret_kernels() -> None:
    """Define the project's kernels such that the interpreter runs them; they must not have been imported before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("rheo_kernels.triton")
        importlib.import_module("rheo_sglang.selection")
    for module in ("partial", "tail", "page_mass"):
        importlib.import_module(f"rheo_kernels.triton.{module}").PROGRAMS = PROGRAMS
    importlib.import_module("rheo_kernels.triton.fetch").FETCHERS = PROGRAMS
    importlib.import_module("triton.runtime.interpreter").InterpretedFunction.__call__ = _call_in_a_kernel


def _call_in_a_kernel(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a device function. The interpreter's own way patches the language before every call, which takes a third of
    the time of these tests; a launch has patched what kernels see of it, and the rest stays patched once it is.
    """
    import triton.language as tl

    if function.fn.__globals__.get("core") is tl.core:
        _patch_core()
    return function.rewrite()(*args, **kwargs)


@functools.cache
def _patch_core() -> None:
    """Patch `triton.language.core`, which functions of the language itself see."""
    import triton.language as tl

    importlib.import_module("triton.runtime.interpreter")._patch_lang(tl.standard.sum.fn)
