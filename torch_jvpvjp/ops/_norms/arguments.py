"""What the public norms ask of their arguments; each check names the function, what was required and what came."""

from math import inf
from typing import Any

import torch
from torch import Tensor

from .._arguments import check_floating, is_floating

EPS32, EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
CASTINGS = ("torch", "llama", "gemma")


def check_shape(function: str, x: Tensor, normalized_shape: Any) -> tuple[int, ...]:
    """Refuse a normalized_shape that is not the end of the input's shape; return it as a tuple."""
    if not isinstance(normalized_shape, tuple | list):
        raise TypeError(
            f"{function}: normalized_shape must be a tuple or list of ints, such as "
            f"({x.shape[-1] if x.dim() else 1},), got {normalized_shape!r}."
        )
    shape = tuple(normalized_shape)
    if not shape or tuple(x.shape[-len(shape) :]) != shape:
        raise ValueError(
            f"{function}: normalized_shape must be the last sizes of input's shape {tuple(x.shape)}, at least one, "
            f"got {shape}."
        )
    return shape


def check_weight(
    function: str, name: str, weight: Any, x: Tensor, shape: tuple[int, ...], why: str, of: str = "input"
) -> None:
    """Refuse a weight or bias that is not a tensor of that shape on the input's device; None passes."""
    if weight is None:
        return
    check_floating(function, name, weight, optional=True)
    if tuple(weight.shape) != shape:
        raise ValueError(f"{function}: {name} must have shape {shape}, as {why} says, got {tuple(weight.shape)}.")
    check_device(function, name, weight, of, x)


def fits(weight: Any, shape: tuple[int, ...], x: Tensor) -> bool:
    """Whether `check_weight` has nothing against a weight or bias."""
    return is_floating(weight) and weight.shape == shape and weight.device == x.device


def check_device(function: str, name: str, tensor: Tensor, other: str, x: Tensor) -> None:
    """Refuse a tensor on another device than the input's."""
    if tensor.device != x.device:
        raise ValueError(
            f"{function}: {name} must be on {other}'s device {x.device}, got {tensor.device}; use .to({other}.device)."
        )


def check_eps(function: str, eps: Any, optional: bool = False) -> None:
    """Refuse an eps that is not a finite number; as in PyTorch it may be 0 or less, and then rows may give NaN."""
    if isinstance(eps, bool) or not isinstance(eps, float | int):
        wanted = "a number or None" if optional else "a number"
        raise TypeError(f"{function}: eps must be {wanted}, got {type(eps).__name__}.")
    if not -inf < eps < inf:
        raise ValueError(f"{function}: eps must be finite, got {eps}.")


def eps_of(function: str, eps: Any, x: Tensor) -> float:
    """The eps of an RMS norm: that of the dtype it computes in where there is none."""
    if eps is None:
        return EPS64 if x.dtype == torch.float64 else EPS32
    if type(eps) is not float or not 0 < eps < inf:
        check_eps(function, eps, optional=True)
    return float(eps)


def is_rounded(function: str, casting: Any, weight_offset: Any, x: Tensor, *weights: Tensor | None) -> bool:
    """Check casting and weight_offset; return whether x̂ is rounded before it meets the gain."""
    if isinstance(weight_offset, bool) or not isinstance(weight_offset, float | int):
        raise TypeError(f"{function}: weight_offset must be a number, got {type(weight_offset).__name__}.")
    if not -inf < weight_offset < inf:
        raise ValueError(f"{function}: weight_offset must be finite, got {weight_offset}.")
    if casting not in CASTINGS:
        raise ValueError(f"{function}: casting must be one of {CASTINGS}, got {casting!r}.")
    if casting != "llama":
        return False
    for weight in weights:
        if weight is not None and weight.dtype != x.dtype:
            raise ValueError(
                f"{function}: casting='llama' multiplies in input's dtype, so weight must have dtype {x.dtype}, got "
                f"{weight.dtype}; cast one of them, or use casting='torch'."
            )
    return True
