"""Triton's interpreter, as the tests set it up, asserts that signed integers do not overflow."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction
from triton_cases import GPU

MOST, LEAST = 2**31 - 1, -(2**31)
pytestmark = [pytest.mark.skipif(GPU, reason="kernels run on the GPU"), pytest.mark.usefixtures("device")]


def compute(numbers, out, operation: tl.constexpr):
    first, second = tl.load(numbers), tl.load(numbers + 1)
    if operation == "add":
        tl.store(out, first + second)
    elif operation == "sub":
        tl.store(out, first - second)
    else:
        tl.store(out, first * second)


def result(operation: str, first: int, second: int) -> int:
    numbers, out = torch.tensor([first, second], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    InterpretedFunction(compute)[(1,)](numbers, out, operation=operation)
    return int(out)


@pytest.mark.parametrize(
    ("operation", "first", "second"), [("add", MOST, 1), ("sub", LEAST, 1), ("mul", 1 << 16, 1 << 15)]
)
def test_what_does_not_fit_is_an_error(operation: str, first: int, second: int) -> None:
    with pytest.raises(triton.runtime.errors.InterpreterError, match=f"overflow .* {operation}"):
        result(operation, first, second)


def test_unsigned_integers_wrap_around() -> None:
    numbers = torch.tensor([2**32 - 1, 3], dtype=torch.uint32)
    for operation, expected in (("add", 2), ("mul", 2**32 - 3)):
        out = torch.zeros(1, dtype=torch.uint32)
        InterpretedFunction(compute)[(1,)](numbers, out, operation=operation)
        assert int(out) == expected


def test_what_just_fits_is_computed() -> None:
    assert result("add", MOST - 1, 1) == MOST
    assert result("sub", LEAST + 1, 1) == LEAST
    assert result("mul", -(1 << 16), 1 << 15) == LEAST
