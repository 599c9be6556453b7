"""The second half of a deterministic sum over rows: add the programs' partial sums in a fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import launch

_BLOCK_P = 128
_BLOCK_N = 32


@triton.jit(do_not_specialize=["parts", "column_blocks"])
def _sum_partials_kernel(
    partial_ptr,  # (groups, parts, n), float32 or float64
    out_ptr,  # (groups, n)
    parts,
    n,
    column_blocks,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add partial sums: out[g, j] = Σ_p partial[g, p, j].

    One program: BLOCK_N columns of one group. Moves parts·n·4 + n·size bytes a group.
    """
    program = tl.program_id(0)
    group = (program // column_blocks).to(tl.int64)
    cols = (program % column_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    total = tl.zeros([BLOCK_P, BLOCK_N], partial_ptr.dtype.element_ty)
    for start in range(0, parts, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)[:, None]
        offsets = (group * parts + part) * n + cols
        total += tl.load(partial_ptr + offsets, mask=(part < parts) & (cols < n), other=0.0)
    out = tl.sum(total, axis=0, keep_dims=True)
    if out_ptr.dtype.element_ty == tl.bfloat16:
        out = out.to(tl.float32)  # the interpreter cannot round float64 to bfloat16
    tl.store(out_ptr + group * n + cols, out.to(out_ptr.dtype.element_ty), mask=cols < n)


def partial_sums(groups: int, parts: int, out: Tensor, accumulate: torch.dtype) -> Tensor:
    """Buffer for the partial sums of `groups` times `parts` programs; `out` itself if one program writes each sum.

    Args:
        groups: Groups of the kernel's grid.
        parts: Programs per group.
        out: Where the sum goes, (groups or 1, n); one group sums over all programs.
        accumulate: Dtype of partial sums.

    Returns:
        A tensor of groups·parts rows of n elements.
    """
    if groups * parts == out.shape[0]:
        return out
    return torch.empty((groups * parts, out.shape[1]), dtype=accumulate, device=out.device)


def sum_partials(partial: Tensor, out: Tensor) -> None:
    """Add the rows that belong to each group of `out` and write them there, rounded once to its dtype.

    Args:
        partial: What `partial_sums` gave, filled.
        out: (groups, n).
    """
    if partial is out:
        return
    groups, n = out.shape
    column_blocks = -(-n // _BLOCK_N)
    parts = partial.shape[0] // groups
    launch(
        _sum_partials_kernel,
        groups * column_blocks,
        out,
        partial,
        out,
        parts,
        n,
        column_blocks,
        BLOCK_P=_BLOCK_P,
        BLOCK_N=_BLOCK_N,
        num_warps=8,
        num_stages=1,
        enable_fp_fusion=True,
    )
