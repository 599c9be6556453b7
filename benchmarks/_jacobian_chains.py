"""Workloads made of Linear and elementwise layers: autoencoders, funnels, hourglasses, ensembles, tangent kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from _jacobian_case import Accumulate, Problem, Source, Twin
from torch import Tensor, nn

ACTIVATIONS: dict[str, tuple[type[nn.Module], Callable[[Tensor], Tensor], float]] = {
    # name: the module, its slope as a function of its value, and a gain of the weights by which no layer dies out
    "tanh": (nn.Tanh, lambda y: 1 - y * y, 1.2),
    "sigmoid": (nn.Sigmoid, lambda y: y * (1 - y), 4.0),
    "relu": (nn.ReLU, lambda y: (y > 0).to(y.dtype), 1.4),
}


def chain(source: Source, widths: Sequence[int], activation: str = "tanh") -> Problem:
    """A network of Linear layers with an activation between any two, at one sample."""
    net = source.module(lambda: nn.Sequential(*_layers(widths, activation)))
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            n = layer.in_features
            layer.weight.copy_(source.normal(*layer.weight.shape, scale=ACTIVATIONS[activation][2] * n**-0.5))
    weights = _parameters(net)
    floor = chain_floor(weights, activation)
    return Problem(net, source.normal(widths[0]), floor=floor, twin=_chain_twin(activation), weights=weights)


def hourglass(depth: int, wide: int, narrow: int) -> tuple[int, ...]:
    """Widths that shrink geometrically to the middle and grow again."""
    half = depth // 2
    down = funnel(half, wide, narrow)
    return (*down, *funnel(depth - half, narrow, wide)[1:])


def funnel(depth: int, first: int, last: int) -> tuple[int, ...]:
    """Widths that change geometrically from the first to the last."""
    return tuple(round(first * (last / first) ** (k / depth)) for k in range(depth + 1))


def ensemble(source: Source, batch: int, members: int, n: int, hidden: int, m: int) -> Problem:
    """Several networks of two hidden layers at once, (batch, n) -> (batch, members, m); one Jacobian a sample."""
    w1, w2, w3 = (source.normal(members, o, i, scale=i**-0.5) for i, o in pairwise((n, hidden, hidden, m)))

    def f(x: Tensor) -> Tensor:
        h = torch.tanh(torch.einsum("ehn,bn->beh", w1, x))
        h = torch.tanh(torch.einsum("ehk,bek->beh", w2, h))
        return torch.einsum("emh,beh->bem", w3, h)

    def floor(x: Tensor) -> Tensor:
        a = torch.tanh(x @ w1.mT)  # (members, batch, hidden)
        b = torch.tanh(torch.bmm(a, w2.mT))
        # J = W₃ diag(1 − b²) W₂ diag(1 − a²) W₁: m rows a sample, from the left, all samples of a member in one product
        rows = w3.unsqueeze(1) * (1 - b * b).unsqueeze(2)
        rows = torch.bmm(rows.flatten(1, 2), w2).view(members, batch, m, hidden) * (1 - a * a).unsqueeze(2)
        return torch.bmm(rows.flatten(1, 2), w1).view(members, batch, m, n).transpose(0, 1)

    def twin(jax: Any, weights: Any, x: Any) -> Any:
        jnp, (w1, w2, w3) = jax.numpy, weights
        h = jnp.tanh(w1 @ x)
        return jnp.einsum("emh,eh->em", w3, jnp.tanh(jnp.einsum("ehk,ek->eh", w2, h)))

    return Problem(f, source.normal(batch, n), {"batch_dims": 1}, floor, twin, (w1, w2, w3))


def tangent_kernel(source: Source, batch: int, widths: Sequence[int]) -> Problem:
    """The parameter Jacobian of a network at a batch, of which the empirical neural tangent kernel is made."""
    net = source.module(lambda: nn.Sequential(*_layers(widths, "tanh"))).requires_grad_()
    weights = {name: p.detach() for name, p in net.named_parameters()}
    twin = _chain_twin("tanh")

    def named_twin(jax: Any, weights: Any, x: Any) -> Any:
        return twin(jax, [(weights[f"{2 * k}.weight"], weights[f"{2 * k}.bias"]) for k in range(len(widths) - 1)], x)

    floor = tangent_kernel_floor(_parameters(net))
    return Problem(net, source.normal(batch, widths[0]), {"wrt": "parameters"}, floor, named_twin, weights)


def chain_floor(weights: Sequence[tuple[Tensor, Tensor]], activation: str) -> Accumulate:
    """The Jacobian of a chain from its narrowest place outwards: GEMMs and diagonals, nothing else.

        J = (W_q D_q-1 … W_s+1) D_s (W_s D_s-1 … W_1)

    Both brackets start at the place s of the least width, so that every product in them has as few rows or columns as
    there can be; where the least width is that of an end, this is all tangents or all adjoints.

    Args:
        weights: (W, b) of each layer.
        activation: The activation between any two.

    Returns:
        From x to the Jacobian.
    """
    value, slope = _functional(activation), ACTIVATIONS[activation][1]
    split = narrowest([weights[0][0].shape[1], *(w.shape[0] for w, _ in weights)])

    def accumulate(x: Tensor) -> Tensor:
        slopes: list[Tensor] = []  # slopes[k] belongs behind layer k, from 0
        for w, b in weights[:-1]:
            x = value(torch.addmv(b, w, x))
            slopes.append(slope(x))
        right = left = None
        if split > 0:  # rows, from layer split − 1 upstream
            right = weights[split - 1][0]
            for k in range(split - 2, -1, -1):
                right = (right * slopes[k]) @ weights[k][0]
        if split < len(weights):  # columns, from layer split downstream
            left = weights[split][0]
            for k in range(split + 1, len(weights)):
                left = weights[k][0] @ (slopes[k - 1].unsqueeze(1) * left)
        if left is None or right is None:
            ends = left if right is None else right
            assert ends is not None
            return ends
        return left @ (slopes[split - 1].unsqueeze(1) * right)

    return accumulate


def narrowest(widths: Sequence[int]) -> int:
    """The first place of the least width."""
    return min(range(len(widths)), key=lambda k: widths[k])


def tangent_kernel_floor(weights: Sequence[tuple[Tensor, Tensor]]) -> Accumulate:
    """All parameter Jacobians of a tanh network by one shared pullback.

    With G_l = ∂y/∂z_l of one sample:  ∂y/∂b_l = G_l,  ∂y/∂W_l = G_l ⊗ a_l-1,  G_l-1 = (G_l W_l) diag(1 − a²_l-1).

    Args:
        weights: (W, b) of each layer.

    Returns:
        From x to the Jacobians by the name that each parameter has in an nn.Sequential.
    """
    m = weights[-1][0].shape[0]

    def accumulate(x: Tensor) -> dict[str, Tensor]:
        values = [x]
        for w, b in weights[:-1]:
            values.append(torch.tanh(torch.addmm(b, values[-1], w.mT)))
        g = torch.eye(m, dtype=x.dtype, device=x.device).expand(len(x), m, m)
        found: dict[str, Tensor] = {}
        for k in range(len(weights) - 1, -1, -1):
            a = values[k]
            found[f"{2 * k}.bias"] = g
            found[f"{2 * k}.weight"] = g.unsqueeze(-1) * a[:, None, None, :]
            if k > 0:
                g = (g @ weights[k][0]) * (1 - a * a).unsqueeze(1)
        return found

    return accumulate


def _layers(widths: Sequence[int], activation: str) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m), ACTIVATIONS[activation][0]()]
    return layers[:-1]


def _parameters(net: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(m.weight.detach(), m.bias.detach()) for m in net.modules() if isinstance(m, nn.Linear)]


def _functional(activation: str) -> Callable[[Tensor], Tensor]:
    return getattr(torch, activation)


def _chain_twin(activation: str) -> Twin:
    def twin(jax: Any, weights: Any, x: Any) -> Any:
        value = getattr(jax.nn, activation)
        for w, b in weights[:-1]:
            x = value(w @ x + b)
        w, b = weights[-1]
        return w @ x + b

    return twin
