"""Vectors along any axis divided by their length, floored or root-mean-square: Triton kernels for primal, JVP and VJP.

A vector x of n elements, its squared length q = Σ x², and

    s = 1 / max(√q, eps)  (floored),  c = 1, or 0 where √q < eps      or      s = (q/n + eps)^(-1/2),  c = 1/n

    y = s x,      J v = s (v − c ⟨y, v⟩ y)

J is symmetric, so one kernel gives ẏ = J ẋ and x̄ = J ȳ. Tensors are (K, A, n, B), K 1 against the others' K or not: the
vectors lie along the third axis, whatever its stride. Arithmetic is float64 if x is float64, else float32; results have
the dtype of x. A tile is (BLOCK_N, BLOCK_B); where n exceeds it, the kernels read a vector once more for each pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._columns import axis_stride
from ._dtypes import accumulator
from ._launch import launch
from ._layout import group_count
from ._rows import column_sums, load_tile, root
from ._variants import Variant, variants_of

_PROGRAM_REGISTERS = 96 * 32 * 16
_LONGEST_TILE = 8192


@triton.jit
def place_of(row, n_stride, beside, b_stride, WIDE: tl.constexpr):
    """Return where elements of neighbouring vectors stand behind the first; WIDE: where 32 bits are too few."""
    if WIDE:
        place = row.to(tl.int64) * n_stride + beside.to(tl.int64) * b_stride
    else:
        place = row * n_stride + beside * b_stride
    return place


@triton.jit
def tile_of(
    ptr, start, n, n_stride, beside, b_stride, lanes, WIDE: tl.constexpr, BLOCK_N: tl.constexpr, ACC: tl.constexpr
):
    """Return elements start, ... of neighbouring vectors, the first at `ptr`; 0 outside."""
    row = start + tl.arange(0, BLOCK_N)[:, None]
    return load_tile(ptr + place_of(row, n_stride, beside, b_stride, WIDE), (row < n) & lanes, ACC)


@triton.jit
def scale_of(squares, n, eps, FLOORED: tl.constexpr):
    """Return s and c of the module's docstring; a NaN length stays NaN."""
    bound = tl.full(squares.shape, eps, squares.dtype)
    one = tl.full(squares.shape, 1.0, squares.dtype)
    if FLOORED:
        length = root(squares)
        short = length < bound
        return one / tl.where(short, bound, length), tl.where(short, 0.0, one)
    else:
        return one / root(squares / n + bound), one / n


