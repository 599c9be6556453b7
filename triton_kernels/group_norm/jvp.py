"""Group norm, primal and tangents in one launch: y = f(z), ẏ = f′(z) ((v − mean(v) − mean(x̂ v) x̂) w + x̂ ẇ + ḃ)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dtypes import accumulator, partial_dtype
from .._jets import jet
from .._launch import launch
from .._layout import group_count, group_stride, unit_columns
from .._rows import load_tile
from ._tiles import (
    Sizes,
    dense_samples,
    load_channels,
    moments,
    outer_strides,
    program_group,
    tile,
    tile_config,
    tile_sums,
)
from .forward import group_norm_forward


@triton.jit(do_not_specialize=["tangents", "samples", "groups"])
def _jvp_kernel(
    x_ptr,  # (K, samples, C, S), or (K, samples, S, C); K is 1 if MANY
    w_ptr,  # (K, C) or None
    b_ptr,  # (K, C) or None
    x_dot_ptr,  # (K·tangents, ...) as x, or None
    w_dot_ptr,  # (K·tangents, C) or None
    b_dot_ptr,  # (K·tangents, C) or None
    y_ptr,  # as x, contiguous
    mean_ptr,  # (K, samples, groups), contiguous
    rstd_ptr,  # (K, samples, groups), contiguous
    y_dot_ptr,  # (K·tangents, ...) as x, contiguous
    tangents,
    samples,
    groups,
    channels,
    sites,
    c_stride,
    s_stride,
    x_k,
    x_sample,
    w_k,
    b_k,
    x_dot_k,
    x_dot_sample,
    w_dot_k,
    b_dot_k,
    eps: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    MANY: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
    ONE_PASS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Primal and tangents: y = f(z), ẏ = f′(z) ż.

    One program: one group and all its tangents: one a k or, if MANY, K = 1 with `tangents` of them. Moves
    (2 + 2·tangents)·size bytes an element of x; groups longer than a tile read x and ẋ twice, x 1 + 2·tangents times if
    MANY.
    """
    k, sample, g = program_group(samples, groups)
    first = g * channels  # channel of the sample
    x_group = x_ptr + k * x_k + sample * x_sample + first * c_stride
    y_group = y_ptr + (k * samples + sample) * groups * channels * sites + first * c_stride
    w_group = None if w_ptr is None else w_ptr + k * w_k + first
    b_group = None if b_ptr is None else b_ptr + k * b_k + first

    first_x_dot = None
    if x_dot_ptr is not None and not MANY:
        first_x_dot = x_dot_ptr + k * x_dot_k + sample * x_dot_sample + first * c_stride
    x, mean, r, x_dot, total, inner = moments(
        x_group, first_x_dot, channels, sites, c_stride, s_stride, eps, ACC, ONE_PASS, EVEN, BLOCK_C, BLOCK_S
    )
    place = (k * samples + sample) * groups + g
    tl.store(mean_ptr + place, mean)
    tl.store(rstd_ptr + place, r)
    size = tl.full([], channels, ACC) * sites
    c_stop = BLOCK_C if ONE_PASS else channels
    s_stop = BLOCK_S if ONE_PASS else sites
    for t in range(0, tangents if MANY else 1):
        kt = k + t
        x_dot_group = None if x_dot_ptr is None else x_dot_ptr + kt * x_dot_k + sample * x_dot_sample + first * c_stride
        w_dot_group = None if w_dot_ptr is None else w_dot_ptr + kt * w_dot_k + first
        b_dot_group = None if b_dot_ptr is None else b_dot_ptr + kt * b_dot_k + first
        y_dot_group = y_dot_ptr + (kt * samples + sample) * groups * channels * sites + first * c_stride
        if x_dot_ptr is not None and MANY:
            total = tl.full([], 0.0, ACC)  # Σ ẋ
            inner = tl.full([], 0.0, ACC)  # Σ (x − m) ẋ
            for c0 in range(0, c_stop, BLOCK_C):
                for s0 in range(0, s_stop, BLOCK_S):
                    offsets, inside, c = tile(c0, s0, channels, sites, c_stride, s_stride, EVEN, BLOCK_C, BLOCK_S)
                    if not ONE_PASS:
                        x = load_tile(x_group + offsets, inside, ACC)
                    x_dot = load_tile(x_dot_group + offsets, inside, ACC)
                    total_here, inner_here = tile_sums(x_dot, (x - mean) * x_dot)
                    total += total_here
                    inner += inner_here
        mean_v = r * total / size
        mean_xv = r * r * inner / size
        for c0 in range(0, c_stop, BLOCK_C):
            for s0 in range(0, s_stop, BLOCK_S):
                offsets, inside, c = tile(c0, s0, channels, sites, c_stride, s_stride, EVEN, BLOCK_C, BLOCK_S)
                w = load_channels(w_group, c, channels, 1.0, ACC)
                b = load_channels(b_group, c, channels, 0.0, ACC)
                if not ONE_PASS:
                    x = load_tile(x_group + offsets, inside, ACC)
                x_hat = (x - mean) * r
                y, slope, _, _ = jet(x_hat * w + b, 0.0, 0.0, ACTIVATION, False)  # pyright: ignore[reportArgumentType]
                z_dot = tl.zeros([BLOCK_C, BLOCK_S], ACC)
                if x_dot_ptr is not None:
                    if not ONE_PASS:
                        x_dot = load_tile(x_dot_group + offsets, inside, ACC)
                    z_dot += (r * x_dot - mean_v - mean_xv * x_hat) * w
                if w_dot_ptr is not None:
                    z_dot += x_hat * load_channels(w_dot_group, c, channels, 0.0, ACC)
                if b_dot_ptr is not None:
                    z_dot += load_channels(b_dot_group, c, channels, 0.0, ACC)
                tl.store(y_dot_group + offsets, (slope * z_dot).to(y_dot_ptr.dtype.element_ty), mask=inside)
                if MANY:
                    inside = inside & (t == 0)
                tl.store(y_group + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)


