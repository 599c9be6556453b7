"""Losses of Jacobians that people train with: flows, penalties, metrics, constraints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Training:
    """A loss of the Jacobians of a network at a batch of points.

    Attributes:
        id: What it is called.
        net: Makes the network.
        width: Entries of a point.
        batch: Points.
        loss: Of the Jacobians (batch, m, n).
        full: Sizes of the network that is timed.
        small: Those that a test uses.
    """

    id: str
    net: Callable[..., nn.Module]
    width: int
    batch: int
    loss: Callable[[Tensor], Tensor]
    full: dict[str, Any] = field(default_factory=dict)
    small: dict[str, Any] = field(default_factory=dict)

    def make(self, *, small: bool = False, device: torch.device | str = "cpu") -> tuple[nn.Module, Tensor]:
        """The network and the points, the same each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = self.net(self.width, **(self.small if small else self.full))
            x = torch.randn(4 if small else self.batch, self.width)
        return net.to(device), x.to(device)


class Coupling(nn.Module):
    """An affine coupling layer (Dinh et al. 2017): one half is scaled and shifted by a network of the other."""

    def __init__(self, width: int, hidden: int, *, flipped: bool) -> None:
        super().__init__()
        self.flipped, half = flipped, width // 2
        layers = nn.Linear(half, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, width)
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """The layer."""
        a, b = x.chunk(2, -1)
        a, b = (b, a) if self.flipped else (a, b)
        scale, shift = self.net(a).chunk(2, -1)
        b = b * scale.tanh().exp() + shift
        return torch.cat([b, a] if self.flipped else [a, b], -1)


class Residual(nn.Module):
    """A residual block (Chen et al. 2019), x + 0.3 g(x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, hidden), nn.ELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        return x + 0.3 * self.net(x)


def coupling_flow(width: int, hidden: int = 64, layers: int = 6) -> nn.Module:
    """Coupling layers that take turns."""
    return nn.Sequential(*(Coupling(width, hidden, flipped=bool(place % 2)) for place in range(layers)))


def residual_flow(width: int, hidden: int = 64, layers: int = 4) -> nn.Module:
    """Residual blocks."""
    return nn.Sequential(*(Residual(width, hidden) for _ in range(layers)))


def network(width: int, hidden: tuple[int, ...] = (64, 64), out: int = 3, activation: str = "SiLU") -> nn.Module:
    """A multilayer perceptron."""
    layers: list[nn.Module] = []
    for m, n in zip((width, *hidden), (*hidden, out), strict=True):
        layers += [nn.Linear(m, n), getattr(nn, activation)()]
    return nn.Sequential(*layers[:-1])


def convolutions(width: int, channels: int = 8, out: int = 10) -> nn.Module:
    """A classifier of square images that come as rows of entries."""
    side = round(width**0.5)
    return nn.Sequential(
        nn.Unflatten(-1, (1, side, side)),
        nn.Conv2d(1, channels, 3, padding=1),
        nn.SiLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.SiLU(),
        nn.AvgPool2d(2),
        nn.Flatten(-3),
        nn.Linear(2 * channels * (side // 4) ** 2, out),
    )


def log_volume(jacobians: Tensor) -> Tensor:
    """-mean log |det J|: the part of a flow's likelihood that J makes."""
    return -torch.linalg.slogdet(jacobians)[1].mean()


def squares(jacobians: Tensor) -> Tensor:
    """mean ||J||²: a contractive penalty (Rifai et al. 2011)."""
    return jacobians.square().sum((-2, -1)).mean()


def metric_volume(jacobians: Tensor) -> Tensor:
    """mean log det(JᵀJ + ε): the volume of a decoder's pulled-back metric."""
    metric = jacobians.mT @ jacobians
    nugget = 1e-3 * torch.eye(metric.shape[-1], device=metric.device, dtype=metric.dtype)
    return torch.linalg.slogdet(metric + nugget)[1].mean()


def divergence(jacobians: Tensor) -> Tensor:
    """mean (tr J)²: a field without sources."""
    return jacobians.diagonal(dim1=-2, dim2=-1).sum(-1).square().mean()


def curl(jacobians: Tensor) -> Tensor:
    """mean ||J - Jᵀ||²: a field that has a potential."""
    return (jacobians - jacobians.mT).square().sum((-2, -1)).mean()


WORKLOADS = (
    Training(
        "coupling-flow-8", coupling_flow, 8, 64, log_volume, {"hidden": 32, "layers": 4}, {"hidden": 4, "layers": 2}
    ),
    Training("coupling-flow-16", coupling_flow, 16, 256, log_volume, small={"hidden": 4, "layers": 2}),
    Training("residual-flow-32", residual_flow, 32, 128, log_volume, small={"hidden": 5, "layers": 2}),
    Training("field-divergence", network, 3, 1024, divergence, small={"hidden": (5, 5)}),
    Training("field-potential", network, 16, 128, curl, {"out": 16}, {"hidden": (5, 5), "out": 16}),
    Training(
        "decoder-metric", network, 8, 32, metric_volume, {"hidden": (128, 256), "out": 784}, {"hidden": (5,), "out": 9}
    ),
    Training(
        "contractive-encoder", network, 784, 64, squares, {"hidden": (256,), "out": 32}, {"hidden": (5,), "out": 3}
    ),
    Training(
        "autoencoder", network, 256, 16, squares,
        {"hidden": (128, 16, 128), "out": 256, "activation": "Tanh"}, {"hidden": (5, 2, 5), "out": 256},
    ),
    Training("saliency", convolutions, 256, 16, squares, small={"channels": 2, "out": 3}),
)  # fmt: skip
