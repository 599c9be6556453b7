"""Where the groups of a tensor are, and the normalisation that the rules of group norm are made of."""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._groups import sum_to


class At(NamedTuple):
    """Samples, groups, channels and sites: (*lead, N, G, D, S), or (*lead, N, S, G, D) if channels come last."""

    ndim: int
    own: tuple[int, ...]  # (N, G, D, S) or (N, S, G, D)
    axes: list[int]  # those of a group: its channels and sites
    weight: tuple[int, ...]  # (1, G, D, 1) or (1, 1, G, D)
    groups: int
    wide: torch.dtype

    @staticmethod
    def of(x: Tensor, num_groups: int, ndim: int, channels_last: bool) -> "At":
        """Read them off (*lead, N, C, *spatial), or (*lead, N, *spatial, C)."""
        shape = x.shape[x.dim() - ndim :]
        n, channels = shape[0], shape[-1] if channels_last else shape[1]
        sites = prod(shape[1:-1]) if channels_last else prod(shape[2:])
        depth = channels // num_groups
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        if channels_last:
            return At(ndim, (n, sites, num_groups, depth), [-3, -1], (1, 1, num_groups, depth), num_groups, wide)
        return At(ndim, (n, num_groups, depth, sites), [-2, -1], (1, num_groups, depth, 1), num_groups, wide)

    def rows(self, x: Tensor) -> Tensor:
        """The tensor as (*lead, *own), in the dtype the op computes in."""
        return x.to(self.wide).reshape((*x.shape[: x.dim() - self.ndim], *self.own))

    def channels(self, w: Tensor | None) -> Any:
        """A weight so that it broadcasts against (*lead, *own), in the dtype the op computes in."""
        return None if w is None else w.to(self.wide).reshape((*w.shape[: max(0, w.dim() - self.ndim)], *self.weight))

    def back(self, y: Tensor, x: Tensor) -> Tensor:
        """(*lead, *own) as (*lead, N, C, *spatial), in the dtype of x."""
        return y.reshape((*y.shape[:-4], *x.shape[x.dim() - self.ndim :])).to(x.dtype)

    def bars(self, results: Sequence[Tensor | None], likes: Sequence[Tensor | None]) -> Any:
        """Cotangents of an input, a weight and a bias, summed to their shapes, in their dtypes; None stays None."""
        x_bar, *weights = results
        x, *likes = likes
        if x_bar is not None and x is not None:
            x_bar = self.back(sum_to(x_bar, (*x.shape[: x.dim() - self.ndim], *self.own)), x)
        summed = [
            None if bar is None or w is None else sum_to(bar, self.channels(w).shape).reshape(w.shape).to(w.dtype)
            for bar, w in zip(weights, likes, strict=True)
        ]
        return (x_bar, *summed)

    def statistics(self, m: Tensor, x: Tensor) -> Tensor:
        """One value per group as (*lead, N, G, 1, ..., 1)."""
        return m.reshape((*x.shape[: x.dim() - self.ndim], self.own[0], self.groups, *(1,) * (self.ndim - 2)))


def unit_of(at: At, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x̂ = (x − m) r, m and r, the last two one per group."""
    mean = x.mean(at.axes, keepdim=True)
    centred = x - mean
    r = torch.rsqrt(centred.square().mean(at.axes, keepdim=True) + eps)
    return centred * r, mean, r


def affine(unit: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
    """z = x̂ ∘ w + b, where weight and bias may be absent."""
    z = unit if w is None else unit * w
    return z if b is None else z + b


def silu_slope(z: Tensor) -> tuple[Tensor, Tensor]:
    """silu′(z) = σ(z) (1 + z (1 − σ(z))), and σ(z)."""
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s)), s
