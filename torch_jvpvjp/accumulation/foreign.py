"""Which ops a function calls whose derivatives PyTorch leaves out without a word."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .._left_out import is_left_out
from ._torch import inside_transform
from .carrying import random_state, set_random_state
from .nesting import differentiating


def left_out(function: Callable[..., Any], tensors: Sequence[Tensor]) -> list[str]:
    """Return the names of such ops that a function calls at some tensors; it runs once, as far as it does."""
    before = random_state(tensors[0].device)
    with torch.inference_mode(mode=False), torch.enable_grad(), differentiating(), _Watch() as watch:
        own = list(tensors)
        if not inside_transform():
            own = [(one.clone() if one.is_inference() else one.detach()).requires_grad_() for one in tensors]
        with suppress(RuntimeError):  # which whoever calls it next will see
            function(*(one.view_as(one) for one in own))
    set_random_state(tensors[0].device, before)
    return list(watch.names)


class _Watch(TorchDispatchMode):
    """Notes which such ops are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, None] = {}

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if is_left_out(func):
            self.names[func._schema.name] = None
        return func(*args, **(kwargs or {}))
