"""Group norm, cotangents pulled back: x̄ = r (g − mean(g) − mean(x̂ g) x̂), w̄ = Σ x̂ z̄, b̄ = Σ z̄, z̄ = f′(z) ȳ, g = w z̄."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dtypes import accumulator, partial_dtype
from .._jets import jet
from .._launch import launch
from .._layout import group_stride, unit_columns
from .._partials import partial_sums, sum_partials
from .._rows import load_tile, row_pairs
from ._tiles import (
    Sizes,
    dense_samples,
    load_channels,
    outer_strides,
    program_group,
    tile,
    tile_config,
)


@triton.jit
def _normalised(x_group, y_bar_group, offsets, inside, mean, r, w, b, ACTIVATION: tl.constexpr, ACC: tl.constexpr):
    """Return the tile's x̂, and z̄ = f′(x̂ w + b) ȳ, which is 0 outside."""
    x = load_tile(x_group + offsets, inside, ACC)
    y_bar = load_tile(y_bar_group + offsets, inside, ACC)
    x_hat = tl.where(inside, (x - mean) * r, 0.0)
    _, slope, _, _ = jet(x_hat * w + b, 0.0, 0.0, ACTIVATION, False)  # pyright: ignore[reportArgumentType]
    return x_hat, slope * y_bar


