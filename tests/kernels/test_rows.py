"""Sums that travel together between warps: each equals the sum of its own tile, as exactly as if it were alone."""

# pyright: reportArgumentType=false
# Constexprs take plain values.

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    DEVICE = "cpu"
elif torch.cuda.is_available():
    DEVICE = "cuda"
else:
    pytest.skip("needs TRITON_INTERPRET=1, or a GPU", allow_module_level=True)

import triton
import triton.language as tl

from torch_jvpvjp.triton_kernels._launch import launch
from torch_jvpvjp.triton_kernels._rows import column_sums, four_row_sums, load_tile, row_sums
from torch_jvpvjp.triton_kernels.group_norm._tiles import tile_sums


@triton.jit
def _sums_kernel(x_ptr, rows_ptr, columns_ptr, all_ptr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """rows[0..5] are sums along rows of x[0], ..., columns[0..1] along columns, all[0..1] of all."""
    row = tl.arange(0, BLOCK_M)[:, None]
    col = tl.arange(0, BLOCK_N)[None, :]
    at = x_ptr + row * BLOCK_N + col
    a = load_tile(at, col < BLOCK_N, tl.float32)
    b = load_tile(at + BLOCK_M * BLOCK_N, col < BLOCK_N, tl.float32)
    c = load_tile(at + 2 * BLOCK_M * BLOCK_N, col < BLOCK_N, tl.float32)
    d = load_tile(at + 3 * BLOCK_M * BLOCK_N, col < BLOCK_N, tl.float32)
    sum_a, sum_b = row_sums(a, b)
    tl.store(rows_ptr + row, sum_a)
    tl.store(rows_ptr + BLOCK_M + row, sum_b)
    sum_a, sum_b, sum_c, sum_d = four_row_sums(a, b, c, d)
    tl.store(rows_ptr + 2 * BLOCK_M + row, sum_a)
    tl.store(rows_ptr + 3 * BLOCK_M + row, sum_b)
    tl.store(rows_ptr + 4 * BLOCK_M + row, sum_c)
    tl.store(rows_ptr + 5 * BLOCK_M + row, sum_d)
    first, second = column_sums(a, b)
    tl.store(columns_ptr + col, first)
    tl.store(columns_ptr + BLOCK_N + col, second)
    total, other = tile_sums(a, b)
    tl.store(all_ptr, total)
    tl.store(all_ptr + 1, other)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 2048), (2, 512), (16, 8), (64, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_sum_is_that_of_its_tile(m: int, n: int, dtype: torch.dtype) -> None:
    numbers = torch.arange(4 * m * n, device=DEVICE) * 37 % 101 - 50  # integers, whose sums are exact
    x = numbers.to(dtype).view(4, m, n)
    rows, columns, everything = (torch.empty(shape, device=DEVICE) for shape in ((6, m), (2, n), (2,)))
    launch(_sums_kernel, 1, x, x, rows, columns, everything, BLOCK_M=m, BLOCK_N=n)
    exact = x.float()
    assert torch.equal(rows, exact.sum(2)[[0, 1, 0, 1, 2, 3]])
    assert torch.equal(columns, exact.sum(1)[:2])
    assert torch.equal(everything, exact.sum((1, 2))[:2])


@triton.jit
def _widen_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr + at, load_tile(x_ptr + at, at < BLOCK, tl.float32))


def test_bfloat16_is_widened_whatever_its_bits() -> None:
    x = torch.arange(2**16, dtype=torch.int32, device=DEVICE).to(torch.int16).view(torch.bfloat16)
    out = torch.empty(2**16, device=DEVICE)
    launch(_widen_kernel, 1, x, x, out, BLOCK=2**16)
    torch.testing.assert_close(out, x.float(), rtol=0, atol=0, equal_nan=True)  # infinities, subnormals and NaN too
