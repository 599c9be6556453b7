"""What compositions of derivatives are made of: a point with directions, scalar losses, batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, jvp

from ...registration import _torch_private as private

TensorFunction = Callable[..., tuple[Tensor, ...]]
Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Point:
    """Where a function is differentiated, and along what.

    Attributes:
        primals: The point x.
        tangents: A direction ẋ at x, and a second and a third one.
        cotangents: Cotangents ȳ of the outputs.
        thorough: Whether ``vmap`` runs over every choice of inputs, or over a few: a graph of all is slow to compile.
    """

    primals: Tensors
    tangents: tuple[Tensors, Tensors, Tensors]
    cotangents: Tensors
    thorough: bool = True


Composition = Callable[[TensorFunction, Point], object]


def loss_of(f: TensorFunction, point: Point) -> Callable[..., Tensor]:
    """A scalar function with a second derivative of its own: Σ ⟨ȳ, y⟩ + ⟨ȳ, y²⟩ / 4.

    Args:
        f: The function.
        point: Its cotangents are the weights.

    Returns:
        The scalar function of the primals.
    """

    def loss(*xs: Tensor) -> Tensor:
        terms = [(c * y).sum() + 0.25 * (c * y * y).sum() for c, y in zip(point.cotangents, f(*xs), strict=True)]
        return torch.stack(terms).sum()

    return loss


def along(f: Callable[..., object], tangents: Sequence[Tensor]) -> Callable[..., object]:
    """The directional derivative x ↦ J(x) ẋ as a function of the point.

    Args:
        f: The function.
        tangents: The direction.

    Returns:
        The function whose value is the tangent of f.
    """
    return lambda *xs: jvp(f, xs, tuple(tangents))[1]


def argnums(point: Point) -> tuple[int, ...]:
    """Positions of all primals."""
    return tuple(range(len(point.primals)))


def grad_all(loss: Callable[..., Tensor], point: Point) -> Callable[..., object]:
    """The gradient in all primals."""
    return grad(loss, argnums=argnums(point))


def leaves_at(point: Point) -> Tensors:
    """Fresh leaves at the point."""
    return tuple(x.detach().clone().requires_grad_() for x in point.primals)


def weighed_sum(value: object, weight: float = 1.0) -> Tensor:
    """A scalar that weighs every entry of a nest of tensors differently."""
    leaves = [t for t in private.tree_leaves(value) if isinstance(t, Tensor)]
    parts = [
        (t * (1 + weight * torch.arange(t.numel(), dtype=t.dtype, device=t.device).reshape(t.shape).cos())).sum()
        for t in leaves
    ]
    return torch.stack(parts).sum()


def batched(tensor: Tensor, dim: int = 0) -> Tensor:
    """Three different copies of a tensor along a new axis.

    Args:
        tensor: Any tensor.
        dim: Where the new axis stands.

    Returns:
        The stack.
    """
    return torch.stack([tensor, 0.5 * tensor.flip(0) if tensor.dim() else 0.5 * tensor, tensor + 0.1], dim)


def every_in_dims(p: Point) -> list[tuple[int | None, ...]]:
    """Which inputs are batched: each alone, all but each, and all, in front; and all of them at the back.

    Up to three inputs these are all subsets. At a point that is not thorough: the first alone, and all at the back.

    Args:
        p: The point.

    Returns:
        For each choice, the ``in_dims`` of the primals.
    """
    numbers = range(len(p.primals))
    alone = [tuple(0 if i == j else None for i in numbers) for j in numbers]
    others = [tuple(None if i == j else 0 for i in numbers) for j in numbers] if len(numbers) > 2 else []
    chosen = [*alone, *others, (0,) * len(numbers)] if p.thorough else alone[:1]
    return list(dict.fromkeys([*chosen, (-1,) * len(numbers)]))


def batch(tensors: Tensors, dims: tuple[int | None, ...]) -> Tensors:
    """Batch the tensors that have a dimension."""
    return tuple(t if d is None else batched(t, d) for t, d in zip(tensors, dims, strict=True))
