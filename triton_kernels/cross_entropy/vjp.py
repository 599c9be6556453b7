"""Cross-entropy, cotangents pulled back: x̄ = ((c σ + e) p − c τ) z′, q̄ = w (1 − ε) c (L − z)."""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false
# Constexprs take plain values, and decide what is bound.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dtypes import accumulator
from .._launch import launch
from .._layout import group_count, group_stride
from .._rows import column_numbers, column_numbers_back, row_sum
from ..softmax._tiles import (
    adjacent,
    column_offsets,
    finite_top,
    outer_strides,
    program_rows,
    programs,
    raised,
    softmax_config,
)
from ._targets import Options, load_class, load_class_weights, load_logits, load_number, lost, target_weights


@triton.jit(do_not_specialize=["groups", "outer", "ignore", "first"])
def _vjp_kernel(
    x_ptr,  # (groups, outer, n, inner)
    t_ptr,  # (groups, outer, inner) int64, or (groups, outer, n, inner) if PROBABILITIES
    w_ptr,  # (n,) or None
    lse_ptr,  # (groups, outer, inner), or None: L is computed
    rest_ptr,  # likewise, what L as rounded lacks
    c_ptr,  # (groups, outer, inner), cotangent of ℓ, or None
    e_ptr,  # (groups, outer, inner), cotangent of L, or None
    x_bar_ptr,  # (groups, outer, n, inner), contiguous, or None
    q_bar_ptr,  # (groups, outer, n, inner), contiguous, or None
    groups,
    outer,
    inner,
    n,
    x_group,
    x_outer,
    t_group,
    t_outer,
    lse_group,
    c_group,
    e_group,
    ignore,
    first,
    classes,
    epsilon: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    softcap: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    PROBABILITIES: tl.constexpr,
    SMOOTH: tl.constexpr,
    CAPPED: tl.constexpr,
    ACC: tl.constexpr,
    INNER: tl.constexpr,
    ONE_PASS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Cotangents: x̄ = ((c σ + e) p − c τ) z′ and q̄ = w (1 − ε) c (L − z).

    One program: BLOCK_M rows of one group. Moves 2·size bytes an element, q's on top; long rows are read twice where L
    is not given, or σ takes a sum over the row (probabilities, or weights smoothed over).
    """
    group, o, i, valid = program_rows(groups, outer, inner, INNER, BLOCK_M)
    x_rows = x_ptr + group * x_group + o * x_outer + i
    at_row = o * inner + i
    out_rows = (group * outer + o) * n * inner + i
    t_row = group * t_group + o * (t_outer if PROBABILITIES else inner) + i
    sharp = 1.0 - tl.full([BLOCK_M, 1], epsilon, ACC)
    smooth = tl.full([BLOCK_M, 1], epsilon, ACC) / classes
    cap = tl.full([BLOCK_M, 1], softcap, ACC)
    t, weight_t, counts = load_class(t_ptr, t_row, w_ptr, first, classes, valid, ignore, sharp, PROBABILITIES, ACC)
    c = load_number(c_ptr, group * c_group + at_row, counts, ACC)
    e = load_number(e_ptr, group * e_group + at_row, counts, ACC)
    stop = BLOCK_N if ONE_PASS else n
    SUMS: tl.constexpr = PROBABILITIES or (SMOOTH and w_ptr is not None)  # pyright: ignore[reportAssignmentType]

    z = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    slope = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    tau = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    w = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    top = tl.full([BLOCK_M, 1], float("-inf"), ACC)
    sums = tl.zeros([BLOCK_M, 1], ACC)
    sigma = tl.zeros([BLOCK_M, 1], ACC)
    if lse_ptr is None or SUMS or ONE_PASS:
        for start in range(0, stop, BLOCK_N):
            col = column_numbers(start, BLOCK_N)
            inside = counts & (col < n)  # nothing of an ignored row is read, whatever stands there
            at = column_offsets(col, inner, INNER)
            if lse_ptr is None or ONE_PASS:
                z, slope, _ = load_logits(x_rows + at, inside, cap, CAPPED, ACC)
            if lse_ptr is None:
                top, shrink = raised(top, z, False)
                sums = sums * shrink + row_sum(tl.exp(z - finite_top(top, False)))
            if SUMS or ONE_PASS:
                w = load_class_weights(w_ptr, col, inside, ACC)
                tau = target_weights(
                    t_ptr, t_row + at, col, t, weight_t, w, counts, inside, sharp, smooth, PROBABILITIES, SMOOTH, ACC
                )
                sigma += row_sum(tau)
    if lse_ptr is None:
        shift = finite_top(top, False)
        reach = tl.log(tl.where(counts, sums, 1.0))
    else:
        shift = tl.load(lse_ptr + group * lse_group + at_row, mask=counts, other=0.0).to(ACC)
        reach = tl.load(rest_ptr + group * lse_group + at_row, mask=counts, other=0.0).to(ACC)
    if not SUMS:
        sigma = weight_t + tl.where(counts, smooth * classes, 0.0) if SMOOTH else weight_t
    # L = shift + reach, and neither is rounded to the precision of their sum: p = exp(z − shift) exp(−reach).
    along = (c * sigma + e) * tl.exp(-reach)

    for start in range(0, stop, BLOCK_N):
        col = column_numbers_back(start, n, BLOCK_N, ONE_PASS)
        inside = counts & (col < n)
        there = valid & (col < n)
        at = column_offsets(col, inner, INNER)
        if not ONE_PASS:
            z, slope, _ = load_logits(x_rows + at, inside, cap, CAPPED, ACC)
            w = load_class_weights(w_ptr, col, inside, ACC)
            tau = target_weights(
                t_ptr, t_row + at, col, t, weight_t, w, counts, inside, sharp, smooth, PROBABILITIES, SMOOTH, ACC
            )
        if x_bar_ptr is not None:
            x_bar = (along * tl.exp(z - shift) - lost(tau, c, inside, PROBABILITIES)) * slope
            tl.store(x_bar_ptr + out_rows + at, x_bar.to(x_bar_ptr.dtype.element_ty), mask=there)
        if q_bar_ptr is not None:
            q_bar = sharp * w * c * tl.where(inside, (shift - z) + reach, 0.0)
            tl.store(q_bar_ptr + out_rows + at, q_bar.to(q_bar_ptr.dtype.element_ty), mask=there)


def cross_entropy_vjp(
    c: Tensor | None,
    e: Tensor | None,
    x: Tensor,
    target: Tensor,
    lse: tuple[Tensor, ...] | None,
    options: Options,
    *,
    needs_x: bool = True,
    needs_target: bool = False,
    block_limit: int | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute x̄ and q̄, those that are wanted, one launch.

    Args:
        c: Cotangent of ℓ, (K or 1, O, I), contiguous; or None for zero.
        e: Cotangent of L, likewise.
        x: (K or 1, O, n, I).
        target: Classes (K or 1, O, I), int64, contiguous; or probabilities (K or 1, O, n, I).
        lse: L over all classes and what it lacks as rounded, as `cross_entropy_forward` gives them, (K or 1, O, I),
            contiguous, both of as many groups; None to have them computed, if the columns are all.
        options: Weights of the classes and the like.
        needs_x: Whether to compute x̄.
        needs_target: Whether to compute q̄; for probabilities.
        block_limit: Longest row to take in one pass, for tests.

    Returns:
        x̄ and q̄, (K, O, n, I), contiguous, dtypes of x and of target; None where not wanted.
    """
    _, outer, n, inner = x.shape
    operands = (x, target, c, e)
    groups = 0 if any(t is not None and t.shape[0] == 0 for t in operands) else group_count(*operands)
    shape = (groups, outer, n, inner)
    x_bar = torch.empty(shape, dtype=x.dtype, device=x.device) if needs_x else None
    q_bar = torch.empty(shape, dtype=target.dtype, device=x.device) if needs_target else None
    if groups * outer * n * inner == 0 or not (needs_x or needs_target):
        return x_bar, q_bar
    x = adjacent(x)  # pyright: ignore[reportAssignmentType]
    wide = target.dim() == 4
    target = adjacent(target) if wide else target  # pyright: ignore[reportAssignmentType]
    known = (None, None) if lse is None else lse
    config = softmax_config(n, inner, x.element_size(), 4 + wide, block_limit)
    launch(
        _vjp_kernel,
        programs(config, groups, outer, inner),
        x,
        x,
        target,
        options.weight,
        *known,
        c,
        e,
        x_bar,
        q_bar,
        groups,
        outer,
        inner,
        n,
        *outer_strides(x),
        *outer_strides(target),
        group_stride(known[0]),
        group_stride(c),
        group_stride(e),
        options.ignore_index,
        options.first,
        n if options.classes is None else options.classes,
        options.label_smoothing,
        options.softcap or 1.0,
        ACC=accumulator(x.dtype),
        INNER=inner > 1,
        **options.flags(target),
        **config.tiling(),
    )
    return x_bar, q_bar
