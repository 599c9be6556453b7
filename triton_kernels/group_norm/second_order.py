"""Group norm, the derivatives of ⟨a, ẏ⟩ and all that is read along with them: one kernel for the second order."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .._dtypes import accumulator, partial_dtype
from .._jets import jet
from .._launch import launch
from .._layout import group_count, group_stride, unit_columns
from .._partials import partial_sums, sum_partials
from .._second import Second, second_results
from ._tiles import (
    Sizes,
    dense_samples,
    load_channels,
    outer_strides,
    program_group,
    tile,
    tile_config,
    tile_sum,
)


@triton.jit
def _moved(
    x_group,
    x_dot_group,
    a_group,
    y_bar_group,
    offsets,
    inside,
    mean,
    r,
    mean_v,
    mu,
    w,
    b,
    w_dot,
    b_dot,
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
):
    """Return the tile's x̂, û, α, β and ẏ; 0 outside, but for ẏ."""
    x = tl.load(x_group + offsets, mask=inside, other=0.0).to(ACC)
    a = tl.load(a_group + offsets, mask=inside, other=0.0).to(ACC)
    x_hat = tl.where(inside, (x - mean) * r, 0.0)
    u = tl.zeros(x.shape, ACC)
    if x_dot_group is not None:
        x_dot = tl.load(x_dot_group + offsets, mask=inside, other=0.0).to(ACC)
        u = tl.where(inside, r * x_dot - mean_v - mu * x_hat, 0.0)
    _, slope, bend, _ = jet(x_hat * w + b, 0.0, 0.0, ACTIVATION, False)  # pyright: ignore[reportArgumentType]
    z_dot = u * w + x_hat * w_dot + b_dot
    beta = a * bend * z_dot
    if y_bar_group is not None:
        beta += slope * tl.load(y_bar_group + offsets, mask=inside, other=0.0).to(ACC)
    return x_hat, u, slope * a, beta, slope * z_dot


