"""Cross-entropy: ℓ and L of every row, and ℓ̇ and L̇ for every tangent, in one launch."""

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
from .._rows import column_numbers, rounding, row_sum, row_sums
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
    load_tangent,
    lost,
    target_weights,
)


@triton.jit(do_not_specialize=["groups", "tangents", "outer", "ignore", "first"])
def _forward_kernel(
    x_ptr,  # (groups, outer, n, inner)
    t_ptr,  # (groups, outer, inner) int64, or (groups, outer, n, inner) if PROBABILITIES
    w_ptr,  # (n,) or None
    x_dot_ptr,  # (groups·tangents, outer, n, inner) or None
    q_dot_ptr,  # (groups·tangents, outer, n, inner) or None
    loss_ptr,  # (groups, outer, inner), contiguous, like the next two
    lse_ptr,
    rest_ptr,
    loss_dot_ptr,  # (groups·tangents, outer, inner), contiguous, or None, like the next
    lse_dot_ptr,
    groups,
    tangents,
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
    ignore,
    first,
    classes,
    epsilon: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    softcap: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    PROBABILITIES: tl.constexpr,
    SMOOTH: tl.constexpr,
    CAPPED: tl.constexpr,
    MANY: tl.constexpr,
    ACC: tl.constexpr,
    INNER: tl.constexpr,
    ONE_PASS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Primal and tangents: ℓ = Σ τ (L − z), L = log Σ exp z and what it lacks as rounded, and ℓ̇, L̇.

    One program: BLOCK_M rows of one group and all their tangents: one a group or, if MANY, one group with `tangents` of
    them. Moves size bytes an element of x, q, ẋ and q̇, each once; long rows read x and q once more for each tangent if
    MANY. What it writes is one number a row.
    """
    group, o, i, valid = program_rows(groups, outer, inner, INNER, BLOCK_M)
    x_rows = x_ptr + group * x_group + o * x_outer + i
    row = (group * outer + o) * inner + i
    t_row = group * t_group + o * (t_outer if PROBABILITIES else inner) + i
    one = tl.full([BLOCK_M, 1], 1.0, ACC)
    sharp = one - tl.full([BLOCK_M, 1], epsilon, ACC)
    smooth = tl.full([BLOCK_M, 1], epsilon, ACC) / classes
    cap = tl.full([BLOCK_M, 1], softcap, ACC)
    t, weight_t, counts = load_class(t_ptr, t_row, w_ptr, first, classes, valid, ignore, sharp, PROBABILITIES, ACC)
    stop = BLOCK_N if ONE_PASS else n
    TANGENTS: tl.constexpr = loss_dot_ptr is not None  # pyright: ignore[reportAssignmentType]
    # Where τ is one weight, at the class, sums over τ are made of the one logit there.
    ONE: tl.constexpr = not PROBABILITIES and not SMOOTH  # pyright: ignore[reportAssignmentType]

    z = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    slope = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    tau = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    w = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    top = tl.full([BLOCK_M, 1], float("-inf"), ACC)
    sums = tl.zeros([BLOCK_M, 1], ACC)  # Σ exp(z − top)
    sigma = tl.zeros([BLOCK_M, 1], ACC)  # Σ τ
    below = tl.zeros([BLOCK_M, 1], ACC)  # Σ τ (top − z): nothing cancels however large z is
    mean = tl.zeros([BLOCK_M, 1], ACC)  # Σ exp(z − top) ż
    aimed = tl.zeros([BLOCK_M, 1], ACC)  # Σ τ ż
    sigma_dot = tl.zeros([BLOCK_M, 1], ACC)  # Σ τ̇
    below_dot = tl.zeros([BLOCK_M, 1], ACC)  # Σ τ̇ (top − z)
    for start in range(0, stop, BLOCK_N):
        col = column_numbers(start, BLOCK_N)
        inside = valid & (col < n)
        at = column_offsets(col, inner, INNER)
        z, slope, _ = load_logits(x_rows + at, inside, cap, CAPPED, ACC)
        if not ONE:
            w = load_class_weights(w_ptr, col, inside, ACC)
            tau = target_weights(
                t_ptr, t_row + at, col, t, weight_t, w, counts, inside, sharp, smooth, PROBABILITIES, SMOOTH, ACC
            )
        old = finite_top(top, False)
        top, shrink = raised(top, z, False)
        new = finite_top(top, False)
        powers = tl.exp(z - new)
        if not TANGENTS or MANY:
            sums = sums * shrink + row_sum(powers)
        if not ONE:
            below += sigma * (new - old) + row_sum(lost(tau, new - z, inside, PROBABILITIES))
            sigma += aimed_sum(tau, powers)
        if TANGENTS and not MANY:
            x_dot = load_tangent(x_dot_ptr, group * x_dot_group + o * x_dot_outer + i + at, inside, ACC)
            z_dot = slope * x_dot
            sums_here, mean_here = row_sums(powers, powers * z_dot)
            sums = sums * shrink + sums_here
            mean = mean * shrink + mean_here
            if not ONE:
                aimed += row_sum(tau * z_dot)
            if q_dot_ptr is not None:
                q_dot = load_tangent(q_dot_ptr, group * q_dot_group + o * q_dot_outer + i + at, inside, ACC)
                tau_dot = sharp * w * q_dot
                below_dot += sigma_dot * (new - old) + row_sum(lost(tau_dot, new - z, inside, PROBABILITIES))
                sigma_dot += row_sum(tau_dot)
    sums = tl.where(valid, sums, 1.0)
    reach = tl.log(sums)  # L − top
    finite = finite_top(top, False)
    there = counts & (t >= 0) & (t < n)
    class_at = column_offsets(t, inner, INNER)
    class_slope = one
    if ONE:
        class_z, class_slope, _ = load_logits(x_rows + class_at, there, cap, CAPPED, ACC)
        sigma = tl.where(there | (weight_t != weight_t), weight_t, 0.0)  # NaN where no class is meant
        below = lost(sigma, finite - class_z, there, PROBABILITIES)
    loss = sigma * reach + below
    tl.store(loss_ptr + row, tl.where(counts, loss, 0.0).to(loss_ptr.dtype.element_ty), mask=valid)
    tl.store(lse_ptr + row, tl.where(counts, finite + reach, 0.0).to(lse_ptr.dtype.element_ty), mask=valid)
    rest = rounding(finite, reach)
    tl.store(rest_ptr + row, tl.where(counts, rest, 0.0).to(rest_ptr.dtype.element_ty), mask=valid)

    if TANGENTS:
        for k in range(0, tangents if MANY else 1):
            if MANY:
                mean = tl.zeros([BLOCK_M, 1], ACC)
                aimed = tl.zeros([BLOCK_M, 1], ACC)
                sigma_dot = tl.zeros([BLOCK_M, 1], ACC)
                below_dot = tl.zeros([BLOCK_M, 1], ACC)
                for start in range(0, stop, BLOCK_N):
                    col = column_numbers(start, BLOCK_N)
                    inside = valid & (col < n)
                    at = column_offsets(col, inner, INNER)
                    if not ONE_PASS:
                        z, slope, _ = load_logits(x_rows + at, inside, cap, CAPPED, ACC)
                    if not ONE_PASS and not ONE:
                        w = load_class_weights(w_ptr, col, inside, ACC)
                        tau = target_weights(
                            t_ptr,
                            t_row + at,
                            col,
                            t,
                            weight_t,
                            w,
                            counts,
                            inside,
                            sharp,
                            smooth,
                            PROBABILITIES,
                            SMOOTH,
                            ACC,
                        )
                    x_dot = load_tangent(x_dot_ptr, k * x_dot_group + o * x_dot_outer + i + at, inside, ACC)
                    z_dot = slope * x_dot
                    mean += row_sum(tl.exp(z - finite) * z_dot)
                    if not ONE:
                        aimed += row_sum(tau * z_dot)
                    if q_dot_ptr is not None:
                        q_dot = load_tangent(q_dot_ptr, k * q_dot_group + o * q_dot_outer + i + at, inside, ACC)
                        tau_dot = sharp * w * q_dot
                        below_dot += row_sum(lost(tau_dot, finite - z, inside, PROBABILITIES))
                        sigma_dot += row_sum(tau_dot)
            if ONE:
                dot_row = (k if MANY else group) * x_dot_group + o * x_dot_outer + i
                aimed = sigma * class_slope * load_tangent(x_dot_ptr, dot_row + class_at, there, ACC)
            lse_dot = mean / sums
            loss_dot = sigma * lse_dot - aimed + sigma_dot * reach + below_dot
            k_row = ((group + k) * outer + o) * inner + i
            tl.store(
                loss_dot_ptr + k_row, tl.where(counts, loss_dot, 0.0).to(loss_dot_ptr.dtype.element_ty), mask=valid
            )
            tl.store(lse_dot_ptr + k_row, tl.where(counts, lse_dot, 0.0).to(lse_dot_ptr.dtype.element_ty), mask=valid)


def cross_entropy_forward(
    x: Tensor,
    target: Tensor,
    x_dot: Tensor | None,
    target_dot: Tensor | None,
    options: Options,
    *,
    block_limit: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Compute ℓ, L and its rest, and ℓ̇ and L̇ if there is a tangent, one launch.

    Where all groups of x and target share their memory, a program reads their rows for all tangents. Where columns are
    a part of all classes, sums are over that part: L is log Σ exp z of it, and ℓ = Σ τ (L − z) over it.

    Args:
        x: (K or 1, O, n, I).
        target: Classes (K or 1, O, I), int64, contiguous; or probabilities (K or 1, O, n, I).
        x_dot: (K or 1, O, n, I), or None for zero.
        target_dot: (K or 1, O, n, I), or None for zero; for probabilities.
        options: Weights of the classes and the like.
        block_limit: Longest row to take in one pass, for tests.

    Returns:
        ℓ, L and what L as rounded lacks of log Σ exp z, (K or 1, O, I) with as many groups as x and target have; ℓ̇ and
        L̇, (K, O, I), or None; float64 for float64 logits, else float32.
    """
    _, outer, n, inner = x.shape
    primal_groups = group_count(x, target)
    operands = (x, target, x_dot, target_dot)
    groups = 0 if any(t is not None and t.shape[0] == 0 for t in operands) else group_count(*operands)
    has_tangents = x_dot is not None or target_dot is not None
    shared = group_stride(x) == 0 and group_stride(target) == 0
    many = has_tangents and shared and groups > 1

    def empty(k: int) -> Tensor:
        return torch.empty((k, outer, inner), dtype=partial_dtype(x.dtype), device=x.device)

    loss, lse, rest = (empty(1 if many else groups) for _ in range(3))
    loss_dot, lse_dot = (empty(groups), empty(groups)) if has_tangents else (None, None)
    if groups * outer * inner == 0:
        return loss, lse, rest, loss_dot, lse_dot
    x, x_dot, target_dot = adjacent(x), adjacent(x_dot), adjacent(target_dot)  # pyright: ignore[reportAssignmentType]
    wide = target.dim() == 4
    target = adjacent(target) if wide else target  # pyright: ignore[reportAssignmentType]
    grid_groups = 1 if many else groups
    tiles = 4 + (x_dot is not None) + (target_dot is not None) + wide
    config = softmax_config(n, inner, x.element_size(), tiles, block_limit)
    launch(
        _forward_kernel,
        programs(config, grid_groups, outer, inner),
        x,
        x,
        target,
        options.weight,
        x_dot,
        target_dot,
        loss,
        lse,
        rest,
        loss_dot,
        lse_dot,
        grid_groups,
        groups,
        outer,
        inner,
        n,
        *outer_strides(x),
        *outer_strides(target),
        *outer_strides(x_dot),
        *outer_strides(target_dot),
        options.ignore_index,
        options.first,
        n if options.classes is None else options.classes,
        options.label_smoothing,
        options.softcap or 1.0,
        MANY=many,
        ACC=accumulator(x.dtype),
        INNER=inner > 1,
        **options.flags(target),
        **config.tiling(),
    )
    if many and primal_groups > 1:
        loss, lse, rest = (t.expand(primal_groups, outer, inner) for t in (loss, lse, rest))
    return loss, lse, rest, loss_dot, lse_dot
