"""The corners of PyTorch that the accumulator leans on: private names, and `torch.func` of one input, with types."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.module import _has_any_global_hook as any_global_module_hook

__all__ = ["FakeTensorMode", "any_global_module_hook", "inside_transform", "jvp", "linearize", "vjp"]


def jvp(function: Callable[[Tensor], Tensor], x: Tensor, x_dot: Tensor) -> tuple[Tensor, Tensor]:
    """Return f(x) and J ẋ."""
    _load_jvp_rules()
    results: Any = torch.func.jvp(function, (x,), (x_dot,))
    return results


def vjp(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor]]]:
    """Return f(x) and the pullback ȳ ↦ (Jᵀ ȳ,)."""
    results: Any = torch.func.vjp(function, x)
    return results


def linearize(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return f(x) and the recorded pushforward ẋ ↦ J ẋ."""
    _load_jvp_rules()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attempted to insert a get_attr Node", UserWarning)  # its own tracing does
        return torch.func.linearize(function, x)


@cache
def _load_jvp_rules() -> None:
    # The first JVP of a process imports this module, which scripts its rules and so warns of PyTorch's own doing; where
    # warnings are errors, that JVP would fail.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated")  # its category differs by release
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def inside_transform() -> bool:
    """Return whether a `torch.func` transform is running."""
    functorch: Any = getattr(torch._C, "_functorch")  # noqa: B009 (the stubs do not know it)
    return functorch.peek_interpreter_stack() is not None
