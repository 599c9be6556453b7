"""What one workload of the Jacobian benchmark is: a function at a point, its floor, its twin in JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]
Jacobian = Tensor | dict[str, Tensor]
Accumulate = Callable[[Tensor], Any]  # from x to the Jacobian, as a tensor or a tree of them
Twin = Callable[[Any, Any, Any], Any]  # (jax, weights, x) -> y, of one sample where there is a batch


@dataclass(frozen=True)
class Problem:
    """A function at a point.

    Attributes:
        f: The function, or an nn.Module.
        x: The point.
        options: What `tj.jacobian` is told besides f and x: batch_dims=1, or wrt="parameters".
        floor: The Jacobian by hand: raw products in the best order, without any automatic differentiation.
        twin: The same function in JAX, of `weights` and of one sample of x where there is a batch.
        weights: A tree (tuples and dictionaries) of the tensors that the twin needs.
    """

    f: Function
    x: Tensor
    options: Mapping[str, Any] = field(default_factory=dict)
    floor: Accumulate | None = None
    twin: Twin | None = None
    weights: Any = ()

    @property
    def batched(self) -> bool:
        """Whether one Jacobian is wanted for each sample."""
        return bool(self.options.get("batch_dims"))

    @property
    def of_parameters(self) -> bool:
        """Whether the Jacobian with respect to the parameters is wanted, one sample of the output being one of x."""
        return self.options.get("wrt") == "parameters"

    def one_sample(self, x: Tensor) -> Tensor:
        """f of a single sample."""
        return self.f(x.unsqueeze(0)).squeeze(0)


@dataclass(frozen=True)
class Source:
    """Where a workload takes its numbers from: the same values in every dtype, whatever was drawn before.

    Attributes:
        dtype: Dtype of what it returns.
        device: Device of what it returns.
        generator: A seeded generator on the CPU.
    """

    dtype: torch.dtype
    device: torch.device
    generator: torch.Generator

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normally distributed entries of that scale; drawn in float32, so that float64 holds the same values."""
        return (scale * torch.randn(shape, generator=self.generator)).to(self.device, self.dtype)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Entries uniform between two bounds; drawn in float32."""
        return (low + (high - low) * torch.rand(shape, generator=self.generator)).to(self.device, self.dtype)

    def module(self, make: Callable[[], nn.Module]) -> nn.Module:
        """A module as PyTorch initialises it, in evaluation mode, without grad."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make().to(self.device, self.dtype).eval().requires_grad_(False)


@dataclass(frozen=True)
class Case:
    """One workload.

    Attributes:
        id: What it is called on the command line and in the table.
        build: From a source and sizes to the problem.
        full: The sizes that are timed.
        small: The sizes that a test uses.
        dtype: The dtype that is timed.
        bottleneck: Whether it is a chain that has its narrowest place inside.
        plain_chain: Whether it is a chain of Linear and elementwise layers, for which the floor is a target.
        unfit_to_compile: Why the peers compile nothing of it, if they do not.
    """

    id: str
    build: Callable[..., Problem]
    full: Mapping[str, Any] = field(default_factory=dict)
    small: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    bottleneck: bool = False
    plain_chain: bool = False
    unfit_to_compile: str = ""

    def make(
        self, *, small: bool = False, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Problem:
        """The problem, made anew: another function object with equal weights each time.

        Args:
            small: Whether at the sizes of the test.
            dtype: Instead of the dtype that is timed.
            device: Where its tensors are.

        Returns:
            The problem.
        """
        source = Source(dtype or self.dtype, torch.device(device), torch.Generator().manual_seed(0))
        return self.build(source, **(self.small if small else self.full))


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of a tree in an order of its own making: dictionaries by key; what JAX returned becomes tensors.

    Args:
        tree: A tensor, an array, or tuples, lists and dictionaries of them.

    Returns:
        The tensors.
    """
    if isinstance(tree, Tensor):
        return [tree.detach()]
    if isinstance(tree, Mapping):
        return [leaf for key in sorted(tree) for leaf in leaves(tree[key])]
    if isinstance(tree, (tuple, list)):
        return [leaf for item in tree for leaf in leaves(item)]
    import numpy

    return [torch.from_numpy(numpy.array(tree))]
