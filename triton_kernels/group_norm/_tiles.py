"""Pieces that the group norm kernels share: the tile of a group and its moments, tiling, strides.

A group is D channels of S sites; a tile is (BLOCK_C, BLOCK_S) of it. In memory a sample is (G, D, S) or, with channels
last, (S, G, D): the strides of a channel and of a site say which, and the one that is 1 is a constant once compiled.
"""

from __future__ import annotations

import functools
from typing import NamedTuple, overload

import triton
import triton.language as tl
from torch import Tensor

from .._rows import inverse_root, load_tile, packed_sums

# Registers (32 bits) that the tiles of a program may take: 16 warps of 32 threads, 96 registers each.
_PROGRAM_REGISTERS = 96 * 32 * 16
_LONGEST_TILE = 16384


@triton.jit
def program_group(samples, groups):
    """Return a program's number decoded into (k, sample, group), int64; groups of a sample are neighbours."""
    program = tl.program_id(0)
    g = (program % groups).to(tl.int64)
    sample = (program // groups % samples).to(tl.int64)
    k = (program // groups // samples).to(tl.int64)
    return k, sample, g


@triton.jit
def tile(c0, s0, channels, sites, c_stride, s_stride, EVEN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr):
    """Return the tile's offsets from the group's first element, which of its lanes lie inside, and its channels.

    EVEN: tiles fill the group, so that all lanes lie inside and nothing is masked.
    """
    c = c0 + tl.arange(0, BLOCK_C)[:, None]
    s = s0 + tl.arange(0, BLOCK_S)[None, :]
    offsets = c.to(tl.int64) * c_stride + s.to(tl.int64) * s_stride
    inside = tl.full([BLOCK_C, BLOCK_S], True, tl.int1) if EVEN else (c < channels) & (s < sites)
    return offsets, inside, c


@triton.jit
def tile_sum(x):
    """Return the sum of all elements of a tile."""
    return tl.sum(x)


@triton.jit
def tile_sums(a, b):
    """Return the sums of all elements of two tiles, see `row_sums`."""
    sums = tl.reshape(packed_sums(tl.reshape(tl.permute(tl.join(a, b), (2, 0, 1)), (2, a.numel))), (1, 2))
    sum_a, sum_b = tl.split(sums)
    return tl.sum(sum_a), tl.sum(sum_b)


@triton.jit
def load_channels(w_ptr, c, channels, absent, ACC: tl.constexpr):
    """Return the weights of a tile's channels, (BLOCK_C, 1), or `absent`."""
    if w_ptr is None:
        return tl.full(c.shape, absent, ACC)
    else:
        return tl.load(w_ptr + c, mask=c < channels, other=0.0).to(ACC)


@triton.jit
def moments(
    x_group,
    v_group,  # None for zeros
    channels,
    sites,
    c_stride,
    s_stride,
    eps,
    ACC: tl.constexpr,
    ONE_PASS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Return x, m, r = (var + eps)^(-1/2), v, Σ v and Σ (x − m) v; of x and v the last tiles read.

    One reading, which ends with the whole group if ONE_PASS. Tiles are merged as Chan, Golub and LeVeque (1983) do.
    With δ the difference of two means, n₁ and n₂ the counts,

        m = m₁ + δ n₂ / (n₁ + n₂),    Σ (x − m)² = Σ₁ + Σ₂ + δ² n₁ n₂ / (n₁ + n₂),
        Σ (x − m) v = Σ₁ (x − m₁) v + (m₁ − m) Σ₁ v + Σ₂ (x − m₂) v + (m₂ − m) Σ₂ v
    """
    c_stop = BLOCK_C if ONE_PASS else channels
    s_stop = BLOCK_S if ONE_PASS else sites
    x = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    v = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    count = tl.full([], 0.0, ACC)
    mean = tl.full([], 0.0, ACC)
    squares = tl.full([], 0.0, ACC)
    total = tl.full([], 0.0, ACC)
    inner = tl.full([], 0.0, ACC)
    for c0 in range(0, c_stop, BLOCK_C):
        for s0 in range(0, s_stop, BLOCK_S):
            offsets, inside, c = tile(c0, s0, channels, sites, c_stride, s_stride, EVEN, BLOCK_C, BLOCK_S)
            x = load_tile(x_group + offsets, inside, ACC)
            here = tl.full([], tl.minimum(channels - c0, BLOCK_C), ACC) * tl.minimum(sites - s0, BLOCK_S)
            before = mean
            total_here = tl.full([], 0.0, ACC)
            inner_here = tl.full([], 0.0, ACC)
            if v_group is None:
                mean_here = tile_sum(x) / here
                centred = tl.where(inside, x - mean_here, 0.0)
                squares_here = tile_sum(centred * centred)
            else:
                v = load_tile(v_group + offsets, inside, ACC)
                sum_here, total_here = tile_sums(x, v)
                mean_here = sum_here / here
                centred = tl.where(inside, x - mean_here, 0.0)
                squares_here, inner_here = tile_sums(centred * centred, centred * v)
            delta = mean_here - before
            share = here / (count + here)
            mean += delta * share
            squares += squares_here + delta * delta * (count * share)
            count += here
            if v_group is not None:
                inner += inner_here + (before - mean) * total + (mean_here - mean) * total_here
                total += total_here
    variance = squares / count + tl.full([], eps, ACC)
    return x, mean, inverse_root(variance), v, total, inner


@functools.cache
def tile_config(
    channels: int, sites: int, channels_last: bool, itemsize: int, tiles: int, limit: int | None
) -> dict[str, int | bool]:
    """Constexprs and options of a launch, from sizes alone.

    Args:
        channels: Channels of a group, D.
        sites: Sites S.
        channels_last: Which of the two is adjacent in memory.
        itemsize: Bytes of an element; 8 computes in float64.
        tiles: Values of a tile's size that a program keeps in registers.
        limit: Largest tile, a power of two; for tests.

    Returns:
        The options; ONE_PASS tells whether a tile holds a whole group, EVEN whether tiles fill it.
    """
    registers = _PROGRAM_REGISTERS // (tiles * (5 if itemsize == 8 else 1))
    longest = min(_LONGEST_TILE, 1 << (registers.bit_length() - 1)) if limit is None else limit
    c, s = triton.next_power_of_2(channels), triton.next_power_of_2(sites)
    one_pass = c * s <= longest
    if not one_pass:
        longest = limit or longest // 2
        if channels_last:
            c = min(c, longest)
            s = min(s, longest // c)
        else:
            s = min(s, longest)
            c = min(c, longest // s)
    # As measured on an H200: many elements a thread, few warps that wait for each other when they add up.
    per_thread = 4 if itemsize == 8 else 64 if tiles <= 2 else 32 if tiles <= 4 else 8
    warps = min(16, max(1, c * s // (32 * per_thread)))
    return {
        "ONE_PASS": one_pass,
        "EVEN": channels % c == 0 and sites % s == 0,
        "BLOCK_C": c,
        "BLOCK_S": s,
        "num_warps": warps,
        "num_stages": 1,
        "enable_fp_fusion": True,
    }


class Sizes(NamedTuple):
    """Sizes of a launch: samples, channels of a group and sites, and the strides of a channel and of a site."""

    samples: int
    channels: int
    sites: int
    strides: tuple[int, int]

    @staticmethod
    def of(x: Tensor, num_groups: int, channels_last: bool) -> Sizes:
        """Read the sizes off (K, N, C, S), or (K, N, S, C)."""
        _, samples, first, second = x.shape
        channels, sites = (second, first) if channels_last else (first, second)
        return Sizes(samples, channels // num_groups, sites, (1, channels) if channels_last else (sites, 1))


@overload
def dense_samples(x: Tensor) -> Tensor: ...
@overload
def dense_samples(x: None) -> None: ...
def dense_samples(x: Tensor | None) -> Tensor | None:
    """Return (K, N, ...) with samples contiguous in memory, copied only if they are not."""
    if x is None:
        return None
    expected = 1
    for size, stride in zip(reversed(x.shape[2:]), reversed(x.stride()[2:]), strict=True):
        if size != 1 and stride != expected:
            return x.contiguous()
        expected *= size
    return x


def outer_strides(x: Tensor | None) -> tuple[int, int]:
    """Strides of (K, N) of a tensor of dense samples; an operand that all K share has 0."""
    return (0, 0) if x is None else (0 if x.shape[0] == 1 else x.stride(0), x.stride(1))
