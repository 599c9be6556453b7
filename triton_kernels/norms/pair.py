"""RMS norm of two tensors in one launch, such as the queries and keys of attention: primal, JVP and VJP."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._config import accumulating_config, row_blocks, row_config, rows_of_long_tile
from .._dtypes import accumulator, partial_dtype
from .._launch import launch, multiprocessors
from .._layout import group_count, group_stride, lay_out, unit_columns
from .._partials import partial_sums, sum_partials
from ._pair_kernels import _pair_forward_kernel, _pair_jvp_kernel, _pair_vjp_kernel
from ._pieces import Norm
from .forward import norm_forward, of_values
from .jvp import norm_jvp
from .vjp import norm_vjp


class Side(NamedTuple):
    """One of the two tensors, with what belongs to it.

    Attributes:
        x: (K or 1, M, N), any strides, like all of them.
        weight: (K or 1, N), or None for a gain of ones.
        x_dot: (K or 1, M, N), or None for zero.
        weight_dot: (K or 1, N), or None for zero.
        y_bar: (K, M, N), for the VJP.
        needs_x: Whether the VJP shall give x̄.
        needs_weight: Whether it shall give w̄.
    """

    x: Tensor
    weight: Tensor | None
    x_dot: Tensor | None = None
    weight_dot: Tensor | None = None
    y_bar: Any = None
    needs_x: bool = False
    needs_weight: bool = False


def pair_forward(q: Side, k: Side, norm: Norm, *, block_limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Compute `norm_forward` of two tensors with equally long rows and of one dtype, one launch.

    Args:
        q: One.
        k: The other; its groups and rows may be other in number.
        norm: Which norm.
        block_limit: Longest row to take in one pass, for tests.

    Returns:
        Both y.
    """
    sides = (q, k)
    if any(side.x.numel() == 0 for side in sides):
        first, second = (norm_forward(s.x, s.weight, None, norm, block_limit=block_limit)[0] for s in sides)
        return first, second
    n = q.x.shape[-1]
    config = row_config(n, q.x.element_size(), 1 + any(s.weight is not None for s in sides), block_limit)
    arguments: list[Any] = []
    programs, results = [], []
    for side in sides:
        x, weight = unit_columns(side.x), unit_columns(side.weight)
        groups, w_group = group_count(x, weight), group_stride(weight)
        layout = lay_out((x,), groups, x.shape[1], fold=w_group == 0)
        results.append(torch.empty((groups, *x.shape[1:]), dtype=x.dtype, device=x.device))
        arguments += [x, weight, results[-1], layout.groups, layout.rows, *layout.strides[0], w_group]
        programs.append(layout.groups * -(-layout.rows // config.block_m))
    launch(
        _pair_forward_kernel,
        sum(programs),
        q.x,
        programs[0],
        *arguments,
        n,
        norm.eps,
        **of_values(norm, q.x),
        **config.row_tiling(n),
    )
    return results[0], results[1]


def pair_jvp(
    q: Side, k: Side, norm: Norm, *, block_limit: int | None = None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Compute `norm_jvp` of two tensors with equally long rows and of one dtype, one launch.

    Args:
        q: One.
        k: The other; its groups, rows and tangents may be other in number.
        norm: Which norm.
        block_limit: Longest row to take in one pass, for tests.

    Returns:
        For each, y and ẏ.
    """
    sides = (q, k)
    counts = [group_count(s.x, s.weight, s.x_dot, s.weight_dot) for s in sides]
    if any(s.x.numel() * count == 0 for s, count in zip(sides, counts, strict=True)):
        first, second = (
            norm_jvp(s.x, s.weight, None, s.x_dot, s.weight_dot, None, norm, block_limit=block_limit)[:2] for s in sides
        )
        return first, second
    n = q.x.shape[-1]
    plans = []
    for side, groups in zip(sides, counts, strict=True):
        x, weight = unit_columns(side.x), unit_columns(side.weight)
        x_dot, weight_dot = unit_columns(side.x_dot), unit_columns(side.weight_dot)
        w_group, w_dot_group = group_stride(weight), group_stride(weight_dot)
        shared = group_stride(x) == 0 and w_group == 0
        many = shared and groups > 1
        layout = lay_out((x, x_dot), groups, x.shape[1], fold=w_group == 0 and w_dot_group == 0 and not many)
        y_dot = torch.empty((groups, *x.shape[1:]), dtype=x.dtype, device=x.device)
        y = torch.empty((1 if shared else groups, *x.shape[1:]), dtype=x.dtype, device=x.device)
        grid_groups = 1 if many else layout.groups
        arguments = [x, weight, x_dot, weight_dot, y, y_dot, grid_groups, groups, layout.rows]
        arguments += [*layout.strides[0], w_group, *layout.strides[1], w_dot_group]
        plans.append((arguments, grid_groups, layout.rows, many, y, y_dot))
    present = [any(t is not None for t in pair) for pair in zip(q[1:4], k[1:4], strict=True)]
    config = row_config(n, q.x.element_size(), 1 + sum(present) + any(p[3] for p in plans), block_limit)
    programs = [groups * -(-rows // config.block_m) for _, groups, rows, *_ in plans]
    launch(
        _pair_jvp_kernel,
        sum(programs),
        q.x,
        programs[0],
        *plans[0][0],
        *plans[1][0],
        n,
        norm.eps,
        Q_MANY=plans[0][3],
        K_MANY=plans[1][3],
        **of_values(norm, q.x),
        **config.row_tiling(n),
    )
    first, second = (
        (y.expand(group_count(side.x, side.weight), -1, -1), y_dot)
        for side, (*_, y, y_dot) in zip(sides, plans, strict=True)
    )
    return first, second


def pair_vjp(
    q: Side, k: Side, norm: Norm, *, block_limit: int | None = None
) -> tuple[tuple[Tensor | None, Tensor | None], tuple[Tensor | None, Tensor | None]]:
    """Compute `norm_vjp` of two tensors with equally long rows and of one dtype: one launch, and one for each w̄.

    Args:
        q: One.
        k: The other; its groups, rows and cotangents may be other in number.
        norm: Which norm.
        block_limit: Longest row to take in one pass, for tests.

    Returns:
        For each, x̄ and w̄, None where not wanted.
    """
    sides = tuple(s._replace(needs_weight=s.needs_weight and s.weight is not None) for s in (q, k))
    if any(s.y_bar.numel() == 0 or not (s.needs_x or s.needs_weight) for s in sides):
        first, second = (
            norm_vjp(s.y_bar, s.x, s.weight, None, norm, (s.needs_x, s.needs_weight, False), block_limit=block_limit)[
                :2
            ]
            for s in sides
        )
        return first, second
    n, item, processors = q.x.shape[-1], q.x.element_size(), multiprocessors(q.x.device)
    tiles = 2 + any(s.weight is not None for s in sides)
    sums = any(s.needs_weight for s in sides)
    if sums:
        loop_rows = rows_of_long_tile(sum(s.y_bar.shape[0] * s.y_bar.shape[1] for s in sides), processors)
        config = accumulating_config(n, item, 4, 2, block_limit, loop_rows)
    else:
        config = row_config(n, item, tiles, block_limit)
    plans = []
    for side in sides:
        y_bar, x, weight = unit_columns(side.y_bar), unit_columns(side.x), unit_columns(side.weight)
        groups, rows, _ = y_bar.shape
        x_bar = torch.empty(y_bar.shape, dtype=x.dtype, device=x.device) if side.needs_x else None
        w_bar = torch.empty_like(weight, memory_format=torch.contiguous_format) if side.needs_weight else None  # pyright: ignore[reportArgumentType]
        w_group = group_stride(weight) if side.needs_x else 0  # a gain is read for x̄ only
        shared = w_bar is None or w_bar.shape[0] == 1
        many = groups > 1 and group_stride(x) == 0 and w_group == 0 and shared and (not sums or config.one_pass)
        layout = lay_out((y_bar, x), groups, rows, fold=w_group == 0 and shared and not many)
        grid_groups = 1 if many else layout.groups
        if w_bar is None:
            blocks, rows_per_program, partial = -(-layout.rows // config.block_m), config.block_m, None
        else:
            blocks, rows_per_program = row_blocks(layout.rows, grid_groups, config, processors)
            partial = partial_sums(grid_groups, blocks, w_bar, partial_dtype(x.dtype))
        arguments = [y_bar, x, weight if side.needs_x else None, x_bar, partial, grid_groups, groups, layout.rows]
        arguments += [rows_per_program, *layout.strides[0], *layout.strides[1], w_group]
        plans.append((arguments, grid_groups * blocks, many, x_bar, w_bar, partial))
    launch(
        _pair_vjp_kernel,
        plans[0][1] + plans[1][1],
        q.x,
        plans[0][1],
        *plans[0][0],
        *plans[1][0],
        n,
        norm.eps,
        Q_MANY=plans[0][2],
        K_MANY=plans[1][2],
        CENTER=norm.centred,
        OFFSET=norm.offset,
        ACC=accumulator(q.x.dtype),
        STAGES=config.stages,
        **config.row_tiling(n),
    )
    for *_, w_bar, partial in plans:
        if w_bar is not None:
            sum_partials(partial, w_bar)
    return plans[0][3:5], plans[1][3:5]
