"""One sample of an op, seen as a function of its differentiable tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..registration import DifferentiableOp
from .compositions import Point, TensorFunction


@dataclass(frozen=True)
class Sample:
    """Arguments with which an op is checked.

    Attributes:
        args: Positional arguments. Floating-point tensors are differentiated; the check sets their dtype and device.
        kwargs: Keyword arguments.
        name: What reports call it.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    name: str = ""


def as_samples(samples: Sequence[Any]) -> list[Sample]:
    """Accept samples as people write them: ``Sample`` objects, tuples of arguments, or single tensors.

    Args:
        samples: The samples.

    Returns:
        Named samples.

    Raises:
        TypeError: If ``samples`` is not a nonempty list of those.
    """
    if not isinstance(samples, Sequence) or not samples:
        raise TypeError(f"check_op: samples must be a nonempty list of argument tuples, got {samples!r}.")
    found = []
    for number, sample in enumerate(samples):
        if isinstance(sample, Tensor):
            sample = (sample,)
        if isinstance(sample, tuple):
            sample = Sample(sample)
        if not isinstance(sample, Sample):
            raise TypeError(f"check_op: sample {number} must be a Sample or a tuple, got {type(sample).__name__}.")
        found.append(Sample(sample.args, sample.kwargs, sample.name or f"{number}: {_shapes(sample)}"))
    return found


def _shapes(sample: Sample) -> str:
    shown = [_describe(a) for a in sample.args] + [f"{k}={_describe(v)}" for k, v in sample.kwargs.items()]
    return ", ".join(shown)


def _describe(value: Any) -> str:
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


class Case:
    """A sample on a device, in a dtype, with directions drawn from a fixed seed.

    Args:
        op: The op, or a public function around one.
        reference: What judges it: the same arguments, plain PyTorch.
        sample: The arguments.
        device: Where tensors go.
        dtype: Floating-point dtype of all tensors.
    """

    def __init__(
        self,
        op: Callable[..., Any],
        reference: Callable[..., Any],
        sample: Sample,
        device: str = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.op, self.reference, self.sample, self.device, self.dtype = op, reference, sample, device, dtype
        self.values: list[Any] = [self._place(v) for v in (*sample.args, *sample.kwargs.values())]
        frozen = _frozen_values(op, sample)
        self.positions = [
            i for i, v in enumerate(self.values) if isinstance(v, Tensor) and v.is_floating_point() and i not in frozen
        ]
        if not self.positions:
            raise TypeError(f"check_op: sample {sample.name} has no floating-point tensor to differentiate.")
        self.flowing = self._flowing_outputs()
        self.point = self._draw()

    def _place(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        moved = value.detach().to(self.device)
        return moved.to(self.dtype) if moved.is_floating_point() else moved

    def _flowing_outputs(self) -> list[int]:
        """Positions of the outputs that carry derivatives."""
        if isinstance(self.op, DifferentiableOp):
            return [j for j in self.op.signature.visible_results if self.op.signature.results[j].differentiable]
        return [j for j, y in enumerate(self.outputs(self.reference)) if y.is_floating_point()]

    def _draw(self) -> Point:
        """The point itself, three directions and cotangents; drawn on the CPU so that every device sees the same."""
        generator = torch.Generator().manual_seed(20)

        def draw(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device, like.dtype)

        primals = tuple(self.values[i] for i in self.positions)
        tangents = tuple(tuple(draw(x) for x in primals) for _ in range(3))
        cotangents = tuple(draw(y) for y in self.function(self.reference)(*primals))
        return Point(primals, tangents, cotangents)  # pyright: ignore[reportArgumentType]

    def call(self, function: Callable[..., Any], primals: Sequence[Tensor]) -> Any:
        """Call op or reference with these tensors in the places of the differentiable ones.

        Args:
            function: The op or its reference.
            primals: One tensor per differentiable argument.

        Returns:
            What it returns.
        """
        values = list(self.values)
        for i, primal in zip(self.positions, primals, strict=True):
            values[i] = primal
        count = len(self.sample.args)
        return function(*values[:count], **dict(zip(self.sample.kwargs, values[count:], strict=True)))

    def outputs(self, function: Callable[..., Any], primals: Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
        """All outputs, differentiable or not.

        Args:
            function: The op or its reference.
            primals: Tensors for the differentiable arguments; the sample's by default.

        Returns:
            The outputs.
        """
        returned = self.call(function, [self.values[i] for i in self.positions] if primals is None else primals)
        return tuple(returned) if isinstance(returned, tuple | list) else (returned,)

    def function(self, function: Callable[..., Any]) -> TensorFunction:
        """Op or reference as a function from differentiable inputs to differentiable outputs.

        Args:
            function: The op or its reference.

        Returns:
            The function of tensors.
        """
        flowing = self.flowing

        def of_tensors(*primals: Tensor) -> tuple[Tensor, ...]:
            results = self.outputs(function, primals)
            return tuple(results[j] for j in flowing)

        return of_tensors

    def at(self, dtype: torch.dtype) -> "Case":
        """The same sample in another dtype.

        Args:
            dtype: A floating-point dtype.

        Returns:
            A new case whose tensors are these, rounded.
        """
        return Case(self.op, self.reference, self.sample, self.device, dtype)

    @property
    def empty(self) -> bool:
        """Whether some tensor has no elements."""
        return any(t.numel() == 0 for t in (*self.point.primals, *self.point.cotangents))


def _frozen_values(op: Callable[..., Any], sample: Sample) -> set[int]:
    """Positions, among positional then keyword values, of the arguments an op declares non-differentiable."""
    if not isinstance(op, DifferentiableOp):
        return set()
    names = [op.signature.arguments[i].name for i in op.signature.frozen]
    order = [a.name for a in op.signature.arguments[: len(sample.args)]] + list(sample.kwargs)
    return {i for i, name in enumerate(order) if name in names}