@triton.jit(do_not_specialize=["samples", "groups"])
def _vjp_kernel(
    y_bar_ptr,  # (K, samples, C, S), or (K, samples, S, C)
    x_ptr,  # likewise
    w_ptr,  # (K, C) or None
    b_ptr,  # (K, C) or None
    mean_ptr,  # (K, samples, groups)
    rstd_ptr,  # (K, samples, groups)
    x_bar_ptr,  # as ȳ, contiguous, or None
    w_bar_ptr,  # (K, samples, C), contiguous, or None
    b_bar_ptr,  # (K, samples, C), contiguous, or None
    samples,
    groups,
    channels,
    sites,
    c_stride,
    s_stride,
    y_bar_k,
    y_bar_sample,
    x_k,
    x_sample,
    w_k,
    b_k,
    moments_k,
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
    ONE_PASS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Cotangents: x̄ = r (g − mean(g) − mean(x̂ g) x̂), and this sample's share of w̄ = Σ x̂ z̄ and b̄ = Σ z̄.

    One program: one group of one k. Moves 3·size bytes an element of x, one less without x̄; groups longer than a tile
    read x and ȳ twice. The sums over sites give both means too: Σ g = Σ_channels w b̄, Σ x̂ g = Σ_channels w w̄.
    """
    k, sample, g = program_group(samples, groups)
    first = g * channels  # channel of the sample
    x_group = x_ptr + k * x_k + sample * x_sample + first * c_stride
    y_bar_group = y_bar_ptr + k * y_bar_k + sample * y_bar_sample + first * c_stride
    w_group = None if w_ptr is None else w_ptr + k * w_k + first
    b_group = None if b_ptr is None else b_ptr + k * b_k + first
    place = k * moments_k + sample * groups + g
    mean = tl.load(mean_ptr + place).to(ACC)
    r = tl.load(rstd_ptr + place).to(ACC)
    out_sample = k * samples + sample

    c_stop = BLOCK_C if ONE_PASS else channels
    s_stop = BLOCK_S if ONE_PASS else sites
    x_hat = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    z_bar = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    w = tl.zeros([BLOCK_C, 1], ACC)
    sum_g = tl.full([], 0.0, ACC)
    sum_xg = tl.full([], 0.0, ACC)
    for c0 in range(0, c_stop, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)[:, None]
        w = load_channels(w_group, c, channels, 1.0, ACC)
        b = load_channels(b_group, c, channels, 0.0, ACC)
        total = tl.zeros([BLOCK_C, BLOCK_S], ACC)
        inner = tl.zeros([BLOCK_C, BLOCK_S], ACC)
        for s0 in range(0, s_stop, BLOCK_S):
            offsets, inside, c = tile(c0, s0, channels, sites, c_stride, s_stride, EVEN, BLOCK_C, BLOCK_S)
            x_hat, z_bar = _normalised(x_group, y_bar_group, offsets, inside, mean, r, w, b, ACTIVATION, ACC)
            if ONE_PASS:  # 0 + z̄ would be an instruction
                total = z_bar
                inner = x_hat * z_bar
            else:
                total += z_bar
                inner += x_hat * z_bar
        bars = row_pairs(inner, total)
        w_bar, b_bar = tl.split(bars)
        w_bar = w_bar[:, None]
        b_bar = b_bar[:, None]
        total_xg, total_g = tl.split(tl.sum(w * bars, axis=0))
        sum_g += total_g
        sum_xg += total_xg
        channel = out_sample * groups * channels + first + c
        if w_bar_ptr is not None:
            tl.store(w_bar_ptr + channel, w_bar.to(w_bar_ptr.dtype.element_ty), mask=c < channels)
        if b_bar_ptr is not None:
            tl.store(b_bar_ptr + channel, b_bar.to(b_bar_ptr.dtype.element_ty), mask=c < channels)

    if x_bar_ptr is not None:
        size = tl.full([], channels, ACC) * sites
        r_mean_g = r * (sum_g / size)
        r_mean_xg = r * (sum_xg / size)
        x_bar_group = x_bar_ptr + out_sample * groups * channels * sites + first * c_stride
        for c0 in range(0, c_stop, BLOCK_C):
            for s0 in range(0, s_stop, BLOCK_S):
                offsets, inside, c = tile(c0, s0, channels, sites, c_stride, s_stride, EVEN, BLOCK_C, BLOCK_S)
                if not ONE_PASS:
                    w = load_channels(w_group, c, channels, 1.0, ACC)
                    b = load_channels(b_group, c, channels, 0.0, ACC)
                    x_hat, z_bar = _normalised(x_group, y_bar_group, offsets, inside, mean, r, w, b, ACTIVATION, ACC)
                x_bar = (r * w) * z_bar - r_mean_g - r_mean_xg * x_hat
                tl.store(x_bar_group + offsets, x_bar.to(x_bar_ptr.dtype.element_ty), mask=inside)


def group_norm_vjp(
    y_bar: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    num_groups: int,
    channels_last: bool,
    activation: str,
    needs: tuple[bool, bool, bool],
    *,
    block_limit: int | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute x̄, w̄ and b̄: one launch, and one for each weight gradient to add up the samples in a fixed order.

    Args:
        y_bar: (K, N, C, S), or (K, N, S, C) if channels_last.
        x: (K or 1, ...), as y_bar.
        weight: (K or 1, C), or None for all ones.
        bias: (K or 1, C), or None for zeros.
        mean: m, (K or 1, N, num_groups), of the arithmetic's dtype.
        rstd: r, likewise.
        num_groups: Groups of a sample, a divisor of C.
        channels_last: Where the channels are.
        activation: Name of f in `_jets`: "identity" or "silu".
        needs: Whether to compute x̄, w̄ and b̄; without a weight or bias there is none.
        block_limit: Largest tile, for tests.

    Returns:
        x̄, as y_bar; w̄ and b̄ of the dtype and shape of weight and bias: per k if those have K, summed over K if one.
    """
    sizes = Sizes.of(x, num_groups, channels_last)
    k = y_bar.shape[0]
    x_bar = torch.empty(y_bar.shape, dtype=x.dtype, device=x.device) if needs[0] else None
    w_bar, b_bar = (
        torch.empty(t.shape, dtype=t.dtype, device=x.device) if needed and t is not None else None
        for t, needed in ((weight, needs[1]), (bias, needs[2]))
    )
    if y_bar.numel() == 0:
        return x_bar, None if w_bar is None else w_bar.zero_(), None if b_bar is None else b_bar.zero_()
    if x_bar is None and w_bar is None and b_bar is None:
        return None, None, None
    y_bar, x = dense_samples(y_bar), dense_samples(x)
    weight, bias, mean, rstd = unit_columns(weight), unit_columns(bias), mean.contiguous(), rstd.contiguous()
    w_partial, b_partial = (
        None if out is None else partial_sums(k, sizes.samples, out, partial_dtype(x.dtype)) for out in (w_bar, b_bar)
    )
    launch(
        _vjp_kernel,
        k * sizes.samples * num_groups,
        x,
        y_bar,
        x,
        weight,
        bias if activation != "identity" else None,  # only f′ reads it
        mean,
        rstd,
        x_bar,
        w_partial,
        b_partial,
        sizes.samples,
        num_groups,
        sizes.channels,
        sizes.sites,
        *sizes.strides,
        *outer_strides(y_bar),
        *outer_strides(x),
        group_stride(weight),
        group_stride(bias),
        group_stride(mean),
        ACTIVATION=activation,
        ACC=accumulator(x.dtype),
        **tile_config(sizes.channels, sizes.sites, channels_last, x.element_size(), 4, block_limit),
    )
    for partial, out in ((w_partial, w_bar), (b_partial, b_bar)):
        if partial is not None and out is not None:
            sum_partials(partial, out)
    return x_bar, w_bar, b_bar
