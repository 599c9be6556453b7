"""The context in which calls of PyTorch's functions are calls of our ops."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .functions import COMPOSED, adapters


class patched(TorchFunctionMode):  # noqa: N801 (it is called like a function, as torch.no_grad is)
    """Within this context PyTorch's functions are our ops, in whatever code calls them, and so have all derivatives.

    ``F.layer_norm``, ``F.scaled_dot_product_attention``, ``torch.softmax``, ``x.logsumexp(...)`` and so on, as `only`
    lists them, become the ops of the same name wherever an op takes the arguments; models need not be changed, and
    forward mode goes through them::

        with tj.nn.patched():
            y, y_dot = torch.func.jvp(model, (x,), (v,))

    What an op does not take stays PyTorch's: ``out=`` and ``inplace=True``, integers and complex numbers, sparse and
    nested tensors, subclasses of Tensor with their own ``__torch_function__``, deprecated arguments. So does what runs
    outside: activation checkpoints compute again in backward, which then must be inside too.

    It holds for the thread that enters it, within transforms of ``torch.func``, and under ``torch.compile`` whether it
    is entered inside or around; there ``F.tanh``, ``F.sigmoid`` and a loss module that is made inside of what is
    compiled stay PyTorch's, which asks nobody about them.

    Args:
        only: Names of the ops that take part: any of layer_norm, rms_norm, group_norm, linear,
            scaled_dot_product_attention, gelu, silu, mish, softplus, relu, sigmoid, tanh, sin, glu, softmax,
            log_softmax, logsumexp, cross_entropy, kl_div, mse_loss, huber_loss; None for all.

    Raises:
        TypeError: If only is no collection of names.
        ValueError: If it names what is no such op.
    """  # noqa: DOC502 (raised further down)

    def __init__(self, only: Collection[str] | None = None) -> None:
        super().__init__()
        self._adapters = adapters("patched", only)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function of PyTorch, as the op that stands for it if there is one."""  # noqa: DOC201
        kwargs = kwargs or {}
        adapter = self._adapters.get(func)
        if adapter is not None:
            result = adapter(*args, **kwargs)
            if result is not NotImplemented:
                return result
        composed = COMPOSED.get(func)
        if composed is not None:
            with self:
                return composed(*args, **kwargs)
        if func is Tensor.unflatten and not kwargs and type(args[1]) is int:
            return torch.ops.aten.unflatten.int(
                *args
            )  # Dynamo cannot trace the method, written in Python, under a mode
        return func(*args, **kwargs)
