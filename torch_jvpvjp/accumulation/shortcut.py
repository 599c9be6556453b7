"""The call of a plan that needs nothing but its recorded program."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ._torch import wraps_transform
from .nesting import is_differentiated

if TYPE_CHECKING:
    from .plan import Plan, Step
    from .tracings import Tracing


STEADY = 2
"""Calls in a row that went the same way, after which the next is taken to go that way until it is seen."""


class Shortcut(NamedTuple):
    """A call of one tensor that has been made before, with nothing in between x and the program."""

    steps: tuple[Step, ...]
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    constants: tuple[Tensor, ...]
    run: Callable[..., Any]
    tracing: Tracing
    outcome: Tensor | None  # what the conditions must be, which the program gives behind the Jacobian

    def takes(self, plan: Plan, x: Any) -> bool:
        """Return whether a call is such a one."""
        return (
            type(x) is Tensor
            and x.shape == self.shape
            and x.is_contiguous()
            and x.dtype is self.dtype
            and x.device == self.device
            and plan.steps is self.steps
            and not is_differentiated()
            and not wraps_transform(x)
            and self.tracing.holds()
        )

    def unless_another_way(self, x: Tensor) -> Tensor | None:
        """Return what the program gives; None if the function goes another way at x, where the program is wrong."""
        try:
            matrix, seen = self.run(x, *self.constants)
        except (RuntimeError, IndexError):  # on that way an op may not take its operands
            return None
        return matrix if self.outcome is not None and torch.equal(seen.cpu(), self.outcome) else None
