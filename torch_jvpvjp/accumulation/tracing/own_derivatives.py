"""Derivatives that a function has of its own, which the ops that it runs do not tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..._left_out import is_left_out
from .._torch_autograd import autograd_nodes, is_builtin_node
from .intercepted import NotRecordable
from .tape import TapeOp


def called(function: Callable[[Tensor], Any], point: Tensor) -> Any:
    """Return what a function gives at a point, as autograd records it."""
    with torch.enable_grad():
        return function(point.clone().requires_grad_().view_as(point))


def check_derivatives(y: Tensor | None, ops: Iterable[TapeOp] = ()) -> None:
    """Check that every derivative on the way to y is one of PyTorch's own.

    Args:
        y: What the function returned, as autograd has recorded it; None if it has not.
        ops: What was written down on the way.

    Raises:
        NotRecordable: If one is not, as that of a `torch.autograd.Function`: the ops that it ran would not tell it. Or
            if PyTorch leaves one out.
    """
    for op in ops:
        if op.active and is_left_out(op.target):
            raise NotRecordable(f"PyTorch's transforms leave out the derivative of {op.target}")
    for node in () if y is None else autograd_nodes(y):
        if not is_builtin_node(node):
            raise NotRecordable(f"{node.name()} has a derivative of its own")
