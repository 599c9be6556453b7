"""The second order of `axis_norm`: J u, J w + S(u, ẋ) and J ẋ from one reading of the operands.

    J v = s (v − c ⟨y, v⟩ y)
    S(u, v) = −c s² (⟨y, v⟩ u + ⟨y, u⟩ v + (⟨u, v⟩ − 3 c ⟨y, u⟩ ⟨y, v⟩) y)

S is symmetric: the derivative of J u in the direction v.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._columns import axis_stride
from ._dtypes import accumulator
from ._launch import launch
from ._layout import group_count
from ._variants import Variant, variants_of
from .axis_norm import place_of, reaches_far, scale_of, tile_config, tile_of


class Bent(NamedTuple):
    """What a launch is asked for (booleans) or gives (tensors or None).

    Attributes:
        first: J u.
        second: J w + S(u, ẋ).
        y_dot: J ẋ.
    """

    first: Any = None
    second: Any = None
    y_dot: Any = None


@triton.jit(do_not_specialize=["outer", "blocks"])
def _second_order_kernel(
    x_ptr,  # (K, outer, n, columns), like all
    x_dot_ptr,  # or None, like the next two
    u_ptr,
    w_ptr,
    first_ptr,  # or None; strides as those of all results
    second_ptr,
    y_dot_ptr,
    outer,
    n,
    columns,
    blocks,
    x_k,
    x_a,
    x_n,
    x_b,
    x_dot_k,
    x_dot_a,
    x_dot_n,
    x_dot_b,
    u_k,
    u_a,
    u_n,
    u_b,
    w_k,
    w_a,
    w_n,
    w_b,
    out_k,
    out_a,
    out_n,
    out_b,
    eps: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    FLOORED: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    ONE_PASS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Any of J u, J w + S(u, ẋ) and J ẋ.

    One program: BLOCK_B neighbouring vectors. Moves (operands + results)·size bytes an element; vectors longer than a
    tile are read twice.
    """
    program = tl.program_id(0)
    start_b = program % blocks * BLOCK_B
    beside = tl.arange(0, BLOCK_B)[None, :]
    b = start_b.to(tl.int64)
    a = (program // blocks % outer).to(tl.int64)
    k = (program // blocks // outer).to(tl.int64)
    lanes = beside < columns - start_b
    x_here = x_ptr + k * x_k + a * x_a + b * x_b
    x_dot_here = None if x_dot_ptr is None else x_dot_ptr + k * x_dot_k + a * x_dot_a + b * x_dot_b
    u_here = None if u_ptr is None else u_ptr + k * u_k + a * u_a + b * u_b
    w_here = None if w_ptr is None else w_ptr + k * w_k + a * w_a + b * w_b
    out_here = k * out_k + a * out_a + b * out_b
    stop = BLOCK_N if ONE_PASS else n

    x = tl.zeros([BLOCK_N, BLOCK_B], ACC)
    x_dot = tl.zeros([BLOCK_N, BLOCK_B], ACC)
    u = tl.zeros([BLOCK_N, BLOCK_B], ACC)
    w = tl.zeros([BLOCK_N, BLOCK_B], ACC)
    squares = tl.zeros([1, BLOCK_B], ACC)
    of_x_dot = tl.zeros([1, BLOCK_B], ACC)  # Σ x ẋ, Σ x u, Σ x w and Σ u ẋ
    of_u = tl.zeros([1, BLOCK_B], ACC)
    of_w = tl.zeros([1, BLOCK_B], ACC)
    of_both = tl.zeros([1, BLOCK_B], ACC)
    for start in range(0, stop, BLOCK_N):
        x = tile_of(x_here, start, n, x_n, beside, x_b, lanes, WIDE, BLOCK_N, ACC)
        squares += tl.sum(x * x, axis=0, keep_dims=True)
        if x_dot_ptr is not None:
            x_dot = tile_of(x_dot_here, start, n, x_dot_n, beside, x_dot_b, lanes, WIDE, BLOCK_N, ACC)
            of_x_dot += tl.sum(x * x_dot, axis=0, keep_dims=True)
        if u_ptr is not None:
            u = tile_of(u_here, start, n, u_n, beside, u_b, lanes, WIDE, BLOCK_N, ACC)
            of_u += tl.sum(x * u, axis=0, keep_dims=True)
            if x_dot_ptr is not None:
                of_both += tl.sum(u * x_dot, axis=0, keep_dims=True)
        if w_ptr is not None:
            w = tile_of(w_here, start, n, w_n, beside, w_b, lanes, WIDE, BLOCK_N, ACC)
            of_w += tl.sum(x * w, axis=0, keep_dims=True)
    s, c = scale_of(squares, n, eps, FLOORED)
    of_x_dot, of_u, of_w = s * of_x_dot, s * of_u, s * of_w  # with y = s x
    along = c * (of_w + s * (of_both - 3.0 * c * of_u * of_x_dot))

    for start in range(0, stop, BLOCK_N):
        row = start + tl.arange(0, BLOCK_N)[:, None]
        inside = (row < n) & lanes
        place = out_here + place_of(row, out_n, beside, out_b, WIDE)
        if not ONE_PASS:
            x = tile_of(x_here, start, n, x_n, beside, x_b, lanes, WIDE, BLOCK_N, ACC)
            if x_dot_ptr is not None:
                x_dot = tile_of(x_dot_here, start, n, x_dot_n, beside, x_dot_b, lanes, WIDE, BLOCK_N, ACC)
            if u_ptr is not None:
                u = tile_of(u_here, start, n, u_n, beside, u_b, lanes, WIDE, BLOCK_N, ACC)
            if w_ptr is not None:
                w = tile_of(w_here, start, n, w_n, beside, w_b, lanes, WIDE, BLOCK_N, ACC)
        y = s * x
        if first_ptr is not None:
            first = s * (u - c * of_u * y)
            tl.store(first_ptr + place, first.to(first_ptr.dtype.element_ty), mask=inside)
        if second_ptr is not None:
            second = s * (w - along * y - c * s * (of_x_dot * u + of_u * x_dot))
            tl.store(second_ptr + place, second.to(second_ptr.dtype.element_ty), mask=inside)
        if y_dot_ptr is not None:
            y_dot = s * (x_dot - c * of_x_dot * y)
            tl.store(y_dot_ptr + place, y_dot.to(y_dot_ptr.dtype.element_ty), mask=inside)


def axis_norm_second_order(
    x: Tensor,
    x_dot: Tensor | None,
    u: Tensor | None,
    w: Tensor | None,
    eps: float,
    floored: bool,
    wants: Bent,
    *,
    tile_limit: int | None = None,
) -> Bent:
    """Compute any of J u, J w + S(u, ẋ) and J ẋ, in one launch.

    Args:
        x: (K or 1, A, n, B), any strides, like all operands.
        x_dot: ẋ, or None for zero.
        u: What J is applied to and moved, or None for zero.
        w: What J is applied to beside it, or None for zero.
        eps: See `axis_norm`.
        floored: See `axis_norm`.
        wants: Which results.
        tile_limit: Elements of a tile at most, for tests; a power of two.

    Returns:
        The results, (K, A, n, B), contiguous, dtype of x; None where not wanted.
    """
    k = group_count(x, x_dot, u, w)
    shape = (k, *x.shape[1:])
    results = Bent(*(torch.empty(shape, dtype=x.dtype, device=x.device) if wanted else None for wanted in wants))
    if 0 in shape or not any(wants):
        return results
    tensors: list[Any] = [x, x_dot, u, w, *results]
    if x.shape[3] == 1:  # rows of a matrix, see `axis_norm`
        tensors = [None if t is None else t.transpose(1, 3) for t in tensors]
    x = tensors[0]
    _, outer, n, columns = x.shape
    options = tile_config(n, columns, x.stride(2) == 1, x.element_size(), 5, tile_limit)
    blocks = -(-columns // options["BLOCK_B"])
    out = next(t for t in tensors[4:] if t is not None)
    launch(
        _second_order_kernel,
        k * outer * blocks,
        x,
        *tensors,
        outer,
        n,
        columns,
        blocks,
        *(axis_stride(t, axis) for t in (*tensors[:4], out) for axis in range(4)),
        eps,
        FLOORED=floored,
        ACC=accumulator(x.dtype),
        WIDE=any(reaches_far(t, options) for t in tensors if t is not None),
        **options,
    )
    return results


def aot_variants() -> list[Variant]:
    """Return each kernel variant that the launcher chooses, once, for ahead-of-time compilation."""
    return variants_of(_calls())


def _calls() -> Iterator[Callable[[], object]]:
    for dtype, n, columns in (
        (torch.bfloat16, 128, 1),
        (torch.bfloat16, 512, 4096),
        (torch.float16, 30, 49),
        (torch.float32, 65536, 1),
        (torch.float64, 256, 1024),
        (torch.bfloat16, 1 << 16, 1 << 16),  # reaches beyond 2³¹
    ):
        x = torch.empty(1, 4, n, columns, dtype=dtype, device="meta")
        yield partial(axis_norm_second_order, x, x, x, x, 1e-8, True, Bent(True, True))  # noqa: FBT003
        yield partial(axis_norm_second_order, x, x, x, None, 1e-8, False, Bent(None, True, True))  # noqa: FBT003
        yield partial(axis_norm_second_order, x, None, None, x, 1e-8, True, Bent(None, True))  # noqa: FBT003
