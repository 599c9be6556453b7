"""Value and directional derivatives of a pointwise function: y, f′p, f′q, f″pq + f′b."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dtypes import accumulator
from .._elements import direction_chunks, element_config
from .._jets import jet
from .._launch import launch, multiprocessors
from .._layout import group_count, group_stride, lay_out
from .._rows import load_tile, program_block


# One group is compiled for: no division, which is a quarter of a thread's instructions.
@triton.jit(do_not_specialize=["directions", "per_program"], do_not_specialize_on_alignment=["groups"])
def _pointwise_kernel(
    x_ptr,  # (groups, n)
    p_ptr,  # (groups, n) or None, like the next two
    q_ptr,
    b_ptr,
    y_ptr,  # (groups, n), contiguous, or None, like the next three
    p_out_ptr,
    q_out_ptr,
    bend_ptr,
    groups,
    directions,
    per_program,
    n,
    x_group,
    x_step,
    p_group,
    p_step,
    q_group,
    q_step,
    b_group,
    b_step,
    first: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    second: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    FUNCTION: tl.constexpr,
    MANY: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Any of y = f(x), p_out = f′p, q_out = f′q, bend = f″pq + f′b.

    One program: BLOCK elements of one group or, if MANY, of the x that all directions share, and per_program of these.
    Moves (operands + results)·size bytes an element; if MANY, x and y once and the others once a direction.
    """
    group, start = program_block(groups, BLOCK)
    at = start + tl.arange(0, BLOCK)
    inside = at < n
    lowest = group * per_program if MANY else group
    stop = tl.minimum(lowest + per_program, directions) if MANY else lowest + 1
    x_offset = 0 if MANY else group * x_group
    x = load_tile(x_ptr + x_offset + at * x_step, inside, ACC)
    f, f1, f2, _ = jet(x, first, second, FUNCTION, x_ptr.dtype.element_ty.primitive_bitwidth == 16)
    if y_ptr is not None:
        if MANY:
            tl.store(y_ptr + at, f.to(y_ptr.dtype.element_ty), mask=at < tl.where(group == 0, n, 0))
        else:
            tl.store(y_ptr + group * n + at, f.to(y_ptr.dtype.element_ty), mask=inside)

    p = tl.zeros([BLOCK], ACC)
    q = tl.zeros([BLOCK], ACC)
    for k in range(lowest, stop):
        out = k * n + at
        if p_ptr is not None:
            p = load_tile(p_ptr + k * p_group + at * p_step, inside, ACC)
            if p_out_ptr is not None:
                tl.store(p_out_ptr + out, (f1 * p).to(p_out_ptr.dtype.element_ty), mask=inside)
        if q_ptr is not None:
            q = load_tile(q_ptr + k * q_group + at * q_step, inside, ACC)
            if q_out_ptr is not None:
                tl.store(q_out_ptr + out, (f1 * q).to(q_out_ptr.dtype.element_ty), mask=inside)
        if bend_ptr is not None:
            bend = tl.zeros([BLOCK], ACC)
            if p_ptr is not None and q_ptr is not None:
                bend += f2 * p * q
            if b_ptr is not None:
                bend += f1 * load_tile(b_ptr + k * b_group + at * b_step, inside, ACC)
            tl.store(bend_ptr + out, bend.to(bend_ptr.dtype.element_ty), mask=inside)


def pointwise_jet(
    function: tuple[str, float, float],
    x: Tensor,
    p: Tensor | None = None,
    q: Tensor | None = None,
    b: Tensor | None = None,
    *,
    wants_y: bool = False,
    wants_p: bool = False,
    wants_q: bool = False,
    wants_bend: bool = False,
    block_limit: int | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Compute any of y = f(x), f′p, f′q, f″pq + f′b, one launch.

    Serves every point of the tower up to the second order. Primal: y. JVP: p = ẋ. VJP: p = ȳ. VJP of the JVP: p = ẋ,
    q and b the cotangents of ẏ and y. JVP of the VJP: p = ẋ, q = ȳ, b its tangent. VJP of the VJP: p the cotangent of
    x̄, q = ȳ. JVP of the JVP: p and q the two tangents of x, b that of ẋ.

    Args:
        function: Its name in `_jets.jet`, with the two options there.
        x: (K or 1, N, 1), any strides, like all operands.
        p: (K or 1, N, 1), or None for zero.
        q: (K or 1, N, 1), or None for zero.
        b: (K or 1, N, 1), or None for zero.
        wants_y: Whether to compute f(x).
        wants_p: Whether to compute f′p; p is given.
        wants_q: Whether to compute f′q; q is given.
        wants_bend: Whether to compute f″pq + f′b; p and q, or b, are given.
        block_limit: Elements of a program at most, for tests.

    Returns:
        The four, each None if not wanted; (K, N, 1), contiguous, dtype of x. y has as many groups as x; groups that
        share their memory in x share it in y.
    """
    own, n, _ = x.shape
    k = group_count(x, p, q, b)
    if k == 0 and own and wants_y:  # no directions, but the primal all the same
        y = pointwise_jet(function, x, wants_y=True, block_limit=block_limit)[0]
        wants_y = False
    else:
        y = None
    shared = group_stride(x) == 0
    results = [
        torch.empty((groups, n, 1), dtype=x.dtype, device=x.device) if wanted else None
        for wanted, groups in ((wants_y, 1 if shared else k), (wants_p, k), (wants_q, k), (wants_bend, k))
    ]
    if k * n and any(result is not None for result in results):
        _launch(function, x, (p, q, b), results, k, shared, block_limit)
    y = results[0] if y is None else y
    return None if y is None else y.expand(own, n, 1), results[1], results[2], results[3]


def _launch(
    function: tuple[str, float, float],
    x: Tensor,
    directions: tuple[Tensor | None, Tensor | None, Tensor | None],
    results: list[Tensor | None],
    k: int,
    shared: bool,
    block_limit: int | None,
) -> None:
    """Choose blocks and strides, and launch."""
    name, first, second = function
    many = shared and k > 1
    layout = lay_out((x, *directions), k, x.shape[1], fold=not many)
    n = layout.rows
    config = element_config(x.element_size(), block_limit)
    blocks = -(-n // config.block)
    chunks, per_program = direction_chunks(k, blocks, multiprocessors(x.device)) if many else (layout.groups, 1)
    launch(
        _pointwise_kernel,
        chunks * blocks,
        x,
        x,
        *directions,
        *results,
        chunks,
        k,
        per_program,
        n,
        *(stride for pair in layout.strides for stride in pair),
        first,
        second,
        FUNCTION=name,
        MANY=many,
        ACC=accumulator(x.dtype),
        **config.tiling(),
    )
