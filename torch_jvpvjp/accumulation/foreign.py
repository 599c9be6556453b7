"""Which ops a function calls, and which of their results it uses, whose derivatives PyTorch leaves out silently."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .._left_out import NAMES_WITH_CONSTANTS, first_constant, is_left_out, name_of_result
from .._zero_tangents import without_scaled_zeros
from ._torch import inside_transform
from .carrying import random_state, set_random_state
from .nesting import differentiating


def left_out(function: Callable[..., Any], tensors: Sequence[Tensor]) -> list[str]:
    """Return the names of such ops that a function calls at some tensors; it runs once, as far as it does."""
    return list(_watched(function, tensors).names)


def named_calls(function: Callable[..., Any], tensors: Sequence[Tensor]) -> list[str]:
    """Return which ops with results that autograd takes for constants a function calls by name, run once, likewise."""
    with Noticing() as noticing:
        _run(function, tensors)
    return list(noticing.names)


def used_constants(function: Callable[..., Any], tensors: Sequence[Tensor]) -> list[str]:
    """Return the names of results that a function uses and autograd takes for constants; it runs once, likewise."""
    return list(_watched(function, tensors).results)


def _watched(function: Callable[..., Any], tensors: Sequence[Tensor]) -> _Watch:
    with _Watch() as watch:
        watch.look_at(_run(function, tensors))
    return watch


def _run(function: Callable[..., Any], tensors: Sequence[Tensor]) -> list[Any]:
    """Return the value of a function as autograd records it; none if it fails, which whoever calls it next will see."""
    before = random_state(tensors[0].device)
    value: list[Any] = []
    with torch.inference_mode(mode=False), torch.enable_grad(), differentiating(), suppress(RuntimeError):
        own = list(tensors)
        if not inside_transform():
            own = [(one.clone() if one.is_inference() else one.detach()).requires_grad_() for one in tensors]
        value.append(function(*(one.view_as(one) for one in own)))
    set_random_state(tensors[0].device, before)
    return value


class Noticing(TorchFunctionMode):
    """Notes which ops that have such results a function calls by their own names; layers take the first alone."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, None] = {}

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _NAMED or getattr(func, "overloadpacket", None) in _NAMED:
            self.names[str(func)] = None
        return func(*args, **(kwargs or {}))


_NAMED: frozenset[Any] = frozenset(
    getattr(space, name) for space in (torch.ops.aten, torch) for name in NAMES_WITH_CONSTANTS if hasattr(space, name)
) | {torch.linalg.lstsq}


class _Watch(TorchDispatchMode):
    """Notes which such ops are called, and which such results are used.

    Pullbacks are given these results for what they are, so that their derivatives are right; what is detached, or used
    where gradients are off, is a constant by its own name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, None] = {}
        self.results: dict[str, None] = {}
        self._constants: dict[int, tuple[str, Tensor]] = {}  # by identity, which holds as long as each lives

    def look_at(self, tree: Any) -> None:
        """Take note of such results in a tree of what is used."""
        for leaf in tree_leaves(tree) if self._constants else ():
            if id(leaf) in self._constants:
                self.results[self._constants[id(leaf)][0]] = None

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if is_left_out(func):
            self.names[func._schema.name] = None
        if torch.is_grad_enabled() and func is not torch.ops.aten.detach.default and not is_pullback(func):
            self.look_at((args, kwargs))
        func, args, kwargs = without_scaled_zeros(func, args, kwargs or {})
        out = func(*args, **kwargs)
        first = first_constant(func)
        for place, result in enumerate(() if first is None else out[first:], first or 0):
            if isinstance(result, Tensor) and result.is_floating_point() and result.numel():
                self._constants[id(result)] = name_of_result(func, place), result
        return out


def is_pullback(op: Any) -> bool:
    """Return whether an op is the pullback of another, as its name says."""
    return op._schema.name.endswith("_backward")
