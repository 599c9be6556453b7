"""Derivatives that a function has of its own, which the ops that it runs do not tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._torch import autograd_nodes, is_builtin_node
from .intercepted import NotRecordable


def called(function: Callable[[Tensor], Any], point: Tensor) -> Any:
    """Return what a function gives at a point, as autograd records it."""
    with torch.enable_grad():
        return function(point.clone().requires_grad_().view_as(point))


def check_derivatives(y: Tensor) -> None:
    """Check that every derivative on the way to y is one of PyTorch's own.

    Args:
        y: What the function returned.

    Raises:
        NotRecordable: If one is not, as that of a `torch.autograd.Function`: the ops that it ran would not tell it.
    """
    for node in autograd_nodes(y):
        if not is_builtin_node(node):
            raise NotRecordable(f"{node.name()} has a derivative of its own")
