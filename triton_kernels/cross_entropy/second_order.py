"""Cross-entropy, the second order: everything that is read along with one row, its tangents and cotangents."""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false
# Constexprs take plain values, and decide what is bound.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dtypes import accumulator, partial_dtype
from .._launch import launch
from .._layout import group_count, group_stride
from .._rows import column_numbers, column_numbers_back, row_sum, row_sums
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
from ._targets import (
    Options,
    aimed_sum,
    load_class,
    load_class_weights,
    load_logits,
    load_number,
    load_tangent,
    lost,
    target_weights,
)


@triton.jit(do_not_specialize=["groups", "outer", "ignore"])
def _second_order_kernel(
    x_ptr,  # (groups, outer, n, inner)
    t_ptr,  # (groups, outer, inner) int64, or (groups, outer, n, inner) if PROBABILITIES
    w_ptr,  # (n,) or None
    x_dot_ptr,  # (groups, outer, n, inner) or None
    q_dot_ptr,  # (groups, outer, n, inner) or None
    a_ptr,  # (groups, outer, inner), cotangent of ℓ̇, or None
    d_ptr,  # ... of L̇
    c_ptr,  # ... of ℓ
    e_ptr,  # ... of L
    x_first_ptr,  # (groups, outer, n, inner), contiguous, or None, like the next three
    q_first_ptr,
    x_second_ptr,
    q_second_ptr,
    loss_dot_ptr,  # (groups, outer, inner), contiguous, or None, like the next
    lse_dot_ptr,
    groups,
    outer,
    inner,
    n,
    x_group,
    x_outer,
    t_group,
    t_outer,
    x_dot_group,
    x_dot_outer,
    q_dot_group,
    q_dot_outer,
    a_group,
    d_group,
    c_group,
    e_group,
    ignore,
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
    """Any of the six results of `cross_entropy_second_order`, from one reading of the operands.

    With h = a σ + d and G = c σ + e + a σ̇:

        x_first  = (h p − a τ) z′                               q_first  = w (1 − ε) a (L − z)
        x_second = [G p + h p (ż − L̇) − c τ − a τ̇] z′ + (h p − a τ) z″ ẋ
        q_second = w (1 − ε) [c (L − z) + a (L̇ − ż)]

    One program: BLOCK_M rows of one group. Moves (operands + results)·size bytes an element; long rows are read twice.
    """
    group, o, i, valid = program_rows(groups, outer, inner, INNER, BLOCK_M)
    x_rows = x_ptr + group * x_group + o * x_outer + i
    at_row = o * inner + i
    row = group * outer * inner + at_row
    out_rows = (group * outer + o) * n * inner + i
    t_row = group * t_group + o * (t_outer if PROBABILITIES else inner) + i
    x_dot_row = group * x_dot_group + o * x_dot_outer + i
    q_dot_row = group * q_dot_group + o * q_dot_outer + i
    sharp = 1.0 - tl.full([BLOCK_M, 1], epsilon, ACC)
    smooth = tl.full([BLOCK_M, 1], epsilon, ACC) / n
    cap = tl.full([BLOCK_M, 1], softcap, ACC)
    t, weight_t, counts = load_class(t_ptr, t_row, w_ptr, 0, n, valid, ignore, sharp, PROBABILITIES, ACC)
    a = load_number(a_ptr, group * a_group + at_row, counts, ACC)
    d = load_number(d_ptr, group * d_group + at_row, counts, ACC)
    c = load_number(c_ptr, group * c_group + at_row, counts, ACC)
    e = load_number(e_ptr, group * e_group + at_row, counts, ACC)
    stop = BLOCK_N if ONE_PASS else n

    z = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    slope = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    curve = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    tau = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    w = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    x_dot = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    q_dot = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    top = tl.full([BLOCK_M, 1], float("-inf"), ACC)
    sums = tl.zeros([BLOCK_M, 1], ACC)
    sigma = tl.zeros([BLOCK_M, 1], ACC)
    # L̇ is origin + Σ exp(z − top) (ż − origin) / Σ exp(z − top), with ż of the largest logit for an origin: where p is
    # nearly 1 there, ż − L̇ is small, and would be rounded as ż and L̇ are.
    origin = tl.zeros([BLOCK_M, 1], ACC)
    mean = tl.zeros([BLOCK_M, 1], ACC)
    aimed = tl.zeros([BLOCK_M, 1], ACC)  # Σ τ ż
    sigma_dot = tl.zeros([BLOCK_M, 1], ACC)  # Σ τ̇
    below_dot = tl.zeros([BLOCK_M, 1], ACC)  # Σ τ̇ (top − z)
    for start in range(0, stop, BLOCK_N):
        col = column_numbers(start, BLOCK_N)
        inside = counts & (col < n)  # nothing of an ignored row is read, whatever stands there
        at = column_offsets(col, inner, INNER)
        z, slope, curve = load_logits(x_rows + at, inside, cap, CAPPED, ACC)
        w = load_class_weights(w_ptr, col, inside, ACC)
        tau = target_weights(
            t_ptr, t_row + at, col, t, weight_t, w, counts, inside, sharp, smooth, PROBABILITIES, SMOOTH, ACC
        )
        x_dot = load_tangent(x_dot_ptr, x_dot_row + at, inside, ACC)
        old = finite_top(top, False)
        top, shrink = raised(top, z, False)
        new = finite_top(top, False)
        powers = tl.exp(z - new)
        z_dot = slope * x_dot
        if x_dot_ptr is not None:
            at_top = tl.max(tl.where(z == top, z_dot, float("-inf")), axis=1, keep_dims=True)
            moved = tl.where(at_top == float("-inf"), origin, at_top)  # the largest is not in this tile
            mean = (mean + (origin - moved) * sums) * shrink
            sums_here, mean_here = row_sums(powers, powers * (z_dot - moved))
            mean += mean_here
            origin = moved
        else:
            sums_here = row_sum(powers)
        sums = sums * shrink + sums_here
        sigma += aimed_sum(tau, powers)
        if loss_dot_ptr is not None:
            aimed += row_sum(tau * z_dot)
        if q_dot_ptr is not None:
            q_dot = load_tangent(q_dot_ptr, q_dot_row + at, inside, ACC)
            tau_dot = sharp * w * q_dot
            if loss_dot_ptr is not None:
                below_dot += sigma_dot * (new - old) + row_sum(lost(tau_dot, new - z, inside, PROBABILITIES))
            sigma_dot += row_sum(tau_dot)
    sums = tl.where(counts, sums, 1.0)
    reach = tl.log(sums)
    finite = finite_top(top, False)
    lead = mean / sums  # L̇ − origin
    lse_dot = origin + lead
    if loss_dot_ptr is not None:
        loss_dot = sigma * lse_dot - aimed + sigma_dot * reach + below_dot
        tl.store(loss_dot_ptr + row, tl.where(counts, loss_dot, 0.0).to(loss_dot_ptr.dtype.element_ty), mask=valid)
    if lse_dot_ptr is not None:
        tl.store(lse_dot_ptr + row, tl.where(counts, lse_dot, 0.0).to(lse_dot_ptr.dtype.element_ty), mask=valid)
    # p is exp(z − top) / Σ exp(z − top): exp(z − L) would be as wrong as L is, whose rounding is relative to L.
    first_along = (a * sigma + d) / sums  # h
    level = (c * sigma + e + a * sigma_dot) / sums - first_along * lead  # G − h (L̇ − origin)

    for start in range(0, stop, BLOCK_N):
        col = column_numbers_back(start, n, BLOCK_N, ONE_PASS)
        inside = counts & (col < n)
        there = valid & (col < n)
        at = column_offsets(col, inner, INNER)
        if not ONE_PASS:
            z, slope, curve = load_logits(x_rows + at, inside, cap, CAPPED, ACC)
            w = load_class_weights(w_ptr, col, inside, ACC)
            tau = target_weights(
                t_ptr, t_row + at, col, t, weight_t, w, counts, inside, sharp, smooth, PROBABILITIES, SMOOTH, ACC
            )
            x_dot = load_tangent(x_dot_ptr, x_dot_row + at, inside, ACC)
            q_dot = load_tangent(q_dot_ptr, q_dot_row + at, inside, ACC)
        power = tl.exp(z - finite)
        z_dot = slope * x_dot
        pulled = first_along * power - a * tau
        if x_first_ptr is not None:
            tl.store(x_first_ptr + out_rows + at, (pulled * slope).to(x_first_ptr.dtype.element_ty), mask=there)
        if x_second_ptr is not None:
            second = (level + first_along * (z_dot - origin)) * power - c * tau
            if q_dot_ptr is not None:
                second -= a * sharp * w * q_dot
            second *= slope
            if CAPPED:
                second += pulled * curve * x_dot
            tl.store(x_second_ptr + out_rows + at, second.to(x_second_ptr.dtype.element_ty), mask=there)
        if q_first_ptr is not None:
            q_first = sharp * w * a * tl.where(inside, (finite - z) + reach, 0.0)
            tl.store(q_first_ptr + out_rows + at, q_first.to(q_first_ptr.dtype.element_ty), mask=there)
        if q_second_ptr is not None:
            q_second = sharp * w * (c * tl.where(inside, (finite - z) + reach, 0.0) + a * (lead - (z_dot - origin)))
            tl.store(q_second_ptr + out_rows + at, q_second.to(q_second_ptr.dtype.element_ty), mask=there)


def cross_entropy_second_order(
    x: Tensor,
    target: Tensor,
    x_dot: Tensor | None,
    target_dot: Tensor | None,
    cotangents: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    options: Options,
    *,
    wants: tuple[bool, bool, bool, bool, bool],
    block_limit: int | None = None,
) -> tuple[Tensor | None, ...]:
    """Compute the results of the second order that are wanted, one launch: see the package's docstring.

    Args:
        x: (K or 1, O, n, I).
        target: Classes (K or 1, O, I), int64, contiguous; or probabilities (K or 1, O, n, I).
        x_dot: (K or 1, O, n, I), or None for zero.
        target_dot: (K or 1, O, n, I), or None for zero; for probabilities.
        cotangents: a, d of ℓ̇, L̇ and c, e of ℓ, L, each (K or 1, O, I), contiguous, or None for zero.
        options: Weights of the classes and the like.
        wants: Whether to compute the cotangents of ẋ, q̇, x, q (those of q for probabilities), and ℓ̇ with L̇.
        block_limit: Longest row to take in one pass, for tests.

    Returns:
        The cotangents, (K, O, n, I), contiguous, and ℓ̇ and L̇, (K, O, I); six results, None where not wanted.
    """
    _, outer, n, inner = x.shape
    operands = (x, target, x_dot, target_dot, *cotangents)
    groups = 0 if any(t is not None and t.shape[0] == 0 for t in operands) else group_count(*operands)
    shape = (groups, outer, n, inner)
    results = [
        torch.empty(shape, dtype=like.dtype, device=x.device) if want else None
        for want, like in zip(wants, (x, target, x, target), strict=False)
    ]
    numbers = [
        torch.empty((groups, outer, inner), dtype=partial_dtype(x.dtype), device=x.device) if wants[4] else None
        for _ in range(2)
    ]
    if groups * outer * n * inner == 0 or not any(wants):
        return (*results, *(None if t is None else t.zero_() for t in numbers))
    x, x_dot, target_dot = adjacent(x), adjacent(x_dot), adjacent(target_dot)  # pyright: ignore[reportAssignmentType]
    wide = target.dim() == 4
    target = adjacent(target) if wide else target  # pyright: ignore[reportAssignmentType]
    tiles = 5 + (x_dot is not None) + (target_dot is not None) + wide + (options.softcap is not None)
    config = softmax_config(n, inner, x.element_size(), tiles, block_limit)
    launch(
        _second_order_kernel,
        programs(config, groups, outer, inner),
        x,
        x,
        target,
        options.weight,
        x_dot,
        target_dot,
        *cotangents,
        *results,
        *numbers,
        groups,
        outer,
        inner,
        n,
        *outer_strides(x),
        *outer_strides(target),
        *outer_strides(x_dot),
        *outer_strides(target_dot),
        *(group_stride(t) for t in cotangents),
        options.ignore_index,
        options.label_smoothing,
        options.softcap or 1.0,
        ACC=accumulator(x.dtype),
        INNER=inner > 1,
        **options.flags(target),
        **config.tiling(),
    )
    return (*results, *numbers)
