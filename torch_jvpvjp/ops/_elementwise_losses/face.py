"""What the public functions of the elementwise losses share: checks, weights, and how a reduction calls the op."""

from typing import Any

import torch
from torch import Tensor

from ...registration import DifferentiableOp
from ...registration import _torch_private as private
from ...registration.push import push_linear
from .._arguments import check_floating
from .._memory_order import inverse, memory_order

_is_compiling, _any_autocast = torch.compiler.is_dynamo_compiling, private.is_any_autocast_enabled


def checked_operands(
    name: str, x: Any, t: Any, reduction: Any, reductions: tuple[str, ...], weight: Any = None
) -> tuple[Tensor, Tensor]:
    """Refuse what is no elementwise loss before anything is computed, and bring input and target to one dtype.

    Args:
        name: Of the function.
        x: The input.
        t: The target.
        reduction: How it is reduced.
        reductions: Which reductions there are.
        weight: Weights, or None.

    Returns:
        Input and target, in the wider dtype of both, as PyTorch computes the loss of two.

    Raises:
        TypeError: If an argument is not of its type or dtype.
        ValueError: If shapes, devices or the reduction do not fit.
    """
    for argument, value in (("input", x), ("target", t), ("weight", weight)):
        if argument == "weight" and value is None:
            continue
        check_floating(name, argument, value)
        if value.shape != x.shape:
            raise ValueError(
                f"{name}: {argument} must have input's shape {tuple(x.shape)}, got {tuple(value.shape)}; use .expand() "
                "to broadcast."
            )
        if value.device != x.device:
            raise ValueError(
                f"{name}: {argument} must be on input's device {x.device}, got {value.device}; use .to(input.device)."
            )
    if not isinstance(reduction, str):
        raise TypeError(f"{name}: reduction must be one of {reductions}, got {type(reduction).__name__}.")
    if reduction not in reductions:
        raise ValueError(f"{name}: reduction must be one of {reductions}, got {reduction!r}.")
    if x.dtype == t.dtype:
        return x, t
    dtype = torch.promote_types(x.dtype, t.dtype)
    return x.to(dtype), t.to(dtype)


def reduced(op: DifferentiableOp, x: Tensor, t: Tensor, reduction: str, *options: Any) -> Tensor:
    """Call the op on axes in the order in which they lie in memory; a reduction sums over all of them.

    Args:
        op: The op.
        x: The input.
        t: The target.
        reduction: "none", "sum", "mean" or "batchmean".
        *options: The options of the loss.

    Returns:
        The loss.
    """
    if not x.dim() and reduction == "batchmean":  # as in PyTorch, a scalar is a batch of one
        reduction = "sum"
    order = None if reduction == "batchmean" else memory_order(x)  # the batch is the first axis
    if order is not None:
        x, t = x.permute(order), t.permute(order)
    args = (x, t, reduction, 0 if reduction == "none" else x.dim(), *options)
    # A call of the op would only look at the arguments again.
    y = op(*args) if _is_compiling() or _any_autocast() else op.call_flat(args)[0]
    return y if order is None or y.dim() == 0 else y.permute(inverse(order))


def weighted(terms: Tensor, weight: Tensor, reduction: str, *, by_weight: bool = False) -> Tensor:
    """Weigh the terms of a loss and reduce them.

    Args:
        terms: e(x, t), without reduction.
        weight: A factor of each.
        reduction: "none", "sum" or "mean".
        by_weight: Whether "mean" divides by Σ w; else by the number of elements.

    Returns:
        The loss.
    """

    def weigh(terms: Tensor) -> Tensor:
        product = terms * weight
        if reduction == "none":
            return product
        if reduction == "sum":
            return product.sum()
        return product.sum() / weight.sum() if by_weight else product.mean()

    return weigh(terms) if _is_compiling() else push_linear(weigh, terms, constants=(weight,))