@triton.jit(do_not_specialize=["samples", "groups"])
def _second_order_kernel(
    x_ptr,  # (K, samples, C, S), or (K, samples, S, C), like all rows
    w_ptr,  # (K, C) or None, like the next
    b_ptr,
    x_dot_ptr,  # rows, or None
    w_dot_ptr,  # (K, C) or None, like the next
    b_dot_ptr,
    a_ptr,  # rows: cotangent of ẏ
    y_bar_ptr,  # rows or None: cotangent of y
    mean_ptr,  # (K, samples, groups)
    rstd_ptr,  # (K, samples, groups)
    x_first_ptr,  # rows, contiguous, or None, like the next two
    x_second_ptr,
    y_dot_ptr,
    w_first_ptr,  # (K, samples, C), contiguous, or None, like the next three
    w_second_ptr,
    b_first_ptr,
    b_second_ptr,
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
    a_k,
    a_sample,
    y_bar_k,
    y_bar_sample,
    moments_k,
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
    ONE_PASS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Any of the seven results of `group_norm_second_order`, from one reading of the operands.

    With α = f′(z) a, β = f′(z) ȳ + f″(z) ż a, û = v − mean(v) − μ x̂, μ = mean(x̂ v), and the means of a group
    G = mean(w α), B = mean(x̂ w α), U = mean(û w α), H = mean(w β + ẇ α), F = mean(x̂ (w β + ẇ α)):

        x_first  = r (w α − G − B x̂)                                      w_first  = Σ α x̂        bias_first  = Σ α
        x_second = r (w β + ẇ α − H − (F + U − μ B) x̂ − B û − μ (w α − G))  w_second = Σ β x̂ + α û  bias_second = Σ β
        y_dot    = f′(z) (û w + x̂ ẇ + ḃ)

    One program: one group of one k. Moves (operands + results)·size bytes an element; groups longer than a tile read
    x and ẋ three times, a and ȳ twice. The sums over sites give the means too, as in the pullback.
    """
    k, sample, g = program_group(samples, groups)
    first = g * channels  # channel of the sample
    x_group = x_ptr + k * x_k + sample * x_sample + first * c_stride
    a_group = a_ptr + k * a_k + sample * a_sample + first * c_stride
    x_dot_group = None if x_dot_ptr is None else x_dot_ptr + k * x_dot_k + sample * x_dot_sample + first * c_stride
    y_bar_group = None if y_bar_ptr is None else y_bar_ptr + k * y_bar_k + sample * y_bar_sample + first * c_stride
    w_group = None if w_ptr is None else w_ptr + k * w_k + first
    b_group = None if b_ptr is None else b_ptr + k * b_k + first
    w_dot_group = None if w_dot_ptr is None else w_dot_ptr + k * w_dot_k + first
    b_dot_group = None if b_dot_ptr is None else b_dot_ptr + k * b_dot_k + first
    place = k * moments_k + sample * groups + g
    mean = tl.load(mean_ptr + place).to(ACC)
    r = tl.load(rstd_ptr + place).to(ACC)
    out = k * samples + sample
    size = tl.full([], channels, ACC) * sites
    c_stop = BLOCK_C if ONE_PASS else channels
    s_stop = BLOCK_S if ONE_PASS else sites

    total = tl.full([], 0.0, ACC)  # Σ ẋ
    inner = tl.full([], 0.0, ACC)  # Σ x̂ ẋ
    if x_dot_ptr is not None:
        for c0 in range(0, c_stop, BLOCK_C):
            for s0 in range(0, s_stop, BLOCK_S):
                offsets, inside, c = tile(c0, s0, channels, sites, c_stride, s_stride, EVEN, BLOCK_C, BLOCK_S)
                x = tl.load(x_group + offsets, mask=inside, other=0.0).to(ACC)
                x_dot = tl.load(x_dot_group + offsets, mask=inside, other=0.0).to(ACC)
                total += tile_sum(x_dot)
                inner += tile_sum((x - mean) * r * x_dot)
    mean_v = r * total / size
    mu = r * inner / size

    x_hat = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    u = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    alpha = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    beta = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    y_dot = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    w = tl.zeros([BLOCK_C, 1], ACC)
    w_dot = tl.zeros([BLOCK_C, 1], ACC)
    sum_g = tl.full([], 0.0, ACC)
    sum_xg = tl.full([], 0.0, ACC)
    sum_ug = tl.full([], 0.0, ACC)
    sum_h = tl.full([], 0.0, ACC)
    sum_xh = tl.full([], 0.0, ACC)
    for c0 in range(0, c_stop, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)[:, None]
        w = load_channels(w_group, c, channels, 1.0, ACC)
        b = load_channels(b_group, c, channels, 0.0, ACC)
        w_dot = load_channels(w_dot_group, c, channels, 0.0, ACC)
        b_dot = load_channels(b_dot_group, c, channels, 0.0, ACC)
        of_a = tl.zeros([BLOCK_C, 1], ACC)  # sums over sites: of α, α x̂, α û, β and β x̂
        of_ax = tl.zeros([BLOCK_C, 1], ACC)
        of_au = tl.zeros([BLOCK_C, 1], ACC)
        of_b = tl.zeros([BLOCK_C, 1], ACC)
        of_bx = tl.zeros([BLOCK_C, 1], ACC)
        for s0 in range(0, s_stop, BLOCK_S):
            offsets, inside, c = tile(c0, s0, channels, sites, c_stride, s_stride, EVEN, BLOCK_C, BLOCK_S)
            x_hat, u, alpha, beta, y_dot = _moved(
                x_group,
                x_dot_group,
                a_group,
                y_bar_group,
                offsets,
                inside,
                mean,
                r,
                mean_v,
                mu,
                w,
                b,
                w_dot,
                b_dot,
                ACTIVATION,
                ACC,
            )
            of_a += tl.sum(alpha, axis=1, keep_dims=True)
            of_ax += tl.sum(alpha * x_hat, axis=1, keep_dims=True)
            of_b += tl.sum(beta, axis=1, keep_dims=True)
            of_bx += tl.sum(beta * x_hat, axis=1, keep_dims=True)
            if x_dot_ptr is not None:
                of_au += tl.sum(alpha * u, axis=1, keep_dims=True)
        sum_g += tile_sum(w * of_a)
        sum_xg += tile_sum(w * of_ax)
        sum_ug += tile_sum(w * of_au)
        sum_h += tile_sum(w * of_b + w_dot * of_a)
        sum_xh += tile_sum(w * of_bx + w_dot * of_ax)
        channel = out * groups * channels + first + c
        if w_first_ptr is not None:
            tl.store(w_first_ptr + channel, of_ax.to(w_first_ptr.dtype.element_ty), mask=c < channels)
        if w_second_ptr is not None:
            tl.store(w_second_ptr + channel, (of_bx + of_au).to(w_second_ptr.dtype.element_ty), mask=c < channels)
        if b_first_ptr is not None:
            tl.store(b_first_ptr + channel, of_a.to(b_first_ptr.dtype.element_ty), mask=c < channels)
        if b_second_ptr is not None:
            tl.store(b_second_ptr + channel, of_b.to(b_second_ptr.dtype.element_ty), mask=c < channels)

    mean_g = sum_g / size
    mean_xg = sum_xg / size
    along = (sum_xh + sum_ug) / size - mu * mean_xg
    rows = out * groups * channels * sites + first * c_stride
    if x_first_ptr is not None or x_second_ptr is not None or y_dot_ptr is not None:
        for c0 in range(0, c_stop, BLOCK_C):
            for s0 in range(0, s_stop, BLOCK_S):
                offsets, inside, c = tile(c0, s0, channels, sites, c_stride, s_stride, EVEN, BLOCK_C, BLOCK_S)
                if not ONE_PASS:
                    w = load_channels(w_group, c, channels, 1.0, ACC)
                    b = load_channels(b_group, c, channels, 0.0, ACC)
                    w_dot = load_channels(w_dot_group, c, channels, 0.0, ACC)
                    b_dot = load_channels(b_dot_group, c, channels, 0.0, ACC)
                    x_hat, u, alpha, beta, y_dot = _moved(
                        x_group,
                        x_dot_group,
                        a_group,
                        y_bar_group,
                        offsets,
                        inside,
                        mean,
                        r,
                        mean_v,
                        mu,
                        w,
                        b,
                        w_dot,
                        b_dot,
                        ACTIVATION,
                        ACC,
                    )
                across = w * alpha - mean_g
                if x_first_ptr is not None:
                    x_first = r * (across - mean_xg * x_hat)
                    tl.store(x_first_ptr + rows + offsets, x_first.to(x_first_ptr.dtype.element_ty), mask=inside)
                if x_second_ptr is not None:
                    x_second = w * beta + w_dot * alpha - sum_h / size - along * x_hat - mean_xg * u - mu * across
                    x_second = (r * x_second).to(x_second_ptr.dtype.element_ty)
                    tl.store(x_second_ptr + rows + offsets, x_second, mask=inside)
                if y_dot_ptr is not None:
                    tl.store(y_dot_ptr + rows + offsets, y_dot.to(y_dot_ptr.dtype.element_ty), mask=inside)


def group_norm_second_order(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    x_dot: Tensor | None,
    weight_dot: Tensor | None,
    bias_dot: Tensor | None,
    a: Tensor,
    y_bar: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    num_groups: int,
    channels_last: bool,
    activation: str,
    wants: Second,
    *,
    block_limit: int | None = None,
) -> Second:
    """Compute any of Jᵀa, Jᵀȳ + ∂⟨a, ẏ⟩ and ẏ = J(ẋ, ẇ, ḃ): one launch, and one for each sum over samples.

    Serves three points of the tower. VJP of the JVP: a is the cotangent of ẏ, ȳ that of y. JVP of the VJP: a is the
    cotangent of y and ȳ its tangent. VJP of the VJP: a is the cotangent of y, ȳ absent, tangents are the cotangents of
    x̄, w̄ and b̄.

    Args:
        x: (K or 1, N, C, S), or (K or 1, N, S, C) if channels_last, like all rows.
        weight: (K or 1, C), or None for all ones.
        bias: (K or 1, C), or None for zeros.
        x_dot: Rows, or None for zero.
        weight_dot: As weight, or None for zero.
        bias_dot: As bias, or None for zero.
        a: Rows.
        y_bar: Rows, or None for zero.
        mean: m, (K or 1, N, num_groups), of the arithmetic's dtype.
        rstd: r, likewise.
        num_groups: Groups of a sample, a divisor of C.
        channels_last: Where the channels are.
        activation: Name of f in `_jets`: "identity" or "silu".
        wants: Which results; without a weight or bias there is none of its.
        block_limit: Largest tile, for tests.

    Returns:
        The results, each None if not wanted. Rows (K, ...) have the dtype of x; those of weight and bias their dtype
        and shape: per k if those have K, summed over K if one.
    """
    sizes = Sizes.of(x, num_groups, channels_last)
    k = group_count(x, weight, bias, x_dot, weight_dot, bias_dot, a, y_bar)
    results = second_results(x, weight, bias, wants, (k, *x.shape[1:]))
    sums = results.w_first, results.w_second, results.bias_first, results.bias_second
    if 0 in (k, *x.shape[1:]):
        for total in sums:
            if total is not None:
                total.zero_()
        return results
    if all(result is None for result in results):
        return results
    rows: list[Any] = [dense_samples(t) for t in (x, x_dot, a, y_bar)]
    x, x_dot, a, y_bar = rows
    weights: list[Any] = [unit_columns(t) for t in (weight, bias, weight_dot, bias_dot)]
    weight, bias, weight_dot, bias_dot = weights
    if activation == "identity":
        bias = None  # only f′ and f″ read it
    mean, rstd = mean.contiguous(), rstd.contiguous()
    partials = [
        None if total is None else partial_sums(k, sizes.samples, total, partial_dtype(x.dtype)) for total in sums
    ]
    launch(
        _second_order_kernel,
        k * sizes.samples * num_groups,
        x,
        x,
        weight,
        bias,
        x_dot,
        weight_dot,
        bias_dot,
        a,
        y_bar,
        mean,
        rstd,
        results.x_first,
        results.x_second,
        results.y_dot,
        *partials,
        sizes.samples,
        num_groups,
        sizes.channels,
        sizes.sites,
        *sizes.strides,
        *outer_strides(x),
        group_stride(weight),
        group_stride(bias),
        *outer_strides(x_dot),
        group_stride(weight_dot),
        group_stride(bias_dot),
        *outer_strides(a),
        *outer_strides(y_bar),
        group_stride(mean),
        ACTIVATION=activation,
        ACC=accumulator(x.dtype),
        **tile_config(sizes.channels, sizes.sites, channels_last, x.element_size(), 6, block_limit),
    )
    for partial, total in zip(partials, sums, strict=True):
        if partial is not None and total is not None:
            sum_partials(partial, total)
    return results
