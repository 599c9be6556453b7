"""The operations every op is timed in: value, gradient, JVP and two kinds of second order, of a function of tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from _op_workloads import TensorFunction, normal
from torch import Tensor

# PyTorch annotates their results as a union, of which has_aux decides.
jvp: Any = torch.func.jvp
vjp: Any = torch.func.vjp


@dataclass(frozen=True)
class Directions:
    """Where a function is differentiated and along what.

    Attributes:
        primals: The point x.
        tangents: ẋ.
        cotangents: Those of y.
        dot_cotangents: Those of ẏ.
    """

    primals: tuple[Tensor, ...]
    tangents: tuple[Tensor, ...]
    cotangents: tuple[Tensor, ...]
    dot_cotangents: tuple[Tensor, ...]

    def double(self) -> "Directions":
        """The same numbers in float64."""  # noqa: DOC201
        wide = [tuple(t.double() for t in group) for group in vars(self).values()]
        return Directions(*wide)

    def scaled(self, factor: float) -> "Directions":
        """A point nearby, with the same directions."""  # noqa: DOC201
        return replace(self, primals=tuple(x * factor for x in self.primals))


def directions(f: TensorFunction, primals: tuple[Tensor, ...]) -> Directions:
    """Draw directions at a point.

    Args:
        f: Whose outputs need cotangents.
        primals: The point.

    Returns:
        The point with its directions.
    """
    dtype, device = primals[0].dtype, primals[0].device
    with torch.no_grad():
        results = [tuple(y.shape) for y in f(*primals)]
    shapes = [tuple(x.shape) for x in primals]
    draw = lambda s, seed: normal(s, dtype, device, seed)  # noqa: E731
    return Directions(primals, draw(shapes, 2), draw(results, 3), draw(results, 4))


@dataclass(frozen=True)
class Operation:
    """A derivative.

    Attributes:
        name: How tables call it.
        prepare: From the function, directions and a compiler (the identity for eager code) to what is timed.
        passes: Groups of tensors that are read or written at least: x, ẋ, y, ẏ by how often.
    """

    name: str
    prepare: Callable[[TensorFunction, Directions, Callable[..., Any]], Callable[[], Sequence[Tensor]]]
    passes: tuple[int, int]

    def bytes_moved(self, d: Directions, constants: Sequence[Tensor]) -> int:
        """The fewest bytes the operation can move, every operand read once and every result written once.

        Args:
            d: The directions.
            constants: Tensors that are not differentiated.

        Returns:
            Bytes; where gradients are taken, those of forward and backward.
        """
        size = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)  # noqa: E731
        inputs, outputs = self.passes
        return inputs * size(d.primals) + outputs * size(d.cotangents) + size(constants)


def _forward(f: TensorFunction, d: Directions, compiler: Callable[..., Any]) -> Callable[[], Sequence[Tensor]]:
    g = compiler(f)
    return lambda: g(*d.primals)


def _jvp(f: TensorFunction, d: Directions, compiler: Callable[..., Any]) -> Callable[[], Sequence[Tensor]]:
    g = compiler(_pushing(f))
    return lambda: g(d.primals, d.tangents)


def _gradient(f: TensorFunction, d: Directions, compiler: Callable[..., Any]) -> Callable[[], Sequence[Tensor]]:
    g, xs = compiler(f), _leaves(d.primals)
    return lambda: torch.autograd.grad(g(*xs), xs, d.cotangents)


def _gradient_of_jvp(f: TensorFunction, d: Directions, compiler: Callable[..., Any]) -> Callable[[], Sequence[Tensor]]:
    """What a loss of value and tangent needs."""
    g, xs, x_dots = compiler(_pushing(f)), _leaves(d.primals), _leaves(d.tangents)
    bars = (*d.cotangents, *d.dot_cotangents)
    return lambda: torch.autograd.grad(g(xs, x_dots), (*xs, *x_dots), bars)


def _hvp(f: TensorFunction, d: Directions, compiler: Callable[..., Any]) -> Callable[[], Sequence[Tensor]]:
    """Forward over reverse: how the gradient moves along ẋ."""

    def push(primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return jvp(lambda *xs: vjp(f, *xs)[1](d.cotangents), primals, tangents)[1]

    g = compiler(push)
    return lambda: g(d.primals, d.tangents)


def _pushing(f: TensorFunction) -> Callable[..., tuple[Tensor, ...]]:
    def push(primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        ys, y_dots = jvp(f, primals, tangents)
        return (*ys, *y_dots)

    return push


def _leaves(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(t.detach().requires_grad_() for t in tensors)


JVP = "jvp"
OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("forward", _forward, (1, 1)),  # reads x; writes y
        Operation(JVP, _jvp, (2, 2)),  # reads x, ẋ; writes y, ẏ
        Operation("forward + vjp", _gradient, (3, 2)),  # the forward; then reads x, ȳ; writes x̄
        Operation("vjp of jvp", _gradient_of_jvp, (6, 4)),  # the JVP; then reads x, ẋ and cotangents; writes two
        Operation("hvp", _hvp, (3, 1)),  # reads x, ẋ, ȳ; writes the tangent of x̄
    )
}
FIRST_ORDER = ("forward", JVP, "forward + vjp")
