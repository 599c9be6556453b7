"""Sharded tensors: an op of DTensors is its formula, each step of which PyTorch shards.

PyTorch asks how each dispatcher op is sharded, and refuses those of which it does not know. Formulas are made of ops of
which it does. Kernels take plain tensors: call an op inside of ``torch.distributed.tensor.experimental.local_map``.
"""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .op import DifferentiableOp


def take_sharded(op: "DifferentiableOp") -> None:
    """Let every point of an op take DTensors, once, if there can be any: their module takes long to import.

    Args:
        op: The op.
    """
    module = sys.modules.get("torch.distributed.tensor")
    if module is None or op.takes_sharded:
        return
    for point in op.points().values():
        if not point.takes_sharded:
            torch.library.register_torch_dispatch(
                point.qualname, module.DTensor, _make_rule(point, module.DTensor), lib=point.library
            )
            point.takes_sharded = True


def _make_rule(op: "DifferentiableOp", kind: type[Tensor]) -> Callable[..., Any]:
    def rule(mode: Any, function: Any, types: Any, args: Sequence[Any], kwargs: dict[str, Any] | None = None) -> Any:
        from torch.distributed.tensor.experimental import implicit_replication

        args = op.signature.fill(tuple(args), kwargs or {})
        _check(op, args, kind)
        with implicit_replication():  # of what a formula makes of numbers, the same on every rank
            return op.packed(op.run_formula(args))

    return rule


def _check(op: "DifferentiableOp", args: Sequence[Any], kind: type[Tensor]) -> None:
    """Refuse tensors of one rank beside those of all, which might be parts."""
    for i in op.signature.tensors:
        if args[i] is not None and args[i].dim() and not isinstance(args[i], kind):
            raise TypeError(
                f"{op.qualname}: argument {op.signature.arguments[i].name!r} must be a DTensor, as another one is, got "
                f"{type(args[i]).__name__}; use torch.distributed.tensor.distribute_tensor."
            )
