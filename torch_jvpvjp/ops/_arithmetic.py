"""The dtype that formulas compute in, and the way back to the arguments' own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._groups import sum_to

FLOATS = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))


def wide(tensor: Tensor | None, like: Tensor) -> Any:
    """Bring a tensor to the dtype that an op computes in: float64 where its first argument is, else float32.

    Args:
        tensor: A tensor, or None.
        like: The argument that decides.

    Returns:
        The tensor in that dtype, or None.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)


def cotangents_like(results: Sequence[Tensor | None], arguments: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Bring each cotangent to the shape and dtype of its argument.

    Args:
        results: Cotangents, not yet summed over what was broadcast; None is zero.
        arguments: What they are cotangents of; a missing argument has none.

    Returns:
        The cotangents.
    """
    return tuple(
        None if r is None or a is None else sum_to(r, a.shape).to(a.dtype)
        for r, a in zip(results, arguments, strict=True)
    )


def broadcast_empty(like: Tensor, *broadcast: Tensor | None) -> Tensor:
    """Make the shape-only stand-in for a result.

    Args:
        like: The tensor whose dtype it has.
        *broadcast: The tensors whose shapes it broadcasts; None takes no part.

    Returns:
        An uninitialised tensor.
    """
    return like.new_empty(torch.broadcast_shapes(*(t.shape for t in broadcast if t is not None)))


def empty_like(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Make the shape-only stand-ins for cotangents.

    Args:
        *tensors: The arguments.

    Returns:
        An uninitialised tensor for each, None for None.
    """
    return tuple(None if t is None else t.new_empty(t.shape) for t in tensors)


def total(*terms: Tensor | None) -> Tensor | None:
    """Add what is there.

    Args:
        *terms: Tensors that broadcast, or None for zero.

    Returns:
        The sum, or None if all are None.
    """
    result = None
    for term in terms:
        result = term if result is None else result if term is None else result + term
    return result


def times(*factors: Tensor | None) -> Tensor | None:
    """Multiply, None being zero.

    Args:
        *factors: Tensors that broadcast, or None for zero.

    Returns:
        The product, or None if a factor is.
    """
    result = None
    for factor in factors:
        if factor is None:
            return None
        result = factor if result is None else result * factor
    return result


def rounding(a: Tensor, b: Tensor) -> Tensor:
    """What a + b lacks of the sum of a and b (Knuth's two-sum); 0 where the sum is not finite.

    Args:
        a: One summand.
        b: The other.

    Returns:
        The rest.
    """
    a, b = a.detach(), b.detach()
    found = a + b
    b_kept = found - a
    rest = (a - (found - b_kept)) + (b - b_kept)
    return torch.where(rest.isfinite(), rest, 0)
