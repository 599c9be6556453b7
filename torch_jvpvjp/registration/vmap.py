"""The Python kernel at the ``FuncTorchBatched`` key, and ready-made rules for ops that broadcast.

A rule must not call a transform (it runs inside the dispatcher): it folds the batch axis into the op's own axes and
calls the op. Without a rule the formula runs on the batched tensors: right, only not one kernel.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _torch_private as private
from .purity import explaining_transforms

if TYPE_CHECKING:
    from .op import DifferentiableOp

VmapRule = Callable[..., tuple[Any, Any]]


def make_vmap_kernel(op: "DifferentiableOp") -> Callable[..., Any]:
    """Build the ``FuncTorchBatched`` kernel of an op.

    Args:
        op: The op; its rule, if any, is looked up when the kernel runs.

    Returns:
        A dispatcher kernel.
    """

    def vmap_kernel(*args: Any, **kwargs: Any) -> Any:
        args = op.signature.fill(args, kwargs)
        if op.vmap_rule is None:
            return op.packed(op.run_formula(args))
        interpreter = private.retrieve_current_interpreter()
        level = interpreter.level()
        operands, in_dims = [], []
        for value in args:
            tensor, dim = private.unwrap_batched((value,), level)
            operands.append(tensor[0])
            in_dims.append(dim[0])
        below = private.ExcludeKeys(private.DispatchKeySet(private.DispatchKey.FuncTorchBatched))
        with below:
            if all(dim is None for dim in in_dims):
                return op.overload(*operands)
            info = private.VmapInfo(batch_size=interpreter.batch_size(), randomness=interpreter.randomness())
            with explaining_transforms(op.qualname):
                returned = op.vmap_rule(info, tuple(in_dims), *operands)
            results, out_dims = _check(op, returned, info.batch_size)
        return op.packed(
            tuple(
                r if dim is None else private.add_batch_dim(r, dim, level)
                for r, dim in zip(results, out_dims, strict=True)
            )
        )

    return vmap_kernel


def _check(op: "DifferentiableOp", returned: Any, batch_size: int) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """Bring what a vmap rule returned to one result and one dimension each."""
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ValueError(
            f"{op.qualname}: the vmap rule must return (outputs, out_dims), got {type(returned).__name__}."
        )
    results = returned[0] if isinstance(returned[0], tuple | list) else (returned[0],)
    out_dims = returned[1] if isinstance(returned[1], tuple | list) else (returned[1],) * len(results)
    wanted = len(op.signature.results)
    if len(results) != wanted or len(out_dims) != wanted:
        raise ValueError(
            f"{op.qualname}: the vmap rule must return {wanted} output(s) and as many out_dims, got {len(results)} and "
            f"{len(out_dims)}."
        )
    for declared, result, dim in zip(op.signature.results, results, out_dims, strict=True):
        if not isinstance(result, Tensor) or not (dim is None or _has_axis(result, dim, batch_size)):
            got = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(
                f"{op.qualname}: the vmap rule must return for {declared.name} a tensor whose out_dim {dim!r} has the "
                f"batch size {batch_size}, got {got}."
            )
    return tuple(results), tuple(out_dims)


def _has_axis(result: Tensor, dim: Any, size: int) -> bool:
    return isinstance(dim, int) and -result.dim() <= dim < result.dim() and result.shape[dim] == size


def align(info: Any, in_dims: Sequence[int | None], args: Sequence[Any], *, expand: bool) -> list[Any]:
    """Put the batch axis of every tensor in front of axes that broadcast from the right.

    A tensor of logical rank r becomes (batch, 1, ..., 1, *shape) with R - r ones, R being the greatest logical rank.

    Args:
        info: What PyTorch tells a vmap rule; ``batch_size`` is read.
        in_dims: Where each argument's batch axis is, or None.
        args: The arguments.
        expand: Give unbatched tensors the batch axis too, with stride 0 (no copy); else leave them to broadcast.

    Returns:
        The arguments with their tensors aligned.
    """
    ranks = [a.dim() - (dim is not None) if isinstance(a, Tensor) else 0 for a, dim in zip(args, in_dims, strict=True)]
    rank = max(ranks)
    aligned = []
    for value, dim, own in zip(args, in_dims, ranks, strict=True):
        if not isinstance(value, Tensor) or (dim is None and not expand):
            aligned.append(value)
            continue
        if value.is_neg():  # PyTorch makes no view of a dual whose signs are yet to be flipped
            value = value.resolve_neg()  # noqa: PLW2901
        front = value.unsqueeze(0) if dim is None else value.movedim(dim, 0)
        front = front.reshape(front.shape[0], *[1] * (rank - own), *front.shape[1:])
        aligned.append(front.expand(info.batch_size, *front.shape[1:]) if dim is None else front)
    return aligned


def logical_shape(value: Any, dim: int | None) -> tuple[int, ...] | None:
    """Shape of a tensor without its batch axis."""
    if not isinstance(value, Tensor):
        return None
    return tuple(s for i, s in enumerate(value.shape) if dim is None or i != dim % value.dim())


def broadcasting_rule(op: "DifferentiableOp", results_of: Sequence[Sequence[int]]) -> VmapRule:
    """The vmap rule of an op whose tensors broadcast against each other from the right, as pointwise ops and norms do.

    An unbatched tensor stays unbatched, so K tangents of one primal stay one primal and K tangents.

    Args:
        op: The op the rule is for.
        results_of: For each result, the positions of the arguments it depends on: it is batched if one of them is.

    Returns:
        A rule for ``op.vmap``.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        aligned = align(info, in_dims, args, expand=False)
        results = op.unpacked(op.overload(*aligned))
        rank = max(a.dim() - (dim is not None) for a, dim in zip(args, in_dims, strict=True) if isinstance(a, Tensor))
        logical = [logical_shape(a, dim) for a, dim in zip(args, in_dims, strict=True)]
        shaped, out_dims = [], []
        for result, sources in zip(results, results_of, strict=True):
            shape = torch.broadcast_shapes(*(s for i in sources if (s := logical[i]) is not None))
            batched = any(in_dims[i] is not None for i in sources)
            if batched:
                # A result that does not depend on the batched argument lacks its axis: it is equal along it.
                front = result.reshape(*[1] * (rank + 1 - result.dim()), *result.shape)
                full = front.expand(info.batch_size, *[1] * (rank - len(shape)), *shape)
                result = full.contiguous()
            shaped.append(result.reshape(info.batch_size, *shape) if batched else result.reshape(shape))
            out_dims.append(0 if batched else None)
        return tuple(shaped), tuple(out_dims)

    return rule


def expanding_rule(op: "DifferentiableOp", results_like: Sequence[int]) -> VmapRule:
    """The vmap rule of a pullback whose results have the shapes of some of its arguments.

    Every tensor gets the batch axis (stride 0 where it was unbatched), so that nothing is summed over it.

    Args:
        op: The op the rule is for.
        results_like: For each result, the position of the argument whose shape it has.

    Returns:
        A rule for ``op.vmap``.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        aligned = align(info, in_dims, args, expand=True)
        results = op.unpacked(op.overload(*aligned))
        out = []
        for result, like in zip(results, results_like, strict=True):
            shape = logical_shape(args[like], in_dims[like])
            if shape is None or (result.dim() == 1 and result.numel() == 0):
                out.append((result, None))  # an absent cotangent has no shape of its own, and no batch axis
            else:
                out.append((result.reshape(info.batch_size, *shape), 0))
        return tuple(r for r, _ in out), tuple(d for _, d in out)

    return rule
