"""vmap rules of ops whose results lack or shorten the last axes of their arguments; a batch axis goes in front."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..registration import DifferentiableOp
from ..registration.vmap import VmapRule, align, logical_shape

Shape = tuple[int, ...]


def leading_rule(
    op: DifferentiableOp, results_of: Sequence[Sequence[int]], result_shape: Callable[[Shape, Sequence[Any]], Shape]
) -> VmapRule:
    """The vmap rule of a primal or JVP whose tensors broadcast from the right.

    An unbatched tensor stays unbatched, so K tangents of one primal stay one primal and K tangents.

    Args:
        op: The op the rule is for.
        results_of: For each result, the positions of the arguments it depends on: it is batched if one of them is.
        result_shape: From the broadcast shape of those, and all arguments, to the shape of the result.

    Returns:
        A rule for ``op.vmap``.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        results = op.unpacked(op.overload(*align(info, in_dims, args, expand=False)))
        logical = [logical_shape(a, d) for a, d in zip(args, in_dims, strict=True)]
        shaped, out_dims = [], []
        for result, sources in zip(results, results_of, strict=True):
            shape = result_shape(torch.broadcast_shapes(*(s for i in sources if (s := logical[i]) is not None)), args)
            batched = any(in_dims[i] is not None for i in sources)
            shaped.append(result.reshape(info.batch_size, *shape) if batched else result.reshape(shape))
            out_dims.append(0 if batched else None)
        return tuple(shaped), tuple(out_dims)

    return rule


def reduced_pull_rule(op: DifferentiableOp, ndim_at: int, results_like: Sequence[int]) -> VmapRule:
    """The vmap rule of the pullback of a sum over the last axes: every tensor gets the batch axis.

    Args:
        op: The op the rule is for; its first argument is the cotangent of the sum, its last tells which results are
            wanted.
        ndim_at: Position of the number of axes that were summed over.
        results_like: For each result, the position of the argument whose shape it has.

    Returns:
        A rule for ``op.vmap``.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        ndim = args[ndim_at]
        y_bar, dim = args[0], in_dims[0]
        if dim is not None:  # seen from the right, the axes that were summed over come last
            y_bar, dim = y_bar.movedim(dim, 0), 0
        y_bar = y_bar.reshape((*y_bar.shape, *(1,) * ndim))
        aligned = align(info, (dim, *in_dims[1:]), (y_bar, *args[1:]), expand=True)
        aligned[0] = aligned[0].reshape(aligned[0].shape[: aligned[0].dim() - ndim])
        results = []
        for result, like, needed in zip(op.unpacked(op.overload(*aligned)), results_like, args[-1], strict=True):
            shape = logical_shape(args[like], in_dims[like])
            results.append(result.reshape(info.batch_size, *shape) if needed and shape is not None else result)
        return tuple(results), tuple(0 if needed else None for needed in args[-1])

    return rule
