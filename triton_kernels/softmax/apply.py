"""The primal, J v and Jᵀ a of softmax, log_softmax and logsumexp: one kernel."""

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
from .._rows import column_numbers, column_numbers_back, load_tile, row_sum, row_sums
from ._tiles import (
    NO_MASK,
    MaskLayout,
    adjacent,
    column_offsets,
    finite_top,
    inverse_total,
    load_keep,
    load_scores,
    log_total,
    mask_rows,
    outer_strides,
    program_rows,
    programs,
    raised,
    softmax_config,
)


@triton.jit
def probabilities(source, keep, top, inverse, KIND: tl.constexpr, FROM_OUTPUT: tl.constexpr):
    """Return p, 0 where not kept, from the scores and their statistics or from the output."""
    if FROM_OUTPUT:
        if KIND == "softmax":
            return source
        else:
            return tl.where(keep, tl.exp(source), 0.0)
    else:
        return tl.exp(source - finite_top(top, KIND == "logsumexp")) * inverse


@triton.jit(do_not_specialize=["groups", "vectors", "outer", "mask_step", "mask_size_1", "mask_size_0"])
def _apply_kernel(
    x_ptr,  # (groups, outer, n, inner): scores, or the output if FROM_OUTPUT
    mask_ptr,  # what is kept, broadcast by its strides; or None
    v_ptr,  # (groups·vectors, outer, n, inner), or (groups·vectors, outer, inner) for Jᵀ of logsumexp; or None
    y_ptr,  # (groups, outer, n, inner), or (groups, outer, inner) for logsumexp, contiguous; or None
    u_ptr,  # like y, for groups·vectors; Jᵀ of logsumexp has columns; contiguous; or None
    groups,
    vectors,
    outer,
    inner,
    n,
    x_group,
    x_outer,
    v_group,
    v_outer,
    mask_step,
    mask_2,
    mask_1,
    mask_0,
    mask_size_1,
    mask_size_0,
    mask_inner,
    mask_col,
    scale: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    KIND: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    MANY: tl.constexpr,
    ACC: tl.constexpr,
    INNER: tl.constexpr,
    ONE_PASS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Primal y, and u = J v, or Jᵀ v if TRANSPOSED, for every vector v.

    One program: BLOCK_M rows of one group and all their vectors: one a group or, if MANY, one group with `vectors` of
    them. Moves (2 + 2·vectors)·size bytes an element of x where y is wanted, one less where not; rows longer than a
    tile read x twice, v twice, but v once where its inner product is with p and there is one.
    """
    group, o, i, valid = program_rows(groups, outer, inner, INNER, BLOCK_M)
    x_rows = x_ptr + group * x_group + o * x_outer + i
    mask_row = group * mask_step + o
    keep_rows = mask_rows(mask_ptr, mask_row, i, mask_2, mask_1, mask_0, mask_size_1, mask_size_0, mask_inner)
    out_rows = (group * outer + o) * n * inner + i  # of tensors with columns
    row = (group * outer + o) * inner + i  # of tensors without
    s = tl.full([BLOCK_M, 1], scale, ACC)
    stop = BLOCK_N if ONE_PASS else n
    # Whether v is a row of n (and not one number), and summed over together with the scores.
    WIDE: tl.constexpr = not (KIND == "logsumexp" and TRANSPOSED)  # pyright: ignore[reportAssignmentType]
    ONLINE: tl.constexpr = v_ptr is not None and WIDE and not MANY  # pyright: ignore[reportAssignmentType]
    INFINITE: tl.constexpr = KIND == "logsumexp"  # pyright: ignore[reportAssignmentType]

    source = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    v = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    top = tl.full([BLOCK_M, 1], float("-inf"), ACC)
    sums = tl.zeros([BLOCK_M, 1], ACC)  # Σ exp(z − top)
    product = tl.zeros([BLOCK_M, 1], ACC)  # Σ of v times exp(z − top), p, or 1
    if not FROM_OUTPUT or ONLINE or ONE_PASS:
        for start in range(0, stop, BLOCK_N):
            col = column_numbers(start, BLOCK_N)
            inside = valid & (col < n)
            keep = load_keep(mask_ptr, keep_rows, col, mask_col, inside)
            at = column_offsets(col, inner, INNER)
            if ONLINE:
                v = load_tile(v_ptr + group * v_group + o * v_outer + i + at, keep, ACC)
            if FROM_OUTPUT:
                source = load_tile(x_rows + at, inside, ACC)
            else:
                source = load_scores(x_rows + at, keep, s, ACC)
                top, shrink = raised(top, source, INFINITE)
                weight = tl.exp(source - finite_top(top, INFINITE))
                if not ONLINE:
                    sums = sums * shrink + row_sum(weight)
            if ONLINE:
                if not FROM_OUTPUT:
                    sums_here, product_here = row_sums(weight, weight * v)
                    sums = sums * shrink + sums_here
                    product = product * shrink + product_here
                elif KIND == "softmax":
                    product += row_sum(source * v)
                elif TRANSPOSED:
                    product += row_sum(v)
                else:
                    product += row_sum(tl.where(keep, tl.exp(source), 0.0) * v)
    if FROM_OUTPUT:
        sums = tl.full([BLOCK_M, 1], 1.0, ACC)
    else:
        sums = tl.where(valid, sums, 1.0)
    inverse = inverse_total(sums, mask_ptr is not None)
    # A row of which nothing is kept has z = -∞, from which log_softmax must not subtract -∞.
    logs = log_total(sums, float("-inf") if KIND == "logsumexp" else 0.0, mask_ptr is not None)
    if ONLINE and not FROM_OUTPUT:
        product *= inverse

    if y_ptr is not None:
        if KIND == "logsumexp":
            lse = finite_top(top, INFINITE) + logs
            tl.store(y_ptr + row, lse.to(y_ptr.dtype.element_ty), mask=valid)
        elif MANY or v_ptr is None:
            for start in range(0, stop, BLOCK_N):
                col = column_numbers_back(start, n, BLOCK_N, ONE_PASS)
                inside = valid & (col < n)
                at = column_offsets(col, inner, INNER)
                if not ONE_PASS:
                    keep = load_keep(mask_ptr, keep_rows, col, mask_col, inside)
                    source = load_scores(x_rows + at, keep, s, ACC)
                if KIND == "softmax":
                    y = tl.exp(source - finite_top(top, INFINITE)) * inverse
                else:
                    y = source - finite_top(top, INFINITE) - logs
                tl.store(y_ptr + out_rows + at, y.to(y_ptr.dtype.element_ty), mask=inside)

    if v_ptr is not None:
        for t in range(0, vectors if MANY else 1):
            k = group + t
            v_rows = v_ptr + k * v_group + o * v_outer + i
            if not WIDE:
                number = load_tile(v_ptr + k * v_group + o * inner + i, valid, ACC)
            if MANY and WIDE:
                product = tl.zeros([BLOCK_M, 1], ACC)
                for start in range(0, stop, BLOCK_N):
                    col = column_numbers(start, BLOCK_N)
                    inside = valid & (col < n)
                    keep = load_keep(mask_ptr, keep_rows, col, mask_col, inside)
                    at = column_offsets(col, inner, INNER)
                    v = load_tile(v_rows + at, keep, ACC)
                    if KIND == "log_softmax" and TRANSPOSED:
                        product += row_sum(v)
                    else:
                        if not ONE_PASS:
                            if FROM_OUTPUT:
                                source = load_tile(x_rows + at, inside, ACC)
                            else:
                                source = load_scores(x_rows + at, keep, s, ACC)
                        product += row_sum(probabilities(source, keep, top, inverse, KIND, FROM_OUTPUT) * v)
            if KIND == "logsumexp" and not TRANSPOSED:
                k_row = (k * outer + o) * inner + i
                tl.store(u_ptr + k_row, (s * product).to(u_ptr.dtype.element_ty), mask=valid)
            else:
                u_rows = u_ptr + (k * outer + o) * n * inner + i
                for start in range(0, stop, BLOCK_N):
                    col = column_numbers_back(start, n, BLOCK_N, ONE_PASS)
                    inside = valid & (col < n)
                    keep = load_keep(mask_ptr, keep_rows, col, mask_col, inside)
                    at = column_offsets(col, inner, INNER)
                    if not ONE_PASS:
                        if FROM_OUTPUT:
                            source = load_tile(x_rows + at, inside, ACC)
                        else:
                            source = load_scores(x_rows + at, keep, s, ACC)
                        if WIDE:
                            v = load_tile(v_rows + at, keep, ACC)
                    p = probabilities(source, keep, top, inverse, KIND, FROM_OUTPUT)
                    if KIND == "softmax":
                        u = p * (v - product)
                    elif KIND == "logsumexp":
                        u = p * number
                    elif TRANSPOSED:
                        u = v - p * product
                    else:
                        u = tl.where(keep, v - product, 0.0)
                    tl.store(u_rows + at, (s * u).to(u_ptr.dtype.element_ty), mask=inside)
                    if y_ptr is not None and not MANY and KIND != "logsumexp":
                        y = p if KIND == "softmax" else source - finite_top(top, INFINITE) - logs
                        tl.store(y_ptr + out_rows + at, y.to(y_ptr.dtype.element_ty), mask=inside)


def softmax_apply(
    x: Tensor,
    v: Tensor | None,
    mask: MaskLayout = NO_MASK,
    *,
    kind: str,
    scale: float,
    from_output: bool = False,
    transposed: bool = False,
    block_limit: int | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the primal y and u = J v or Jᵀ v, one launch.

    Where all groups of x share their memory, a program reads a row of it once for all vectors and writes y once.

    Args:
        x: (K or 1, O, n, I): the scores, or the output of the primal if `from_output`.
        v: (K or 1, O, n, I), for Jᵀ of logsumexp (K or 1, O, I) contiguous; or None: the primal alone.
        mask: What is kept.
        kind: "softmax", "log_softmax" or "logsumexp".
        scale: s.
        from_output: Whether x holds the output; not for logsumexp.
        transposed: Whether to compute Jᵀ v.
        block_limit: Longest row to take in one pass, for tests.

    Returns:
        y, with as many groups as x (and the mask) have, None if transposed; u, None without v; dtype of x, contiguous,
        (K, O, n, I), without columns for the results of logsumexp that have none.
    """
    _, outer, n, inner = x.shape
    columns, dense = (n,), kind != "logsumexp"
    empty_groups = x.shape[0] == 0 or (v is not None and v.shape[0] == 0)
    groups = 0 if empty_groups else max(group_count(x, v), mask.groups)
    shared = group_stride(x) == 0 and mask.groups == 1 and x.shape[0] != 0
    primal_groups = max(x.shape[0], mask.groups) if x.shape[0] else 0

    def empty(k: int, wide: bool) -> Tensor:
        return torch.empty((k, outer, *(columns if wide else ()), inner), dtype=x.dtype, device=x.device)

    y = None if transposed else empty(1 if shared else groups, dense)
    u = None if v is None else empty(groups, dense or transposed)
    if v is not None and x.shape[0] and groups == 0:
        return softmax_apply(x, None, mask, kind=kind, scale=scale)[0] if y is not None else y, u
    if outer * inner == 0 or (n == 0 and (dense or transposed)) or groups == 0:
        return (None if y is None else _expanded(y, primal_groups)), u
    if n == 0:
        return (
            None if y is None else _expanded(y.fill_(float("-inf")), primal_groups)
        ), None if u is None else u.zero_()
    x = adjacent(x)  # pyright: ignore[reportAssignmentType]
    v = adjacent(v) if v is not None and v.dim() == 4 else v
    many = v is not None and shared and groups > 1
    grid_groups = 1 if many or (v is None and shared) else groups
    (x_group, x_outer), (v_group, v_outer) = outer_strides(x), outer_strides(v)
    tiles = 2 + (v is not None and v.dim() == 4) + (mask.mask is not None)
    config = softmax_config(n, inner, x.element_size(), tiles, block_limit)
    launch(
        _apply_kernel,
        programs(config, grid_groups, outer, inner),
        x,
        x,
        mask.mask,
        v,
        y,
        u,
        grid_groups,
        groups,
        outer,
        inner,
        n,
        x_group,
        x_outer,
        v_group,
        v_outer,
        *mask.arguments(outer),
        scale,
        KIND=kind,
        FROM_OUTPUT=from_output,
        TRANSPOSED=transposed,
        MANY=many,
        ACC=accumulator(x.dtype),
        INNER=inner > 1,
        **config.tiling(),
    )
    return (None if y is None else _expanded(y, primal_groups)), u


def _expanded(y: Tensor, groups: int) -> Tensor:
    return y if y.shape[0] == groups else y.expand(groups, *y.shape[1:])
