"""Batch axes that vmap puts in front of an op's own axes, as one axis K of the launchers; and the way back.

Tensors broadcast from the right; the last ndim axes are the op's own. What lies in front broadcasts too and becomes K,
along which an operand varies or is shared as a whole (K = 1).
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..registration import DifferentiableOp
from ..registration.vmap import align
from ._groups import sum_to


class Batched(NamedTuple):
    """Operands as launchers take them, and the way back.

    Attributes:
        tensors: The operands, (K or 1, *own axes) each, or None.
        lead: The axes that make up K.
    """

    tensors: list[Any]
    lead: tuple[int, ...]

    def result(self, result: Tensor, like: Tensor | None = None) -> Tensor:
        """Shape a launcher's (K or 1, *own axes) as the tensor it stands for.

        Args:
            result: What a launcher returned.
            like: The argument whose shape the result must have, summed over the axes along which that was broadcast;
                None leaves the full shape.

        Returns:
            The shaped result.
        """
        if not self.lead:
            full = result[0]
        else:
            shared = result.shape[0] != prod(self.lead)
            full = result.reshape((*((1,) * len(self.lead) if shared else self.lead), *result.shape[1:]))
        return full if like is None else sum_to(full, like.shape)

    def shared_result(self, result: Tensor, shape: Sequence[int]) -> Tensor:
        """Shape a launcher's (K or 1, *own axes) that is equal along the axes over which it was broadcast.

        Args:
            result: What a launcher returned.
            shape: The shape without that broadcasting.

        Returns:
            The shaped result, taken once along those axes.
        """
        full = self.result(result)
        extra = full.dim() - len(shape)
        for axis in range(full.dim()):
            if full.shape[axis] != 1 and (axis < extra or shape[axis - extra] == 1):
                full = full.narrow(axis, 0, 1)
        return full.reshape(tuple(shape))


def batched(tensors: Sequence[Tensor | None], ndim: int) -> Batched:
    """Bring operands to (K or 1, *own axes), without a copy where strides allow.

    Args:
        tensors: Operands (*lead, *own axes), or None; one with fewer than ndim axes lacks leading ones.
        ndim: Number of the op's own axes.

    Returns:
        The operands in the layout of the launchers.
    """
    present = [t for t in tensors if t is not None]
    if all(t.dim() <= ndim for t in present):  # the common case: nothing is batched
        return Batched([None if t is None else t.reshape(1, *_padded(t.shape, ndim)) for t in tensors], ())
    rank = max(t.dim() for t in present)
    lead = tuple(torch.broadcast_shapes(*(_padded(t.shape, rank)[: rank - ndim] for t in present)))

    def one_axis(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        shape = _padded(tensor.shape, rank)
        own = shape[rank - ndim :]
        if prod(shape[: rank - ndim]) == 1:
            return tensor.reshape(1, *own)
        return tensor.reshape(shape).expand((*lead, *own)).reshape(prod(lead), *own)

    return Batched([one_axis(t) for t in tensors], lead)


def as_many(weight: Tensor | None, tangent: Tensor | None) -> Tensor | None:
    """A weight along as many K as its tangent has: for the cotangent of the tangent, which is one for each.

    Args:
        weight: (K or 1, ...), or None.
        tangent: Likewise.

    Returns:
        The weight, expanded.
    """
    if weight is None or tangent is None or tangent.shape[0] <= weight.shape[0]:
        return weight
    return weight.expand(tangent.shape)


def _padded(shape: Sequence[int], rank: int) -> tuple[int, ...]:
    return (*(1,) * (rank - len(shape)), *shape)


def leading_rule(
    op: DifferentiableOp, results_of: Sequence[Sequence[int]], ndim: Callable[[Sequence[Any]], int]
) -> Callable[..., tuple[Any, Any]]:
    """The vmap rule of an op whose tensors broadcast along what lies in front of its own axes, and there alone.

    An unbatched tensor stays unbatched, so K tangents of one primal stay one primal and K tangents.

    Args:
        op: The op the rule is for.
        results_of: For each result, the positions of the arguments it depends on: it is batched if one of them is.
        ndim: How many own axes a result has, from the op's arguments; a tensor with fewer lacks leading ones.

    Returns:
        A rule for ``op.vmap``.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        own = ndim(args)
        results = op.unpacked(op.overload(*align(info, in_dims, args, expand=False)))
        leads = []  # of every argument, without the batch axis
        for value, dim in zip(args, in_dims, strict=True):
            shape = tuple(value.shape) if isinstance(value, Tensor) else ()
            shape = shape if dim is None else (*shape[: dim % len(shape)], *shape[dim % len(shape) + 1 :])
            leads.append(shape[: max(0, len(shape) - own)])
        shaped, out_dims = [], []
        for result, positions in zip(results, results_of, strict=True):
            lead = torch.broadcast_shapes(*(leads[i] for i in positions))
            is_batched = any(in_dims[i] is not None for i in positions)
            front = (info.batch_size,) if is_batched else ()
            shaped.append(result.reshape((*front, *lead, *result.shape[result.dim() - own :])))
            out_dims.append(0 if is_batched else None)
        return tuple(shaped), tuple(out_dims)

    return rule
