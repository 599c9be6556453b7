"""What `--sanitize` checks of interpreted kernels is found where it is wrong."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

import triton
import triton.language as tl
from kernel_sanitizer import sanitized
from triton.runtime import interpreter


@triton.jit
def _copy(x_ptr, y_ptr, n, read_from, write_to, apart, BLOCK: tl.constexpr):
    at = tl.program_id(0) * apart + tl.arange(0, BLOCK)
    tl.store(y_ptr + at + write_to, tl.load(x_ptr + at + read_from, mask=at < n), mask=at < n)


@triton.jit
def _product(out_ptr, factor):
    tl.store(out_ptr, tl.program_id(0) + factor * factor)


def copy(x: torch.Tensor, y: torch.Tensor, read_from: int = 0, write_to: int = 0, apart: int = 8) -> None:
    with sanitized():
        _copy[4,](x, y, 32, read_from, write_to, apart, BLOCK=8)


def test_a_copy_is_right() -> None:
    x = torch.arange(32.0)
    y = torch.zeros(33)
    copy(x, y[:32])
    assert torch.equal(y[:32], x)


@pytest.mark.parametrize("wrong", [{"read_from": 1}, {"read_from": -1}, {"write_to": 1}])
def test_an_address_outside_is_found(wrong: dict[str, int]) -> None:
    x, y = torch.zeros(34), torch.zeros(34)
    with pytest.raises(interpreter.InterpreterError, match="outside of its tensors"):
        copy(x[1:33], y[1:33], **wrong)


def test_two_programs_that_write_one_address_are_found() -> None:
    with pytest.raises(AssertionError, match="3 elements are written more than once"):
        copy(torch.zeros(32), torch.zeros(32), apart=7)


def test_a_program_that_reads_what_another_writes_is_found() -> None:
    x = torch.zeros(40)
    with pytest.raises(AssertionError, match="32 elements are written and read"):
        copy(x, x)
    with pytest.raises(AssertionError, match="24 elements are written and read"):
        copy(x, x[8:], read_from=0)


def test_integers_beyond_32_bits_are_found() -> None:
    out = torch.zeros(1, dtype=torch.int64)
    with sanitized():
        _product[1,](out, 46340)
    assert out.item() == 46340**2
    with sanitized(), pytest.raises(interpreter.InterpreterError, match="overflow"):
        _product[1,](out, 46341)
