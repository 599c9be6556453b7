"""The bilinear maps that the rules of a linear layer are made of, in plain PyTorch.

x is (*lead, m, n_in), W (*lead, n_out, n_in), b (*lead, 1, n_out); leads broadcast from the right.
"""

from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from .._arithmetic import total, wide
from .._groups import sum_to
from .activations import ACTIVATIONS


class Terms(NamedTuple):
    """Something for each of x, W and b: tangents, cotangents, the arguments themselves."""

    x: Any = None
    weight: Any = None
    bias: Any = None


class Slopes(NamedTuple):
    """f(z), f′ż, f′a and f′b + f″ż a; None where zero or not asked for."""

    y: Any = None
    moved: Any = None
    first: Any = None
    second: Any = None


def project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b."""
    if weight.dim() == 2 and (bias is None or bias.dim() == 2):
        return F.linear(x, weight, None if bias is None else bias.squeeze(0))
    z = torch.matmul(x, weight.mT)
    return z if bias is None else z + bias


def project_tangents(at: Terms, dots: Terms) -> Tensor | None:
    """ż = ẋ Wᵀ + x Ẇᵀ + ḃ, with the axes of what there is."""
    if dots.x is None and dots.weight is None:
        if dots.bias is None:
            return None
        return dots.bias.expand((*dots.bias.shape[:-2], at.x.shape[-2], dots.bias.shape[-1]))
    if dots.x is None:
        return project(at.x, dots.weight, dots.bias)
    z_dot = project(dots.x, at.weight, dots.bias)
    if dots.weight is None:
        return z_dot
    if z_dot.dim() == at.x.dim() == dots.weight.dim() == 2:
        return torch.addmm(z_dot, at.x, dots.weight.mT)
    return z_dot + project(at.x, dots.weight, None)


def pull_input(z_bar: Tensor, weight: Tensor, like: Tensor) -> Tensor:
    """z̄ W, summed to the shape of x."""
    return sum_to(torch.matmul(z_bar, weight), like.shape)


def pull_weight(z_bar: Tensor, x: Tensor, like: Tensor) -> Tensor:
    """z̄ᵀ x, summed to the shape of W; where W has no lead, in one product."""
    if like.dim() == 2 and z_bar.shape[:-1] == x.shape[:-1]:
        return torch.matmul(_in_rows(z_bar).mT, _in_rows(x))
    return sum_to(torch.matmul(z_bar.mT, x), like.shape)


def _in_rows(tensor: Tensor) -> Tensor:
    """All rows of a tensor under one another."""
    return tensor if tensor.dim() == 2 else tensor.reshape(prod(tensor.shape[:-1]), tensor.shape[-1])


def slopes(
    activation: str,
    z: Tensor,
    z_dot: Tensor | None = None,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    wants_y: bool = False,
    wants_moved: bool = False,
    wants_first: bool = False,
    wants_second: bool = False,
) -> Slopes:
    """f(z), f′ż, f′a, f′b + f″ż a, in the dtype of z."""
    function, options = ACTIVATIONS[activation]
    point, z_dot, a, b = (wide(t, z) for t in (z, z_dot, a, b))
    f1 = function.slope(point, *options)
    second = None if b is None else f1 * b
    if wants_second and z_dot is not None and a is not None:
        second = total(second, function.bend(point, *options) * z_dot * a)
    found = (
        function.value(point, *options) if wants_y else None,
        f1 * z_dot if wants_moved and z_dot is not None else None,
        f1 * a if wants_first and a is not None else None,
        second if wants_second else None,
    )
    return Slopes(*(None if t is None else t.to(z.dtype) for t in found))
