"""Stages: the callables of a chain, as what they are recognised to be. Whatever is not recognised is a black box."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._torch import jvp, linearize, vjp
from .activations import elementwise_derivative, is_elementwise, is_plain_module
from .bracket import Mode
from .factor import Factor
from .linear_map import LinearMap, MatrixMap, RowwiseMap, TapeMap, columns_as_block
from .structure import Block, Dense, Diagonal

Function = Callable[[Tensor], Tensor]


def label_of(function: Function) -> str:
    """Return what people call a function: its name, or its type's."""
    return getattr(function, "__name__", type(function).__name__)


class Stage(ABC):
    """One stage of a chain: a function of one tensor, and what is known of its derivative."""

    def __init__(self, function: Function) -> None:
        self.function = function

    @property
    def label(self) -> str:
        """What people call it."""
        return label_of(self.function)

    def __call__(self, x: Tensor) -> Tensor:
        """The value f(x), checked.

        Args:
            x: A floating tensor.

        Returns:
            f(x).

        Raises:
            TypeError: If f does not return one floating tensor.
            ValueError: If f writes into x.
        """
        version = None if x.is_inference() else x._version
        y: Any = self.function(x)
        if not isinstance(y, Tensor):
            raise TypeError(f"jacobian: {self.label} must return one tensor, got {type(y).__name__}.")
        if not y.is_floating_point():
            raise TypeError(f"jacobian: {self.label} must return a floating tensor, got {y.dtype}.")
        if version is not None and x._version != version:
            raise ValueError(
                f"jacobian: {self.label} must not write into its input, which it did in place; copy the input first."
            )
        return y

    @abstractmethod
    def closed_form(self, shape: torch.Size, dtype: torch.dtype) -> tuple[Factor, torch.Size] | None:
        """Sizes and costs on an input of that shape, with the shape of the output; None if only a run can tell."""

    @abstractmethod
    def linearize(self, x: Tensor, mode: Mode) -> tuple[Tensor, LinearMap]:
        """The value f(x) and the derivative there, ready to be used in one mode."""


class LinearStage(Stage):
    """y = x Wᵀ + b over the last axis: J = W for a single row, I ⊗ W for several."""

    function: nn.Linear  # pyright: ignore[reportIncompatibleVariableOverride]

    def closed_form(self, shape: torch.Size, dtype: torch.dtype) -> tuple[Factor, torch.Size]:
        """One JVP or VJP is m · n fma a row.

        Args:
            shape: Shape of x, (*rows, n).
            dtype: Dtype of x.

        Returns:
            The factor, and the shape (*rows, m) of y.

        Raises:
            ValueError: If the last axis of x is not n, or its dtype is not that of the weight.
        """
        m, n = self.function.weight.shape
        if not shape or shape[-1] != n:
            raise ValueError(f"its input must have a last axis of {n}, got shape {tuple(shape)}")
        weight = self.function.weight.dtype
        if dtype != weight and not torch.is_autocast_enabled(self.function.weight.device.type):
            raise ValueError(f"its input must have the dtype of its weight, {weight}, got {dtype}")
        rows = shape[:-1].numel()
        cost = rows * m * n
        structure = Dense(m, n) if rows == 1 else None
        # A linear map keeps nothing of its input, so its tape is empty.
        return Factor(rows * n, rows * m, cost, cost, 0, structure, self.label), torch.Size((*shape[:-1], m))

    def linearize(self, x: Tensor, mode: Mode) -> tuple[Tensor, LinearMap]:
        """Return the value, and the weight as the derivative."""
        weight = self.function.weight
        rows = x.shape[:-1].numel()
        if rows != 1:
            return self.function(x), RowwiseMap(weight, rows)
        return self.function(x), MatrixMap(Block(Dense(*weight.shape), weight))


class ElementwiseStage(Stage):
    """y = φ(x), entry by entry: J = diag(φ'(x))."""

    def closed_form(self, shape: torch.Size, dtype: torch.dtype) -> tuple[Factor, torch.Size]:
        """Return sizes and costs: one JVP or VJP is one fma an entry."""
        n = shape.numel()
        return Factor(n, n, n, n, n, Diagonal(n), self.label), shape

    def linearize(self, x: Tensor, mode: Mode) -> tuple[Tensor, LinearMap]:
        """Return the value, and the diagonal φ'(x)."""
        y, slope = elementwise_derivative(self.function, x)
        return y, MatrixMap(Block(Diagonal(x.numel()), slope.reshape(-1)))


class BlackBox(Stage):
    """Any function, differentiated by `torch.func`."""

    @classmethod
    def composed(cls, stages: Sequence[Stage]) -> BlackBox:
        """Return several stages as one, so that a sweep crosses them at once."""

        def composition(x: Tensor) -> Tensor:
            for stage in stages:
                x = stage(x)
            return x

        composition.__name__ = " ∘ ".join(stage.label for stage in reversed(stages))
        return cls(composition)

    def closed_form(self, shape: torch.Size, dtype: torch.dtype) -> None:
        """None: only a run can tell."""

    def linearize(self, x: Tensor, mode: Mode) -> tuple[Tensor, LinearMap]:
        """Return the value, and the recorded derivative."""
        if mode is Mode.ADJOINT:
            y, pullback = vjp(self, x)
            return y, TapeMap(x, y, pullback=pullback)
        y, pushforward = linearize(self, x)
        return y, TapeMap(x, y, pushforward=pushforward)

    def push_through(self, x: Tensor, block: Block) -> tuple[Tensor, Block]:
        """Return the value f(x) and the pushed block, in one run of f and without a record of it."""

        def push(x_dot: Tensor) -> tuple[Tensor, Tensor]:
            return jvp(self, x, x_dot)

        x_dot = block.dense().to(x.dtype)
        if block.structure.n == 1:  # spares the cost of vmap
            y, y_dot = push(x_dot.reshape(x.shape))
            return y, columns_as_block(y_dot, y.shape, block)
        # f(x) does not depend on the tangent: vmap computes it once, and shows it as equal slices of stride 0.
        values, y_dot = torch.func.vmap(push, in_dims=-1, randomness="same")(x_dot.reshape((*x.shape, -1)))
        return values[0], columns_as_block(y_dot, values[0].shape, block)


def recognise(function: Function) -> Stage:
    """Return the stage that a callable is, as it stands now: hooks, training mode and all."""
    if isinstance(function, nn.Linear) and _is_plain_linear(function):
        return LinearStage(function)
    if is_elementwise(function):
        return ElementwiseStage(function)
    return BlackBox(function)


def _is_plain_linear(module: nn.Linear) -> bool:
    # A subclass may do more than W x + b, and a weight of a subclass (quantised, sharded) is no plain matrix.
    return type(module) is nn.Linear and is_plain_module(module) and type(module.weight) in {nn.Parameter, Tensor}