@triton.jit(do_not_specialize=["vectors", "blocks", "outer"])
def _apply_kernel(
    x_ptr,  # (K, outer, n, columns)
    v_ptr,  # (K·vectors, outer, n, columns) or None
    y_ptr,  # (K, outer, n, columns) or None
    out_ptr,  # (K·vectors, outer, n, columns) or None; strides a, n, b as y has them
    vectors,
    outer,
    n,
    columns,
    blocks,
    x_k,
    x_a,
    x_n,
    x_b,
    v_k,
    v_a,
    v_n,
    v_b,
    out_k,
    out_a,
    out_n,
    out_b,
    eps: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    MANY: tl.constexpr,
    FLOORED: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    ONE_PASS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Primal y = s x and J v = s (v − c ⟨y, v⟩ y).

    One program: BLOCK_B neighbouring vectors and all that J is applied to: one v a k or, if MANY, K = 1 with `vectors`
    of them. Moves (1 + one for y + 2·vectors)·size bytes an element of x; vectors longer than a tile are read twice.
    """
    program = tl.program_id(0)
    first = program % blocks * BLOCK_B
    beside = tl.arange(0, BLOCK_B)[None, :]
    b = first.to(tl.int64)
    a = (program // blocks % outer).to(tl.int64)
    k = (program // blocks // outer).to(tl.int64)
    lanes = beside < columns - first
    x_here = x_ptr + k * x_k + a * x_a + b * x_b
    stop = BLOCK_N if ONE_PASS else n

    x = tl.zeros([BLOCK_N, BLOCK_B], ACC)
    v = tl.zeros([BLOCK_N, BLOCK_B], ACC)
    squares = tl.zeros([1, BLOCK_B], ACC)
    inner = tl.zeros([1, BLOCK_B], ACC)  # Σ x v
    for start in range(0, stop, BLOCK_N):
        x = tile_of(x_here, start, n, x_n, beside, x_b, lanes, WIDE, BLOCK_N, ACC)
        if v_ptr is not None and not MANY:
            v = tile_of(v_ptr + k * v_k + a * v_a + b * v_b, start, n, v_n, beside, v_b, lanes, WIDE, BLOCK_N, ACC)
            squares_here, inner_here = column_sums(x * x, x * v)
            squares += squares_here
            inner += inner_here
        else:
            squares += tl.sum(x * x, axis=0, keep_dims=True)
    s, c = scale_of(squares, n, eps, FLOORED)
    if y_ptr is not None:
        y_here = y_ptr + k * out_k + a * out_a + b * out_b
        for start in range(0, stop, BLOCK_N):
            if not ONE_PASS:
                x = tile_of(x_here, start, n, x_n, beside, x_b, lanes, WIDE, BLOCK_N, ACC)
            row = start + tl.arange(0, BLOCK_N)[:, None]
            place = y_here + place_of(row, out_n, beside, out_b, WIDE)
            tl.store(place, (s * x).to(y_ptr.dtype.element_ty), mask=(row < n) & lanes)
    if v_ptr is not None:
        for t in range(0, vectors if MANY else 1):
            kt = k + t
            v_here = v_ptr + kt * v_k + a * v_a + b * v_b
            out_here = out_ptr + kt * out_k + a * out_a + b * out_b
            if MANY:
                inner = tl.zeros([1, BLOCK_B], ACC)
                for start in range(0, stop, BLOCK_N):
                    if not ONE_PASS:
                        x = tile_of(x_here, start, n, x_n, beside, x_b, lanes, WIDE, BLOCK_N, ACC)
                    v = tile_of(v_here, start, n, v_n, beside, v_b, lanes, WIDE, BLOCK_N, ACC)
                    inner += tl.sum(x * v, axis=0, keep_dims=True)
            along = s * c * (s * inner)  # s c ⟨y, v⟩
            for start in range(0, stop, BLOCK_N):
                if not ONE_PASS:
                    x = tile_of(x_here, start, n, x_n, beside, x_b, lanes, WIDE, BLOCK_N, ACC)
                    v = tile_of(v_here, start, n, v_n, beside, v_b, lanes, WIDE, BLOCK_N, ACC)
                row = start + tl.arange(0, BLOCK_N)[:, None]
                place = out_here + place_of(row, out_n, beside, out_b, WIDE)
                out = s * v - along * (s * x)
                tl.store(place, out.to(out_ptr.dtype.element_ty), mask=(row < n) & lanes)


def axis_norm(
    x: Tensor, v: Tensor | None, eps: float, floored: bool, *, wants_y: bool, tile_limit: int | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Compute y = s x and J v, either or both, one launch.

    Where all K of x share their memory (K = 1 or a stride of 0), a program reads a vector of it once for all v.

    Args:
        x: (K or 1, A, n, B), any strides.
        v: (K or 1, A, n, B), a tangent or a cotangent, or None.
        eps: The floor of the length, or what is added to the mean square.
        floored: Which of the two.
        wants_y: Whether to compute y.
        tile_limit: Elements of a tile at most, for tests; a power of two.

    Returns:
        y with as many K as x, or None; J v with all K, or None; contiguous, dtype of x.
    """
    if v is not None and v.shape[0] == 0 and wants_y:
        return axis_norm(x, None, eps, floored, wants_y=True)[0], torch.empty_like(v)
    k = group_count(x, v)
    many = v is not None and k > 1 and axis_stride(x, 0) == 0
    k_x = 1 if many else k
    y = torch.empty((k_x, *x.shape[1:]), dtype=x.dtype, device=x.device) if wants_y else None
    out = torch.empty((k, *x.shape[1:]), dtype=x.dtype, device=x.device) if v is not None else None
    if x.numel() and k:
        _launch(x, v, y, out, k, eps, floored, many, tile_limit)
    return None if y is None else y[: x.shape[0]].expand(x.shape), out


def _launch(
    x: Tensor,
    v: Tensor | None,
    y: Tensor | None,
    out: Tensor | None,
    k: int,
    eps: float,
    floored: bool,
    many: bool,
    tile_limit: int | None,
) -> None:
    if x.shape[3] == 1:  # rows of a matrix: vectors side by side, so that a tile holds several
        x, v, y, out = (None if t is None else t.transpose(1, 3) for t in (x, v, y, out))  # pyright: ignore[reportAssignmentType]
    result = y if out is None else out
    assert result is not None
    _, outer, n, columns = x.shape
    options = tile_config(n, columns, x.stride(2) == 1, x.element_size(), 3 + many, tile_limit)
    blocks = -(-columns // options["BLOCK_B"])
    launch(
        _apply_kernel,
        (1 if many else k) * outer * blocks,
        x,
        x,
        v,
        y,
        out,
        k,
        outer,
        n,
        columns,
        blocks,
        *_strides(x),
        *_strides(v),
        *_strides(result),
        eps,
        MANY=many,
        FLOORED=floored,
        ACC=accumulator(x.dtype),
        WIDE=any(reaches_far(t, options) for t in (x, v, y, out) if t is not None),
        **options,
    )


def _strides(tensor: Tensor | None) -> list[int]:
    """Strides of all axes; 0 where an axis has one element: any other number could hide that addresses are aligned."""
    return [axis_stride(tensor, axis) for axis in range(4)]


def reaches_far(tensor: Tensor, options: dict[str, int | bool]) -> bool:
    """Whether elements that a program looks at may be 2³¹ or more behind its first."""
    _, _, n_stride, b_stride = tensor.stride()
    length = max(tensor.shape[2], int(options["BLOCK_N"]))
    return (length + int(options["BLOCK_N"])) * n_stride + int(options["BLOCK_B"]) * b_stride >= 2**31


@functools.cache
def tile_config(
    n: int, columns: int, along: bool, itemsize: int, tiles: int, limit: int | None
) -> dict[str, int | bool]:
    """Tile and warps; `along` says that a vector's elements are adjacent in memory, else neighbouring vectors are."""
    registers = _PROGRAM_REGISTERS // (tiles * (3 if itemsize == 8 else 1))
    longest = min(_LONGEST_TILE, 1 << (registers.bit_length() - 1)) if limit is None else limit
    whole = triton.next_power_of_2(n)
    # Neighbouring vectors fill the lanes of a warp where elements do not, at a whole sector of memory each.
    lanes = min(triton.next_power_of_2(columns), max(1, 1024 // whole) if along else 32)
    # Few warps, which wait for each other when they add up; see `row_config`.
    per_thread = 32 if tiles <= 3 and itemsize < 8 else 16
    one_pass = whole * lanes <= longest
    block_n = whole if one_pass else max(1, longest // 2 // lanes)
    return {
        "ONE_PASS": one_pass,
        "BLOCK_N": block_n,
        "BLOCK_B": lanes,
        "num_warps": min(16, max(1, block_n * lanes // (32 * per_thread))),
        "num_stages": 1,
        "enable_fp_fusion": True,  # said, because the default differs between Triton versions
    }


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
        for floored in (True, False):
            yield partial(axis_norm, x, None, 1e-8, floored, wants_y=True)
            yield partial(axis_norm, x, x, 1e-8, floored, wants_y=True)
            yield partial(axis_norm, x, x, 1e-8, floored, wants_y=False)
        yield partial(axis_norm, x, x.expand(3, -1, -1, -1), 1e-8, True, wants_y=True)
        yield partial(axis_norm, x, x.expand(3, -1, -1, -1), 1e-8, True, wants_y=False)
