"""Group norm, primal: y = f(x̂ w + b), and the moments m and r."""

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
)


@triton.jit(do_not_specialize=["samples", "groups"])
def _forward_kernel(
    x_ptr,  # (K, samples, C, S), or (K, samples, S, C)
    w_ptr,  # (K, C) or None
    b_ptr,  # (K, C) or None
    y_ptr,  # as x, contiguous
    mean_ptr,  # (K, samples, groups), contiguous
    rstd_ptr,  # (K, samples, groups), contiguous
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
    eps: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
    ONE_PASS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Primal: y = f(x̂ w + b), m, r. One program: one group. Moves 2·size bytes an element (3 if groups are long)."""
    k, sample, g = program_group(samples, groups)
    first = g * channels  # channel of the sample
    x_group = x_ptr + k * x_k + sample * x_sample + first * c_stride
    y_group = y_ptr + (k * samples + sample) * groups * channels * sites + first * c_stride
    w_group = None if w_ptr is None else w_ptr + k * w_k + first
    b_group = None if b_ptr is None else b_ptr + k * b_k + first

    found = moments(x_group, None, channels, sites, c_stride, s_stride, eps, ACC, ONE_PASS, EVEN, BLOCK_C, BLOCK_S)
    x = found[0]
    mean = found[1]
    r = found[2]
    place = (k * samples + sample) * groups + g
    tl.store(mean_ptr + place, mean)
    tl.store(rstd_ptr + place, r)
    c_stop = BLOCK_C if ONE_PASS else channels
    s_stop = BLOCK_S if ONE_PASS else sites
    for c0 in range(0, c_stop, BLOCK_C):
        for s0 in range(0, s_stop, BLOCK_S):
            offsets, inside, c = tile(c0, s0, channels, sites, c_stride, s_stride, EVEN, BLOCK_C, BLOCK_S)
            w = load_channels(w_group, c, channels, 1.0, ACC)
            b = load_channels(b_group, c, channels, 0.0, ACC)
            if not ONE_PASS:
                x = load_tile(x_group + offsets, inside, ACC)
            y, _, _, _ = jet((x - mean) * r * w + b, 0.0, 0.0, ACTIVATION, False)  # pyright: ignore[reportArgumentType]
            tl.store(y_group + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)


def group_norm_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    channels_last: bool,
    eps: float,
    activation: str,
    *,
    block_limit: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y = f(x̂ w + b), one launch.

    Args:
        x: (K or 1, N, C, S), or (K or 1, N, S, C) if channels_last.
        weight: (K or 1, C), or None for all ones.
        bias: (K or 1, C), or None for zeros.
        num_groups: Groups of a sample, a divisor of C.
        channels_last: Where the channels are.
        eps: Added to the variance.
        activation: Name of f in `_jets`: "identity" or "silu".
        block_limit: Largest tile, for tests.

    Returns:
        y, as x with K, contiguous; m and r, (K of x, N, num_groups).
    """
    sizes = Sizes.of(x, num_groups, channels_last)
    k = group_count(x, weight, bias)
    y = torch.empty((k, *x.shape[1:]), dtype=x.dtype, device=x.device)
    # With K only in the weights every k writes the moments anew; they are x's own, so the first of them is returned.
    mean, rstd = (
        torch.empty((k, sizes.samples, num_groups), dtype=partial_dtype(x.dtype), device=x.device) for _ in range(2)
    )
    if y.numel() == 0:
        return y, mean[: x.shape[0]].fill_(float("nan")), rstd[: x.shape[0]].fill_(float("nan"))
    x, weight, bias = dense_samples(x), unit_columns(weight), unit_columns(bias)
    tiles = 2 + (activation != "identity")
    launch(
        _forward_kernel,
        k * sizes.samples * num_groups,
        x,
        x,
        weight,
        bias,
        y,
        mean,
        rstd,
        sizes.samples,
        num_groups,
        sizes.channels,
        sizes.sites,
        *sizes.strides,
        *outer_strides(x),
        group_stride(weight),
        group_stride(bias),
        eps,
        ACTIVATION=activation,
        ACC=accumulator(x.dtype),
        **tile_config(sizes.channels, sizes.sites, channels_last, x.element_size(), tiles, block_limit),
    )
    return y, mean[: x.shape[0]], rstd[: x.shape[0]]
