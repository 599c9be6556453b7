"""What cross-entropy kernels share: capped logits, and a target as weights τ of the classes."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .._jets import tanh_jet
from .._rows import load_tile, row_sum


class Options(NamedTuple):
    """What a loss is computed with.

    Attributes:
        weight: (n,) weights of the classes, contiguous, or None for ones.
        ignore_index: The class whose rows count for nothing.
        label_smoothing: ε.
        softcap: κ, or None.
        first: The class of the first column, where columns are a part of all classes; without weights then.
        classes: How many classes there are in all; None for as many as columns.
    """

    weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    softcap: float | None
    first: int = 0
    classes: int | None = None

    def flags(self, target: Tensor) -> dict[str, bool]:
        """Return the constexprs of a launch that follow from the options."""
        return {
            "PROBABILITIES": target.dim() == 4,
            "SMOOTH": self.label_smoothing != 0,
            "CAPPED": self.softcap is not None,
        }


@triton.jit
def load_logits(pointers, inside, cap, CAPPED: tl.constexpr, ACC: tl.constexpr):
    """Return z (-∞ outside) and its derivatives z′ and z″ by x."""
    x = load_tile(pointers, inside, ACC)
    if CAPPED:
        value, slope, curve, _ = tanh_jet(x / cap, False)  # pyright: ignore[reportArgumentType]
        return tl.where(inside, cap * value, float("-inf")), slope, curve / cap
    else:
        return tl.where(inside, x, float("-inf")), tl.full(x.shape, 1.0, ACC), tl.zeros(x.shape, ACC)


@triton.jit
def load_class(
    t_ptr, offset, w_ptr, first, classes, valid, ignore, sharp, PROBABILITIES: tl.constexpr, ACC: tl.constexpr
):
    """Return each row's column t, (1 − ε) w_t (NaN where there is no such class), and whether the row counts.

    The class of a row may have no column here, where columns are a part of all classes.
    """
    if PROBABILITIES:
        return tl.zeros(valid.shape, tl.int64), tl.zeros(valid.shape, ACC), valid
    else:
        t = tl.load(t_ptr + offset, mask=valid, other=0)
        counts = valid & (t != ignore)
        exists = counts & (t >= 0) & (t < classes)
        weight = tl.full(valid.shape, 1.0, ACC) * sharp
        if w_ptr is not None:
            weight *= tl.load(w_ptr + t, mask=exists, other=0.0).to(ACC)
        weight = tl.where(counts & (t < 0) | counts & (t >= classes), float("nan"), weight)
        return t - first, tl.where(counts, weight, 0.0), counts


@triton.jit
def load_class_weights(w_ptr, col, inside, ACC: tl.constexpr):
    """Return w as a tile, 0 outside."""
    if w_ptr is None:
        return tl.where(inside, tl.full(inside.shape, 1.0, ACC), 0.0)
    else:
        return load_tile(w_ptr + col + tl.zeros(inside.shape, tl.int32), inside, ACC)


@triton.jit
def target_weights(
    q_ptr,
    offset,
    col,
    t,
    weight_t,
    w,
    counts,
    inside,
    sharp,
    smooth,
    PROBABILITIES: tl.constexpr,
    SMOOTH: tl.constexpr,
    ACC: tl.constexpr,
):
    """Return a tile of τ, 0 outside."""
    if PROBABILITIES:
        q = load_tile(q_ptr + offset, inside, ACC)
        return w * (sharp * q + smooth) if SMOOTH else w * q
    else:
        # A class that does not exist makes its whole row NaN: every column takes it.
        hit = (col == t) | (weight_t != weight_t)
        one = tl.where(hit & inside, weight_t, 0.0)
        return one + tl.where(counts, w * smooth, 0.0) if SMOOTH else one


@triton.jit
def aimed_sum(tau, powers):
    """Return Σ τ.

    Powers of e are ≥ 0, or NaN: asking ties τ to a tile that was loaded. Triton 3.6 gives all columns of a tile that is
    made of numbers of rows to each of a row's threads.
    """
    return row_sum(tl.where(powers < 0.0, 0.0, tau))


@triton.jit
def lost(tau, gap, inside, PROBABILITIES: tl.constexpr):
    """Return τ times a gap that may be infinite: a class never aimed at costs nothing, unless probabilities say 0·∞."""
    taken = inside if PROBABILITIES else inside & (tau != 0.0)
    return tau * tl.where(taken, gap, 0.0)


@triton.jit
def load_number(ptr, offset, counts, ACC: tl.constexpr):
    """Return one number for each row, 0 where it is absent or the row ignored: a mean over nothing has ∞ there."""
    if ptr is None:
        return tl.zeros(counts.shape, ACC)
    else:
        return tl.load(ptr + offset, mask=counts, other=0.0).to(ACC)


@triton.jit
def load_tangent(ptr, offset, inside, ACC: tl.constexpr):
    """Return a tile of a tangent, 0 where it is absent."""
    if ptr is None:
        return tl.zeros(inside.shape, ACC)
    else:
        return load_tile(ptr + offset, inside, ACC)
