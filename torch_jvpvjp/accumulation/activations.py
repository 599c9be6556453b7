"""The elementwise functions that are recognised, with their derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ._torch import any_global_module_hook, jvp

_MODULES: frozenset[type] = frozenset({
    nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU,
    nn.LogSigmoid, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink, nn.Softsign,
    nn.Tanh, nn.Tanhshrink, nn.Threshold,
})  # fmt: skip

_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset({
    torch.tanh, torch.sigmoid, torch.relu, torch.sin, torch.cos, torch.exp, torch.log, torch.sqrt, torch.square,
    torch.abs, torch.neg, torch.reciprocal, torch.erf, torch.sinh, torch.cosh, torch.atan, torch.log1p, torch.expm1,
    functional.elu, functional.gelu, functional.hardswish, functional.leaky_relu, functional.logsigmoid,
    functional.mish, functional.relu, functional.selu, functional.silu, functional.softplus, functional.tanh,
    functional.sigmoid,
})  # fmt: skip

# φ'(x) from (module, x, y), for the commonest; for every other, a JVP along ones is as exact.
_Slope = Callable[[Any, Tensor, Tensor], Tensor]


def _gelu_slope(module: Any, x: Tensor, y: Tensor) -> Tensor:
    approximate = getattr(module, "approximate", "none")  # the function's default is the exact form
    return torch.ops.aten.gelu_backward.default(torch.ones_like(x), x, approximate=approximate)


def _tanh_slope(module: Any, x: Tensor, y: Tensor) -> Tensor:
    return 1 - y * y  # tanh' = 1 − tanh²


def _sigmoid_slope(module: Any, x: Tensor, y: Tensor) -> Tensor:
    return y * (1 - y)  # σ' = σ (1 − σ)


def _relu_slope(module: Any, x: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward.default(
        torch.ones_like(y), y, 0
    )  # 0 at 0, and NaN stays NaN, as in PyTorch


def _silu_slope(module: Any, x: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.silu_backward.default(torch.ones_like(x), x)


_SLOPES: dict[Any, _Slope] = {
    nn.GELU: _gelu_slope,
    functional.gelu: _gelu_slope,
    nn.Tanh: _tanh_slope,
    torch.tanh: _tanh_slope,
    nn.Sigmoid: _sigmoid_slope,
    torch.sigmoid: _sigmoid_slope,
    nn.ReLU: _relu_slope,
    torch.relu: _relu_slope,
    functional.relu: _relu_slope,
    nn.SiLU: _silu_slope,
    functional.silu: _silu_slope,
}


def is_elementwise(function: Any) -> bool:
    """Return whether a function is known to act entry by entry, as it stands now: dropout does while it is off."""
    kind: type = type(function)
    if kind in _MODULES:
        return is_plain_module(function)
    if kind in {nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout}:
        return not function.training and is_plain_module(function)
    if isinstance(function, nn.Module):
        return False
    try:
        return function in _FUNCTIONS
    except TypeError:  # an unhashable callable
        return False


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


def elementwise_derivative(function: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the value φ(x) and the derivative φ'(x), entry by entry, in one run of φ."""
    module = isinstance(function, nn.Module)
    slope = _SLOPES.get(type(function) if module else function)
    # A module that writes into its input is given a copy, since the stage before may still need its output.
    argument = x.clone() if module and vars(function).get("inplace") else x
    if slope is None:
        return jvp(function, argument, torch.ones_like(x))
    y = function(argument)
    return y, slope(function, x, y)
