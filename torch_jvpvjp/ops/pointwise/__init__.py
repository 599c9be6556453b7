"""Pointwise functions with their jets: the public face."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from ...registration import DifferentiableOp
from .._arguments import check_floating
from .._memory_order import inverse, memory_order
from .._native import FIRST_ORDER, RECORDED, REVERSED, standing
from . import ops
from .cpu import watched_gelu, watched_mish, watched_silu

__all__ = ["gelu", "mish", "ops", "relu", "sigmoid", "silu", "sin", "softplus", "tanh"]

_is_compiling = torch.compiler.is_dynamo_compiling


def gelu(input: Tensor, approximate: str = "none") -> Tensor:  # noqa: A002 -- the name torch.nn.functional gives it
    """Gaussian error linear unit; signature and semantics of ``torch.nn.functional.gelu``.

    With Φ the normal distribution function, φ its density, and z = 2√(2/π) (x + 0.044715 x³):

        "none":  y = x Φ(x),    y′ = Φ + x φ,     y″ = φ (2 − x²)
        "tanh":  y = x σ(z),    y′ = σ + x σ′z′,  y″ = 2 σ′z′ + x (σ″z′² + σ′z″)

    and ẏ = y′ ẋ, x̄ = y′ ȳ. On a GPU every point of the tower up to the second order is one kernel launch, K tangents
    of one x included. It computes in float32, in float64 for float64 input. On a CPU y is PyTorch's; of contiguous
    float32 oneDNN makes it for "none", to 3 ε |x| (1.2e-6 at x = 3.4), and NaN at +∞.

    Args:
        input: x, any shape and strides; float16, bfloat16, float32 or float64.
        approximate: "none" or "tanh".

    Returns:
        y, of the shape and dtype of input, its axes in memory in the order of input's.

    Raises:
        TypeError: If input is not a tensor of a dtype named above, or approximate not a string.
        ValueError: If approximate is another string.

    Source: Hendrycks and Gimpel (2016), Gaussian Error Linear Units.
    """
    if not isinstance(approximate, str):
        raise TypeError(f"gelu: approximate must be 'none' or 'tanh', got {type(approximate).__name__}.")
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}.")
    # PyTorch's second derivative is NaN far from 0, in float16 from 256 on.
    way = standing(input)
    if way in FIRST_ORDER:
        y = F.gelu(input, approximate=approximate)
        return watched_gelu(y, approximate) if way == RECORDED else y
    return _apply(ops.gelu, input, approximate)


def silu(input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002
    """Sigmoid linear unit, or swish; signature and semantics of ``torch.nn.functional.silu``, out of place.

        y = x σ(x),    y′ = σ + x σ′,    y″ = 2 σ′ + x σ″,    ẏ = y′ ẋ,    x̄ = y′ ȳ

    On a GPU every point of the tower up to the second order is one kernel launch, K tangents of one x included. It
    computes in float32, in float64 for float64 input.

    Args:
        input: x, any shape and strides; float16, bfloat16, float32 or float64.
        inplace: False: nothing is written into input.

    Returns:
        y, of the shape and dtype of input, its axes in memory in the order of input's.

    Raises:
        TypeError: If input is not a tensor of a dtype named above, or inplace no bool.
        ValueError: If inplace is True.

    Source: Elfwing, Uchibe and Doya (2017), Sigmoid-Weighted Linear Units for Neural Network Function Approximation in
    Reinforcement Learning.
    """
    if inplace is not False:
        _refuse_in_place("silu", inplace)
    way = standing(input)
    if way in REVERSED:
        y = F.silu(input)
        return watched_silu(y) if way == RECORDED else y
    return _apply(ops.silu, input)


def tanh(input: Tensor) -> Tensor:  # noqa: A002
    """Hyperbolic tangent; semantics of ``torch.tanh``.

        y = tanh(x),    y′ = 1 − y²,    y″ = −2 y y′,    ẏ = y′ ẋ,    x̄ = y′ ȳ

    The pullback reads y, as PyTorch's does. On a GPU every point of the tower up to the second order is one kernel
    launch, K tangents of one x included. It computes in float32, in float64 for float64 input.

    Args:
        input: x, any shape and strides; float16, bfloat16, float32 or float64.

    Returns:
        y, of the shape and dtype of input, its axes in memory in the order of input's.

    Raises:
        TypeError: If input is not a tensor of a dtype named above.
    """
    return torch.tanh(input) if standing(input) else _apply(ops.tanh, input)


def sin(input: Tensor) -> Tensor:  # noqa: A002
    """Sine, the activation of sinusoidal networks; semantics of ``torch.sin``.

        y = sin(x),    y′ = cos(x),    y″ = −sin(x),    ẏ = y′ ẋ,    x̄ = y′ ȳ

    On a GPU every point of the tower up to the second order is one kernel launch, K tangents of one x included. It
    computes in float32, in float64 for float64 input.

    Args:
        input: x in radians, any shape and strides; float16, bfloat16, float32 or float64.

    Returns:
        y, of the shape and dtype of input, its axes in memory in the order of input's.

    Raises:
        TypeError: If input is not a tensor of a dtype named above.

    Source: Sitzmann et al. (2020), Implicit Neural Representations with Periodic Activation Functions.
    """
    return torch.sin(input) if standing(input) else _apply(ops.sin, input)


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:  # noqa: A002
    """Softplus; signature and semantics of ``torch.nn.functional.softplus``.

    With z = βx, where z ≤ threshold:

        y = log(1 + exp(z)) / β,    y′ = σ(z),    y″ = β σ′(z),    ẏ = y′ ẋ,    x̄ = y′ ȳ

    and where z > threshold y = x, y′ = 1, y″ = 0. On a GPU every point of the tower up to the second order is one
    kernel launch, K tangents of one x included. It computes in float32, in float64 for float64 input, and returns the
    dtype of the input under autocast too.

    Args:
        input: x, any shape and strides; float16, bfloat16, float32 or float64.
        beta: β, not 0.
        threshold: Where y becomes x.

    Returns:
        y, of the shape and dtype of input, its axes in memory in the order of input's.

    Raises:
        TypeError: If input is not a tensor of a dtype named above, or an option not a number.
        ValueError: If beta is 0 or not finite.
    """
    _check_number("beta", beta)
    _check_number("threshold", threshold)
    if not beta or not -float("inf") < beta < float("inf"):
        raise ValueError(f"softplus: beta must be finite and not 0, got {beta}.")
    if standing(input):
        return F.softplus(input, float(beta), float(threshold))
    return _apply(ops.softplus, input, float(beta), float(threshold))


def mish(input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002
    """Mish; signature and semantics of ``torch.nn.functional.mish``, out of place.

    With t = tanh(log(1 + exp(x))) and t′ = (1 − t²) σ(x):

        y = x t,    y′ = t + x t′,    y″ = 2 t′ + x t″,    ẏ = y′ ẋ,    x̄ = y′ ȳ

    On a GPU every point of the tower up to the second order is one kernel launch, K tangents of one x included. It
    computes in float32, in float64 for float64 input.

    Args:
        input: x, any shape and strides; float16, bfloat16, float32 or float64.
        inplace: False: nothing is written into input.

    Returns:
        y, of the shape and dtype of input, its axes in memory in the order of input's.

    Raises:
        TypeError: If input is not a tensor of a dtype named above, or inplace no bool.
        ValueError: If inplace is True.

    Source: Misra (2019), Mish: A Self Regularized Non-Monotonic Activation Function.
    """
    if inplace is not False:
        _refuse_in_place("mish", inplace)
    way = standing(input)
    if way in REVERSED:
        y = F.mish(input)
        return watched_mish(y) if way == RECORDED else y
    return _apply(ops.mish, input)


def sigmoid(input: Tensor) -> Tensor:  # noqa: A002
    """Logistic sigmoid; semantics of ``torch.sigmoid``.

        y = 1 / (1 + exp(−x)),    y′ = y (1 − y),    y″ = y′ (1 − 2 y),    ẏ = y′ ẋ,    x̄ = y′ ȳ

    The pullback reads y, as PyTorch's does. On a GPU every point of the tower up to the second order is one kernel
    launch, K tangents of one x included. It computes in float32, in float64 for float64 input.

    Args:
        input: x, any shape and strides; float16, bfloat16, float32 or float64.

    Returns:
        y, of the shape and dtype of input, its axes in memory in the order of input's.

    Raises:
        TypeError: If input is not a tensor of a dtype named above.
    """
    return torch.sigmoid(input) if standing(input) else _apply(ops.sigmoid, input)


def relu(input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002
    """Rectified linear unit; signature and semantics of ``torch.nn.functional.relu``, out of place.

        y = max(x, 0),    y′ = 1 where x > 0, else 0,    ẏ = y′ ẋ,    x̄ = y′ ȳ

    At 0 the derivative is 0, as in PyTorch. The pullback reads y, as PyTorch's does. On a GPU every point of the tower
    up to the second order is one kernel launch, K tangents of one x included.

    Args:
        input: x, any shape and strides; float16, bfloat16, float32 or float64.
        inplace: False: nothing is written into input.

    Returns:
        y, of the shape and dtype of input, its axes in memory in the order of input's.

    Raises:
        TypeError: If input is not a tensor of a dtype named above, or inplace no bool.
        ValueError: If inplace is True.
    """
    if inplace is not False:
        _refuse_in_place("relu", inplace)
    return torch.relu(input) if standing(input) else _apply(ops.relu, input)


def _apply(op: DifferentiableOp, x: Any, *options: Any) -> Tensor:
    """Refuse what is no floating-point tensor; call the op on the axes in the order in which they lie in memory."""
    check_floating(op.__name__, "input", x)
    order = memory_order(x)
    if order is None:
        return _call(op, x, options)
    return _call(op, x.permute(order), options).permute(inverse(order))


def _call(op: DifferentiableOp, x: Tensor, options: tuple[Any, ...]) -> Tensor:
    if _is_compiling():
        return op(x, *options)
    return op.call_flat((x, *options))[0]


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, float | int):
        raise TypeError(f"softplus: {name} must be a number, got {type(value).__name__}.")


def _refuse_in_place(name: str, inplace: Any) -> None:
    if not isinstance(inplace, bool):
        raise TypeError(f"{name}: inplace must be False, got {inplace!r}.")
    raise ValueError(f"{name}: inplace must be False, got True; ops write into no input, so write x = {name}(x).")
