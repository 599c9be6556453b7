"""Products with a Jacobian that are planned as one: U J V with seeds, and the Gauss-Newton matrix Jᵀ H J."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .bracket import Mode
from .primal import PrimalRun
from .structure import Block, Dense
from .tensors import Tensors

if TYPE_CHECKING:
    from .rules.registry import Meta
    from .runtime import Runtime
    from .tracings import Tracing


def seeded(function: Callable[[Tensor], Tensor], left: bool, right: bool) -> Callable[..., Tensor]:
    """Return c ↦ U f(x + V c), whose Jacobian at c = 0 is U J V, as a function of c, x, and V and U where given."""

    def product(c: Tensor, x: Tensor, *seeds: Tensor) -> Tensor:
        moved = x + (seeds[0] @ c).reshape(x.shape) if right else x + c
        y = function(moved)
        return seeds[-1] @ y.reshape(-1) if left else y

    product.__name__ = getattr(function, "__name__", type(function).__name__)
    return product


def check_seed(
    caller: str, name: str, seed: Any, size: int, axis: int, like: Tensor | Meta, *, square: bool = False
) -> Tensor:
    """A seed matrix.

    Args:
        caller: The function to name in an error.
        name: What the seed is called.
        seed: What was given.
        size: The size that it must have.
        axis: Along which axis.
        like: A tensor of the dtype and on the device that it must have.
        square: Whether it must have that size along the other axis too.

    Returns:
        The seed.

    Raises:
        TypeError: If it is not a floating tensor, or of another dtype.
        ValueError: If it is no matrix of that size, or on another device.
    """
    if not isinstance(seed, Tensor) or not seed.is_floating_point():
        kind = seed.dtype if isinstance(seed, Tensor) else type(seed).__name__
        raise TypeError(f"{caller}: {name} must be a floating tensor, got {kind}.")
    if seed.dim() != 2 or seed.shape[axis] != size or (square and seed.shape[1 - axis] != size):
        other: Any = size if square else ("rows", "columns")[1 - axis]
        needed = f"({other}, {size})" if axis == 1 else f"({size}, {other})"
        raise ValueError(f"{caller}: {name} must be a matrix of shape {needed}, got {tuple(seed.shape)}.")
    if seed.dtype != like.dtype:
        raise TypeError(f"{caller}: {name} must be of dtype {like.dtype}, got {seed.dtype}; use .to({like.dtype}).")
    if seed.device != like.device:
        raise ValueError(f"{caller}: {name} must be on {like.device}, got {seed.device}; use .to(x.device).")
    return seed


class GaussNewton:
    """The map v ↦ Jᵀ H J v at x, whose Jacobian in v is Jᵀ H J.

    It pushes v through the regions of f one by one, and pulls H J v back, so that it is itself a chain of them.

    Args:
        function: The function f.
        hessian: H, or None for the identity.
    """

    def __init__(self, function: Runtime, hessian: Tensor | None) -> None:
        self.function, self.hessian = function, hessian
        self._tracing: Tracing

    def arguments(self, x: Tensor) -> tuple[Tensor, ...]:
        """What `product` is called with.

        Args:
            x: The point.

        Returns:
            v = 0, x and H.

        Raises:
            ValueError: If f cannot be recorded as it goes at x.
        """
        self._tracing = self.function.tracing(x)
        if self._tracing.traced.opaque:
            why = "; ".join(f"{name}: {reason}" for name, reason in self._tracing.traced.refusals.items())
            raise ValueError(
                f"gauss_newton: f must be recordable at x, got one that is not ({why}); multiply jacobian(f, x) by "
                f"hand instead."
            )
        start = torch.zeros_like(x).reshape(-1)
        return (start, x) if self.hessian is None else (start, x, self.hessian)

    def way(self) -> Tracing:
        """Return the recording of f that `product` goes through, that of the last arguments."""
        return self._tracing

    def product(self, v: Tensor, x: Tensor, hessian: Tensor | None = None) -> Tensor:
        """Return Jᵀ H J v."""
        traced = self._tracing.traced
        modes = [Mode.TANGENT] * len(traced.regions)
        primal = PrimalRun(traced.tape, traced.regions, modes, x, self._tracing.constants)
        y = primal.finish()
        if not traced.regions:
            return torch.zeros_like(v)
        tensors = Tensors(primal, x)
        block = Block(Dense(v.numel(), 1), v[:, None])
        for region in traced.regions:
            block = region.forward(tensors, block)
        pushed = tensors.matrix(block)[:, 0]
        weighted = pushed if hessian is None else hessian @ pushed
        block = Block(Dense(1, y.numel()), weighted[None])
        for region in reversed(traced.regions):
            block = region.backward(tensors, block)
        return tensors.matrix(block)[0]
