"""What a kernel or a rule returns has the shapes, dtypes and device that the formula says, or it is refused.

Compiled code, gradients and tangents are laid out by what the formula says. It says so on tensors without data, once
for each kind of call; from then on a call compares.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _torch_private as private
from .conventions import Convention, Function, label
from .purity import Examination

_MOST_KINDS = 4096


class Expectation:
    """What the formula of an op returns, in shapes and dtypes.

    Args:
        examination: Of the formula.
        run: The formula, or what stands for it where tensors have no data; called with one value per argument.
        tensors: Positions of its tensors.
    """

    def __init__(
        self, examination: Examination, run: Callable[[tuple[Any, ...]], tuple[Tensor, ...]], tensors: tuple[int, ...]
    ) -> None:
        self._examination, self._run, self._tensors = examination, run, tensors
        self._known: dict[Any, tuple[tuple[torch.Size, torch.dtype], ...] | None] = {}

    def forget(self) -> None:
        """Ask anew, since another function says what is returned."""
        self._known.clear()

    def __call__(self, args: Sequence[Any]) -> tuple[tuple[torch.Size, torch.dtype], ...] | None:
        """Shapes and dtypes of the results.

        Args:
            args: One value per argument.

        Returns:
            A pair for each result; None if the formula does not say on tensors without data.
        """
        kind: list[Any] = [self._examination.kind(args), torch.get_default_dtype()]
        for i in self._tensors:
            value = args[i]
            if value is not None:
                kind += (value.shape, value.dtype)
        key = tuple(kind)
        try:
            return self._known[key]
        except KeyError:
            if len(self._known) >= _MOST_KINDS:
                self._known.clear()
            said = self._known[key] = self._ask(args)
            return said

    def _ask(self, args: Sequence[Any]) -> tuple[tuple[torch.Size, torch.dtype], ...] | None:
        with private.without_modes():
            empty = [torch.empty_like(a, device="meta") if isinstance(a, Tensor) else a for a in args]
            try:
                with torch.no_grad(), self._examination.of_wrappers(args):
                    results = self._run(tuple(empty))
            except Exception:  # such a formula looks at data, or leaves PyTorch
                return None
        return tuple([(r.shape, r.dtype) for r in results])


def check_agreement(convention: Convention, results: Sequence[Tensor], args: Sequence[Any], function: Function) -> None:
    """Refuse results of a primal or a JVP that are none of the formula; those of a VJP have been looked at.

    Args:
        convention: Of the point.
        results: What was returned, one tensor per result.
        args: For what, one value per argument.
        function: By what.

    Raises:
        ValueError: If a result has another shape or dtype.
    """
    if private.len_torch_dispatch_stack():  # sizes may be symbols; what is traced is compared when it runs
        return
    wanted = convention.expected(args)
    if wanted is None:
        return
    for j, (result, (shape, dtype)) in enumerate(zip(results, wanted, strict=True)):
        if (result.dtype is not dtype and dtype is not None) or (result.shape != shape and shape is not None):
            name, got = convention.signature.results[j].name, f"shape {tuple(result.shape)} and dtype {result.dtype}"
            required = f"dtype {dtype}" if shape is None else f"shape {tuple(shape)} and dtype {dtype}"
            raise ValueError(
                f"{convention.qualname}: {label(function)} must return {name} of {required}, as the formula of the op "
                f"says for these arguments, got {got}."
            )


def check_device(
    convention: Convention, results: Sequence[Tensor], device: torch.device | None, function: Function
) -> None:
    """Refuse results of a kernel on another device than its arguments.

    Args:
        convention: Of the point.
        results: What was returned.
        device: Of the arguments.
        function: By what.

    Raises:
        ValueError: If there is one.
    """
    for j, result in enumerate(results):
        if result.device != device:
            raise ValueError(
                f"{convention.qualname}: {label(function)} must return {convention.signature.results[j].name} on "
                f"{device}, where its arguments are, got a tensor on {result.device}."
            )
