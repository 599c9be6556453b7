"""A formula must be a pure function of its arguments: a derivative may run it again, or differentiate it."""

import inspect
from typing import Any

import torch

from . import _torch_private as private
from .conventions import Function


class RefuseRandomness(private.TorchDispatchMode):
    """While active, an op that draws random numbers raises.

    A derivative that runs the formula again would see other numbers, and be that of another function.

    Args:
        qualname: The op whose formula runs.
    """

    def __init__(self, qualname: str) -> None:
        super().__init__()
        self._qualname = qualname

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise ValueError(
                f"{self._qualname}: the formula draws random numbers ({func}), which its derivatives would draw anew; "
                "draw them outside and pass them as an argument."
            )
        return func(*args, **(kwargs or {}))


def refuse_captured_gradients(qualname: str, formula: Function) -> None:
    """Refuse a formula that reads a tensor from its surroundings that requires grad: its gradient would be lost.

    Args:
        qualname: The op.
        formula: The formula.

    Raises:
        ValueError: If it captures one.
    """
    if not inspect.isfunction(formula):
        return
    captured = inspect.getclosurevars(formula)
    for name, value in {**captured.globals, **captured.nonlocals}.items():
        if isinstance(value, torch.Tensor) and value.requires_grad:
            raise ValueError(
                f"{qualname}: the formula reads {name!r} from its surroundings, a tensor that requires grad, whose "
                f"gradient would be lost; take it as an argument, or read {name}.detach()."
            )
