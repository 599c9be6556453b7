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
    """

    primals: Tensors
    tangents: tuple[Tensors, Tensors, Tensors]
    cotangents: Tensors


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


BATCH = 3


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
    """Every nonempty subset of the inputs batched, in front; and all of them batched at the back."""
    count = len(p.primals)
    subsets = [tuple(0 if mask >> i & 1 else None for i in range(count)) for mask in range(1, 2**count)]
    return [*subsets, (-1,) * count]


def batch(tensors: Tensors, dims: tuple[int | None, ...]) -> Tensors:
    """Batch the tensors that have a dimension."""
    return tuple(t if d is None else batched(t, d) for t, d in zip(tensors, dims, strict=True))
