"""How Triton's interpreter runs the project's kernels: few programs, and the language is patched once a launch."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy
import pytest

PROGRAMS = 16
"""Programs that fill the interpreter: each is run after the other."""
OPERATIONS = {"add": numpy.add, "sub": numpy.subtract, "mul": numpy.multiply}
"""What the interpreter checks for overflow."""


def interpret_kernels() -> None:
    """Define the project's kernels such that the interpreter runs them; they must not have been imported before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("rheo_kernels.triton")
        importlib.import_module("rheo_sglang.selection")
    for module in ("partial", "tail", "page_mass"):
        importlib.import_module(f"rheo_kernels.triton.{module}").PROGRAMS = PROGRAMS
    importlib.import_module("rheo_kernels.triton.fetch").FETCHERS = PROGRAMS
    interpreter = importlib.import_module("triton.runtime.interpreter")
    interpreter.InterpretedFunction.__call__ = _call_in_a_kernel
    semantic = interpreter.interpreter_semantic
    semantic.binary_op_sanitize_overflow_impl = _check_overflow
    semantic.broadcast_impl_value = _broadcast_only_what_differs(semantic.broadcast_impl_value)
    _remember_types(interpreter)


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


def _check_overflow(left: Any, right: Any, operation: Callable[..., Any]) -> None:
    """Assert that a sum, difference or product of signed integers fits into their type; unsigned ones may wrap around.

    The interpreter computes the same with ten operations of the language, for each that a kernel has.
    """
    kind = left.type.scalar
    if kind.int_bitwidth >= 64 or not kind.is_int_signed():
        return
    numbers = (operand.handle.data.astype(numpy.int64) for operand in (left, right))
    found = OPERATIONS[operation.__name__](*numbers)
    fits = (found >= kind.get_int_min_value()) & (found <= kind.get_int_max_value())
    assert fits.all(), f"int{kind.int_bitwidth} overflow detected for operation {operation.__name__}"


def _broadcast_only_what_differs(broadcast: Callable[..., Any]) -> Callable[..., Any]:
    """The interpreter's broadcast of two operands, for operands that have one shape a comparison of two lists."""

    def of_two(left: Any, right: Any) -> tuple[Any, Any]:
        one, other = left.type, right.type
        if one.is_block() and other.is_block() and one.shape.values == other.shape.values:
            return left, right
        return broadcast(left, right)

    return of_two


def _remember_types(interpreter: Any) -> None:
    """Build what describes a type once, and not for every tensor of it."""
    import triton.language.core as core

    numpy_types: dict[Any, Any] = {}
    find = interpreter._get_np_dtype

    def find_once(kind: Any) -> Any:
        name = str(kind)
        if name not in numpy_types:
            numpy_types[name] = find(kind)
        return numpy_types[name]

    interpreter._get_np_dtype = find_once
    blocks: dict[Any, dict[str, Any]] = {}
    describe = core.block_type.__init__

    def describe_once(block: Any, element: Any, shape: Any) -> None:
        pointer = getattr(element, "const", None), getattr(element, "address_space", None)
        key = element.name, pointer, tuple(shape)
        if key not in blocks:
            describe(block, element, shape)
            blocks[key] = dict(block.__dict__)
        block.__dict__.update(blocks[key])

    core.block_type.__init__ = describe_once
    shapes: dict[Any, tuple[Any, Any]] = {}
    begin = core.tensor.__init__

    def begin_once(tensor: Any, handle: Any, kind: Any) -> None:
        shape = tuple(kind.shape.values) if kind.is_block() else ()
        if shape not in shapes:
            begin(tensor, handle, kind)
            shapes[shape] = tensor.shape, tensor.numel
        tensor.handle, tensor.type, tensor.dtype = handle, kind, kind.scalar
        tensor.shape, tensor.numel = shapes[shape]

    core.tensor.__init__ = begin_once
    plain = {int, bool, float, str, type(None), core.dtype, core.pointer_type, core.block_type, core.tensor}
    unwrap = core._unwrap_if_constexpr
    core._unwrap_if_constexpr = lambda value: value if type(value) in plain else unwrap(value)
