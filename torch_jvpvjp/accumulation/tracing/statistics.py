"""Results of normalisations that autograd takes for constants, as ops that have derivatives.

    mean = Σ x / n,    factor = (Σ (x − mean)² / n + eps)^(-1/2)

over the entries that are normalised together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._left_out import first_constant, name_of_result
from .intercepted import NotRecordable
from .op_arguments import argument

_aten = torch.ops.aten

Run = Callable[..., Tensor]  # an op with its arguments


class _Result(NamedTuple):
    """A result of a call of an op, by its place."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: int
    tensor: Tensor


class Constants:
    """Results that autograd takes for constants in one recording, and what becomes of them.

    They are left as they are until an op uses them that is no pullback, nor detaches them: pullbacks are given them for
    what they are, and have the right derivative.

    Args:
        run: Runs an op, and records it.

    Attributes:
        restored: The values that have a derivative which autograd leaves out.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._results: dict[int, _Result] = {}
        self._derived: dict[int, Tensor] = {}
        self._deriving = False
        self.restored: set[int] = set()

    def __contains__(self, index: int) -> bool:
        return index in self._results

    def noted(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: Sequence[int | None],
        results: Sequence[Tensor | None],
    ) -> set[int]:
        """Take note of such results of an op, and return which values they are."""
        first = first_constant(func)
        if first is None:
            return set()
        found: set[int] = set()
        for place, (index, result) in enumerate(zip(outputs, results, strict=True)):
            if place < first or index is None or result is None:
                continue
            if result.is_floating_point() and result.numel():
                self._results[index] = _Result(func, args, kwargs, place, result)
                found.add(index)
        return found

    def follow(self, active: Iterable[int], moved: set[int]) -> None:
        """Take note of values that an op makes of active ones: what is made of a restored one is restored."""
        if self._deriving or not self.restored.isdisjoint(active):
            self.restored |= moved

    def derived(self, index: int) -> Tensor:
        """The same value with its derivative.

        Args:
            index: A value that is such a result.

        Returns:
            It, made anew.

        Raises:
            NotRecordable: If it is not known how.
        """
        if index not in self._derived:
            result = self._results[index]
            if result.func not in _AXES:
                raise NotRecordable(f"PyTorch has no derivative of {name_of_result(result.func, result.place)}")
            self._deriving = True
            try:
                self._derived[index] = _formula(self._run, result)
            finally:
                self._deriving = False
        return self._derived[index]


def _formula(run: Run, result: _Result) -> Tensor:
    """Return a result of a normalisation, the mean (1) or the factor (2), by ops that `run` runs."""
    func, args, kwargs, place, like = result
    x = args[0] if args[0].dtype == like.dtype else run(_aten._to_copy.default, args[0], dtype=like.dtype)
    x, dims, kept = _AXES[func](run, x, lambda name: argument(func, args, kwargs, name))
    if place == 1:
        return run(_aten.mean.dim, x, dims, kept)
    variance = run(_aten.var.correction, x, dims, correction=0, keepdim=kept)
    return run(_aten.rsqrt.default, run(_aten.add.Tensor, variance, argument(func, args, kwargs, "eps")))


def _of_layer(run: Run, x: Tensor, given: Callable[[str], Any]) -> tuple[Tensor, list[int], bool]:
    return x, list(range(x.dim() - len(given("normalized_shape")), x.dim())), True


def _of_groups(run: Run, x: Tensor, given: Callable[[str], Any]) -> tuple[Tensor, list[int], bool]:
    return run(_aten.view.default, x, [given("N"), given("group"), -1]), [2], False


def _of_channels(run: Run, x: Tensor, given: Callable[[str], Any]) -> tuple[Tensor, list[int], bool]:
    return x, [0, *range(2, x.dim())], False


_AXES = {
    _aten.native_layer_norm.default: _of_layer,
    _aten.native_group_norm.default: _of_groups,
    _aten.native_batch_norm.default: _of_channels,
    _aten._native_batch_norm_legit.default: _of_channels,
    _aten._native_batch_norm_legit.no_stats: _of_channels,
    _aten._batch_norm_with_update.default: _of_channels,
}
"""For each, how x is to be seen, over which axes it is normalised, and whether they are kept."""
