"""The kernel for the ``vmap`` before functorch, behind ``is_grads_batched=True`` and ``torch.autograd.functional``.

The formula runs on the tensors that it batched. For some ops of PyTorch, those of lists of tensors such as `einsum`, it
has neither a rule nor a loop: there the op is called for one row of the batch after another.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _torch_private as private

if TYPE_CHECKING:
    from .op import DifferentiableOp

_LEVELS = range(1, 65)  # PyTorch has no more
_NO_RULE = "Batching rule not implemented"


def make_legacy_vmap_kernel(op: "DifferentiableOp") -> Callable[..., Any]:
    """Build the ``Batched`` kernel of an op.

    Args:
        op: The op.

    Returns:
        A dispatcher kernel.
    """

    def batched_kernel(*args: Any, **kwargs: Any) -> Any:
        args = op.signature.fill(args, kwargs)
        try:
            return op.packed(op.run_formula(args))
        except RuntimeError as error:
            level, count = _innermost([args[i] for i in op.signature.tensors])
            if _NO_RULE not in str(error) or not count:
                raise
        return op.packed(_row_by_row(op, args, level, count))

    return batched_kernel


def _row_by_row(op: "DifferentiableOp", args: Sequence[Any], level: int, count: int) -> tuple[Tensor, ...]:
    """Peel off one level, call the op for each row, and put the results on that level again."""
    rows = [list(args) for _ in range(count)]
    for i in op.signature.tensors:
        if args[i] is not None:
            peeled = private.remove_batch_dim(args[i], level, count, 0)  # expanded where it has no such level
            for row, tensor in zip(rows, peeled.unbind(), strict=True):
                row[i] = tensor
    results = zip(*(op.unpacked(op.overload(*row)) for row in rows), strict=True)
    # A value that is the same in all rows stays one: PyTorch makes no dual of a batched one.
    shared = op.convention.shared_results([_is_at(a, level) for a in args])
    return tuple([
        result[0] if j in shared else private.add_legacy_batch_dim(torch.stack(result), 0, level)
        for j, result in enumerate(results)
    ])


def _innermost(tensors: Sequence[Tensor | None]) -> tuple[int, int]:
    """The greatest level at which one of these tensors is batched, and the size of its batch."""
    for level in reversed(_LEVELS):
        for tensor in tensors:
            if _is_at(tensor, level):
                return level, private.remove_batch_dim(tensor, level, 1, 0).shape[0]
    raise AssertionError("a kernel for batched tensors was called without one")


def _is_at(value: Any, level: int) -> bool:
    """Whether a value is a tensor batched at a level; without it, one is expanded to whatever size is asked for."""
    if not isinstance(value, Tensor) or not private.is_legacy_batched(value):
        return False
    return len({private.remove_batch_dim(value, level, size, 0).shape[0] for size in (2, 3)}) == 1