def group_norm_jvp(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    x_dot: Tensor | None,
    weight_dot: Tensor | None,
    bias_dot: Tensor | None,
    num_groups: int,
    channels_last: bool,
    eps: float,
    activation: str,
    *,
    block_limit: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute y = f(z) and ẏ = f′(z) ż, one launch.

    Where all K of the primal share their memory (K = 1 or a stride of 0), a program reads a group of it once for all
    tangents, and y is computed once.

    Args:
        x: (K or 1, N, C, S), or (K or 1, N, S, C) if channels_last.
        weight: (K or 1, C), or None for all ones.
        bias: (K or 1, C), or None for zeros.
        x_dot: As x, or None for zero.
        weight_dot: As weight, or None for zero.
        bias_dot: As bias, or None for zero.
        num_groups: Groups of a sample, a divisor of C.
        channels_last: Where the channels are.
        eps: Added to the variance.
        activation: Name of f in `_jets`: "identity" or "silu".
        block_limit: Largest tile, for tests.

    Returns:
        y, with as many K as x, weight and bias have; m and r, (K of x, N, num_groups); ẏ with all K.
    """
    sizes = Sizes.of(x, num_groups, channels_last)
    primal_k, k = group_count(x, weight, bias), group_count(x, weight, bias, x_dot, weight_dot, bias_dot)
    y_dot = torch.empty((k, *x.shape[1:]), dtype=x.dtype, device=x.device)
    if y_dot.numel() == 0 or (x_dot is None and weight_dot is None and bias_dot is None):
        forward = group_norm_forward(
            x, weight, bias, num_groups, channels_last, eps, activation, block_limit=block_limit
        )
        return *forward, y_dot.zero_()
    x_groups = x.shape[0]
    x, x_dot = dense_samples(x), dense_samples(x_dot)
    weight, bias, weight_dot, bias_dot = (unit_columns(t) for t in (weight, bias, weight_dot, bias_dot))
    x_strides, w_k, b_k = outer_strides(x), group_stride(weight), group_stride(bias)
    shared = x_strides[0] == 0 and w_k == 0 and b_k == 0
    many = shared and k > 1
    y = torch.empty((1 if shared else k, *x.shape[1:]), dtype=x.dtype, device=x.device)
    mean, rstd = (
        torch.empty((y.shape[0], sizes.samples, num_groups), dtype=partial_dtype(x.dtype), device=x.device)
        for _ in range(2)
    )
    launch(
        _jvp_kernel,
        y.shape[0] * sizes.samples * num_groups,
        x,
        x,
        weight,
        bias,
        x_dot,
        weight_dot,
        bias_dot,
        y,
        mean,
        rstd,
        y_dot,
        k,
        sizes.samples,
        num_groups,
        sizes.channels,
        sizes.sites,
        *sizes.strides,
        *x_strides,
        w_k,
        b_k,
        *outer_strides(x_dot),
        group_stride(weight_dot),
        group_stride(bias_dot),
        eps,
        MANY=many,
        ACTIVATION=activation,
        ACC=accumulator(x.dtype),
        **tile_config(sizes.channels, sizes.sites, channels_last, x.element_size(), 4 + many, block_limit),
    )
    mean, rstd = (m[:x_groups].expand(x_groups, -1, -1) for m in (mean, rstd))
    return y if y.shape[0] == primal_k else y.expand(primal_k, *y.shape[1:]), mean, rstd, y_dot
