"""A linear layer with its activation: the public face."""

from math import prod
from typing import Any

import torch
from torch import Tensor, strided

from ...registration.autocast import is_autocast
from .._arguments import check_floating
from .._arithmetic import FLOATS
from . import cpu as _cpu  # noqa: F401 -- registers kernels, as the next does
from . import kernels as _kernels  # noqa: F401
from .activations import ACTIVATIONS, IDENTITY
from .rules import op

__all__ = ["linear", "op"]

_is_compiling = torch.compiler.is_dynamo_compiling


def linear(
    input: Tensor,  # noqa: A002 -- the name torch.nn.functional gives it
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Linear layer and activation; signature and semantics of ``torch.nn.functional.linear``, and one argument more.

    With z = x Wᵀ + b and f the activation:

        y = f(z)
        ẏ = f′(z) ż,    ż = ẋ Wᵀ + x Ẇᵀ + ḃ
        α = f′(z) ȳ:    x̄ = α W,    W̄ = αᵀ x,    b̄ = Σ over rows of α

    and, for the second order, with a, b cotangents of ẏ, y, α = f′(z) a and β = f′(z) b + f″(z) ż a:

        x gets β W + α Ẇ,    W gets βᵀ x + αᵀ ẋ,    b gets Σ β

    Products are PyTorch's (cuBLAS on a GPU); on a GPU all that is pointwise is one kernel at each point, up to the
    second order. A JVP stacks x and ẋ into one product with W where copying them moves no more than reading W again:
    2 (1 + tangents) · rows <= out_features, more than one row. Tangents of one primal under ``vmap`` are one product in
    any case. z is kept for the pullbacks, as PyTorch keeps it between the two modules.

    Args:
        input: x, shape (*batch, in_features); float16, bfloat16, float32 or float64.
        weight: W, shape (out_features, in_features), or (in_features,) for a single output without its axis.
        bias: b, shape (out_features,), or () for a weight of one axis; absent means zero.
        activation: f: "relu", "gelu", "gelu_tanh" (``F.gelu(approximate="tanh")``), "silu", "tanh", "sigmoid",
            "softplus" or "mish", with PyTorch's defaults; None for the identity.

    Returns:
        y, shape (*batch, out_features), dtype of input. Under ``torch.autocast`` the arguments are cast as PyTorch
        casts those of a linear layer, and the activation takes what comes of it.

    Raises:
        TypeError: If an argument is not of its type, a tensor not of a dtype named above, or dtypes differ outside of
            autocast.
        ValueError: If shapes or devices do not agree, or there is no such activation.
    """
    if not (
        isinstance(input, Tensor)
        and input.layout is strided
        and not input.is_nested
        and isinstance(weight, Tensor)
        and weight.layout is strided
        and not weight.is_nested
        and (dtype := input.dtype) in FLOATS
        and weight.dtype == dtype
        and weight.dim() == 2
        and input.shape[-1:] == weight.shape[1:]
        and input.device == weight.device
        and (
            bias is None
            or (
                isinstance(bias, Tensor)
                and bias.layout is strided
                and not bias.is_nested
                and bias.dtype == dtype
                and bias.shape == weight.shape[:1]
                and bias.device == input.device
            )
        )
        and (activation is None or (type(activation) is str and activation in ACTIVATIONS))
    ):  # what nearly every call is, decided at once
        _check(input, weight, bias, activation)
    single = weight.dim() == 1
    if single:
        weight, bias = weight.unsqueeze(0), None if bias is None else bias.reshape(1)
    batch = input.shape[:-1]
    rows = input if input.dim() == 2 else input.reshape(prod(batch), input.shape[-1])  # numel() would be no symbol
    args = rows, weight, None if bias is None else bias.unsqueeze(0), IDENTITY if activation is None else activation
    if _is_compiling() or is_autocast(input.device.type):
        y = op(*args)
    else:
        y = op.call_flat(args)[0]  # a call of the op would only look at the arguments again
    if single:
        return y.reshape(batch)
    return y if input.dim() == 2 else y.reshape((*batch, y.shape[-1]))


def _check(x: Any, weight: Any, bias: Any, activation: Any) -> None:
    """Refuse what is not a linear layer before anything is computed."""
    for name, tensor in (("input", x), ("weight", weight), ("bias", bias)):
        if name == "bias" and bias is None:
            continue
        check_floating("linear", name, tensor, optional=name == "bias")
        if tensor.device != x.device:
            raise ValueError(
                f"linear: {name} must be on input's device {x.device}, got {tensor.device}; use .to(input.device)."
            )
        if tensor.dtype != x.dtype and not is_autocast(x.device.type):
            raise TypeError(
                f"linear: {name} must have input's dtype {x.dtype}, got {tensor.dtype}; use .to(input.dtype)."
            )
    if x.dim() == 0 or weight.dim() not in (1, 2) or weight.shape[-1] != x.shape[-1]:
        wanted = f"(out_features, {x.shape[-1]}) or ({x.shape[-1]},)" if x.dim() else "(out_features, in_features)"
        raise ValueError(
            f"linear: weight must have shape {wanted} to match input of shape {tuple(x.shape)}, got "
            f"{tuple(weight.shape)}."
        )
    if bias is not None and bias.shape != weight.shape[:-1]:
        raise ValueError(
            f"linear: bias must have shape {tuple(weight.shape[:-1])}, as weight's {tuple(weight.shape)} says, got "
            f"{tuple(bias.shape)}."
        )
    if activation is not None and not isinstance(activation, str):
        raise TypeError(f"linear: activation must be a str or None, got {type(activation).__name__}.")
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"linear: activation must be None or one of {sorted(ACTIVATIONS)}, got {activation!r}.")
