"""A linear layer's epilogue: z = p + b, y = f(z), ẏ = f′(z) (ṗ + ḃ)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dtypes import accumulator
from .._jets import jet
from .._launch import launch
from .._layout import group_count, group_stride, unit_columns
from .._rows import column_numbers, load_tile, load_weight, row_numbers

_BLOCK_N = 256
_TILE = 1024  # elements: eight a thread of four warps, four in float64


@triton.jit(do_not_specialize=["tangents", "rows", "row_blocks", "column_blocks"])
def _epilogue_kernel(
    p_ptr,  # (groups, rows, n), contiguous rows
    p_dot_ptr,  # (groups·tangents, rows, n), contiguous rows
    b_ptr,  # (groups, n) or None
    b_dot_ptr,  # (groups·tangents, n) or None
    y_ptr,  # (groups, rows, n), contiguous, like z
    y_dot_ptr,  # (groups·tangents, rows, n), contiguous
    z_ptr,  # or None
    tangents,
    rows,
    n,
    row_blocks,
    column_blocks,
    p_group,
    p_dot_group,
    b_group,
    b_dot_group,
    FUNCTION: tl.constexpr,
    MANY: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Value and tangents: z = p + b, y = f(z), ẏ = f′(z) (ṗ + ḃ).

    One program: a tile of one group and, if MANY, of all tangents, which share the group. Moves (2 + 2·tangents)·size
    bytes an element of p, and size more with z.
    """
    program = tl.program_id(0)
    column_block = program % column_blocks
    rest = program // column_blocks
    row_block = rest % row_blocks
    group = (rest // row_blocks).to(tl.int64)
    row = row_numbers(row_block.to(tl.int64) * BLOCK_M, BLOCK_M)
    col = column_numbers(column_block * BLOCK_N, BLOCK_N)
    inside = (row < rows) & (col < n)
    offset = row * n + col
    z = load_tile(p_ptr + group * p_group + offset, inside, ACC)
    if b_ptr is not None:
        z += load_weight(b_ptr, group * b_group, col, n, 0.0, ACC)
    f, f1, _, _ = jet(z, 1.0, 20.0, FUNCTION, p_ptr.dtype.element_ty.primitive_bitwidth == 16)
    out = group * rows * n + offset
    tl.store(y_ptr + out, f.to(y_ptr.dtype.element_ty), mask=inside)
    if z_ptr is not None:
        tl.store(z_ptr + out, z.to(z_ptr.dtype.element_ty), mask=inside)
    for t in range(0, tangents if MANY else 1):
        k = group + t
        z_dot = load_tile(p_dot_ptr + k * p_dot_group + offset, inside, ACC)
        if b_dot_ptr is not None:
            z_dot += load_weight(b_dot_ptr, k * b_dot_group, col, n, 0.0, ACC)
        tl.store(y_dot_ptr + k * rows * n + offset, (f1 * z_dot).to(y_dot_ptr.dtype.element_ty), mask=inside)


def linear_epilogue(
    function: str,
    p: Tensor,
    p_dot: Tensor,
    bias: Tensor | None,
    bias_dot: Tensor | None,
    *,
    wants_z: bool,
    block_limit: int | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute z = p + b, y = f(z) and ẏ = f′(z) (ṗ + ḃ), one launch.

    Args:
        function: Name of f in `_jets.jet`.
        p: (K or 1, M, N), its rows contiguous.
        p_dot: (K or 1, M, N), its rows contiguous.
        bias: (K or 1, N), or None for zero.
        bias_dot: (K or 1, N), or None for zero.
        wants_z: Whether z is wanted.
        block_limit: Longest tile of a row, for tests.

    Returns:
        y, (K, M, N), or (1, M, N) where p and bias have one group; ẏ, (K, M, N); z like y, or None. Contiguous, in the
        dtype of p.
    """
    _, rows, n = p.shape
    groups = group_count(p, p_dot, bias, bias_dot)
    p, p_dot = _rows_contiguous(p), _rows_contiguous(p_dot)
    bias, bias_dot = unit_columns(bias), unit_columns(bias_dot)
    shared = group_stride(p) == 0 and group_stride(bias) == 0
    own = 1 if shared else groups
    y = torch.empty((own, rows, n), dtype=p.dtype, device=p.device)
    z = torch.empty_like(y) if wants_z else None
    y_dot = torch.empty((groups, rows, n), dtype=p.dtype, device=p.device)
    if own * rows * n == 0:
        return y, y_dot, z
    many = shared and groups > 1
    block_n = min(_BLOCK_N if block_limit is None else block_limit, 1 << max(0, n - 1).bit_length())
    block_m = max(1, _TILE // (2 if p.element_size() == 8 else 1) // block_n)
    row_blocks, column_blocks = -(-rows // block_m), -(-n // block_n)
    launch(
        _epilogue_kernel,
        own * row_blocks * column_blocks,
        p,
        p,
        p_dot,
        bias,
        bias_dot,
        y,
        y_dot,
        z,
        groups,
        rows,
        n,
        row_blocks,
        column_blocks,
        group_stride(p),
        group_stride(p_dot),
        group_stride(bias),
        group_stride(bias_dot),
        FUNCTION=function,
        MANY=many,
        ACC=accumulator(p.dtype),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=4,
        num_stages=1,
        enable_fp_fusion=True,
    )
    return y, y_dot, z


def _rows_contiguous(tensor: Tensor) -> Tensor:
    """The tensor, copied only if its rows do not follow one another."""
    return tensor if tensor.shape[0] == 0 or tensor[0].is_contiguous() else tensor.contiguous()
