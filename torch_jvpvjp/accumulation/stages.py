"""Stages as they stand: what callables are called, and black boxes, which are differentiated by `torch.func`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._left_out import without_derivative
from ._torch import any_global_module_hook, jvp, vjp
from ._torch_autograd import Recording, recording_of
from ._torch_contexts import plain_attention
from .autocasting import as_outside
from .bending import rows_of, rows_where_bent
from .bracket import Mode
from .carrying import carry_each, random_state, set_random_state
from .foreign import left_out
from .linear_map import LinearMap, Pullback, TapeMap, columns_as_block
from .nesting import differentiating
from .structure import Block, Dense

Function = Callable[[Tensor], Tensor]


def label_of(function: Callable[..., Any]) -> str:
    """Return what people call a function: its name, or its type's."""
    return getattr(function, "__name__", type(function).__name__)


def is_plain_module(module: nn.Module) -> bool:
    """Return whether calling a module does what its class says: it has no hooks, and its forward is not replaced."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        or any_global_module_hook()
    )


class Restricted:
    """A function some derivatives of which are not taken as PyTorch takes them; its value is its value.

    Args:
        function: The function.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self.__name__ = label_of(function)

    def __call__(self, x: Tensor) -> Tensor:
        """Return its value."""
        return self.function(x)


class ByAutograd(Restricted):
    """A function that autograd differentiates and no transform of `torch.func` does: it is pulled through only.

    Such are functions that update buffers, as batch normalisation in training does, that take gradients by
    `torch.autograd.grad`, that leave PyTorch for NumPy, or call an `autograd.Function` without `setup_context`.
    """


class ByRows(Restricted):
    """A function whose tangents are taken by the rows of its Jacobian: PyTorch's forward mode of it is not right."""


class BlackBox:
    """Any function of one tensor.

    Args:
        function: The function.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
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
        with plain_attention():  # which takes many vectors at once, in every derivative
            y: Any = as_outside(self.function, x)
        if not isinstance(y, Tensor):
            raise TypeError(f"jacobian: {self.label} must return one tensor, got {type(y).__name__}.")
        if not y.is_floating_point():
            raise TypeError(f"jacobian: {self.label} must return a floating tensor, got {y.dtype}.")
        if version is not None and x._version != version:
            raise ValueError(
                f"jacobian: {self.label} must not write into its input, which it did in place; copy the input first."
            )
        return y

    def linearize(self, x: Tensor, mode: Mode, *, live: bool = False) -> tuple[Tensor, LinearMap]:
        """Return the value, and the recorded derivative, which may be differentiated if it is `live`."""
        if isinstance(self.function, ByAutograd):
            y, pullback, recording = self.pullback_of_autograd(x, live=live)
            return y, TapeMap(x, y, pullback=pullback, trusted=recording.batches_rightly, apart=live)
        if mode is Mode.ADJOINT:
            y, pullback, trusted = self._pullback(x)
            return y, TapeMap(x, y, pullback=pullback, trusted=trusted)
        bent = self._rows(x, live=live)
        if bent is not None:
            y, rows = bent

            def contract(x_dot: Tensor) -> Tensor:
                return (rows @ x_dot.reshape(-1).to(rows.dtype)).reshape(y.shape)

            return y, TapeMap(x, y, pushforward=contract)
        # Run again in each sweep, with the same random numbers: `torch.func.linearize`, which records the pushforward,
        # is wrong for a function that writes into tensors of its own (in 2.13).
        drawn = random_state(x.device)

        def pushforward(x_dot: Tensor) -> Tensor:
            set_random_state(x.device, drawn)
            return jvp(self, x, x_dot)[1]

        y = self(x)
        return y, TapeMap(x, y, pushforward=pushforward)

    def _rows(self, x: Tensor, *, live: bool) -> tuple[Tensor, Tensor] | None:
        """Return the value and the rows of the Jacobian where tangents are taken by them; None where they are not."""
        if isinstance(self.function, ByRows):
            return rows_of(self, x)
        return rows_where_bent(self, x) if live else None

    def _pullback(self, x: Tensor) -> tuple[Tensor, Pullback, bool]:
        """Return the value, its pullback, and whether that is known to be right for many vectors at once."""
        trusted = False

        def watched(x: Tensor) -> Tensor:
            nonlocal trusted
            y = self(x)
            trusted = recording_of(y).batches_rightly
            return y

        y, pullback = vjp(watched, x)
        return y, pullback, trusted

    def pullback_of_autograd(self, x: Tensor, *, live: bool) -> tuple[Tensor, Pullback, Recording]:
        """Return the value, its pullback and its recording by autograd, in one run; differentiable if it is `live`.

        Raises:
            NotImplementedError: If an op has no derivative.
        """
        with torch.inference_mode(mode=False), torch.enable_grad(), differentiating():
            if live and x.requires_grad:
                own = x.view_as(x)
            else:
                own = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
            y = self(own)
        recording = recording_of(y)
        if not recording.whole:
            raise NotImplementedError(f"{self.label} calls {without_derivative(left_out(self, [own.detach()]))}")

        def pullback(y_bar: Tensor) -> tuple[Tensor, ...]:
            if not y.requires_grad:
                return (torch.zeros_like(own),)
            recorded = live or not recording.pulls_bare
            (x_bar,) = torch.autograd.grad(y, own, y_bar, retain_graph=True, create_graph=recorded, allow_unused=True)
            return (torch.zeros_like(own) if x_bar is None else x_bar if live else x_bar.detach(),)

        return y if live else y.detach(), pullback, recording

    def push_through(self, x: Tensor, block: Block, *, live: bool = False) -> tuple[Tensor, Block]:
        """Return the value f(x) and the pushed block, in one run of f and without a record of it."""
        bent = self._rows(x, live=live)
        if bent is not None:
            y, rows = bent
            return y, Block(Dense(y.numel(), block.structure.n), rows @ block.dense().to(rows.dtype))
        x_dot = block.dense().to(x.dtype).T.reshape((block.structure.n, *x.shape))
        values, y_dot = carry_each(lambda column: jvp(self, x, column), [x_dot], asked=False)  # f is run once
        return values[0], columns_as_block(y_dot, values[0].shape, block)
