"""The arguments that softmax, log_softmax and logsumexp share, looked at before anything is computed."""

from typing import Any

import torch
from torch import Tensor

from ...registration.autocast import is_autocast
from .._arguments import check_dense, check_tensor, kind_of
from .._arithmetic import FLOATS


def check_input(name: str, x: Any, dtype: Any) -> None:
    """Refuse an input that is no floating-point tensor, unless dtype says what to make of it.

    Args:
        name: The function.
        x: Its input.
        dtype: The dtype asked for, or None.

    Raises:
        TypeError: If input or dtype is not of the right type.
    """
    check_tensor(name, "input", x)
    if dtype is not None and (not isinstance(dtype, torch.dtype) or dtype not in FLOATS):
        raise TypeError(f"{name}: dtype must be float16, bfloat16, float32 or float64, got {dtype}.")
    if dtype is None and x.dtype not in FLOATS:
        way = ".to()" if name == "logsumexp" else "dtype= or .to()"  # which has no dtype, as PyTorch's has none
        raise TypeError(f"{name}: input must be float16, bfloat16, float32 or float64, got {x.dtype}; use {way}.")


def check_dim(name: str, x: Tensor, dim: Any) -> int:
    """Bring an axis to its number counted from the end.

    Args:
        name: The function.
        x: Its input.
        dim: The axis.

    Returns:
        The axis, negative.

    Raises:
        TypeError: If it is no int.
        ValueError: If there is no such axis.
    """
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"{name}: dim must be an int, got {dim!r}; say which axis to sum over, such as dim=-1.")
    rank = max(x.dim(), 1)
    if not -rank <= dim < rank:
        raise ValueError(f"{name}: dim must be from {-rank} to {rank - 1} for {x.dim()} axes, got {dim}.")
    return dim if dim < 0 else dim - rank


def check_scale(name: str, scale: Any) -> float:
    """Refuse a scale that is no finite number.

    Args:
        name: The function.
        scale: The factor.

    Returns:
        It, as a float.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not finite.
    """
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise TypeError(f"{name}: scale must be a number, got {type(scale).__name__}; multiply by a tensor instead.")
    if not -float("inf") < scale < float("inf"):
        raise ValueError(f"{name}: scale must be finite, got {scale}.")
    return float(scale)


def check_mask(name: str, x: Tensor, mask: Any) -> None:
    """Refuse a mask that is not boolean or does not broadcast to the input.

    Args:
        name: The function.
        x: Its input.
        mask: The mask.

    Raises:
        TypeError: If it is no boolean tensor.
        ValueError: If its shape or device does not fit.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = str(mask.dtype) if isinstance(mask, Tensor) else kind_of(mask)
        raise TypeError(f"{name}: mask must be a bool Tensor, True where input is kept, or None, got {kind}.")
    check_dense(name, "mask", mask)
    # Not `in`: for Dynamo a size that it does not know is in no tuple of numbers.
    fits = mask.dim() <= x.dim() and all(
        m == 1 or m == s for m, s in zip(reversed(mask.shape), reversed(x.shape), strict=False)
    )
    if not fits:
        raise ValueError(
            f"{name}: mask must broadcast to input's shape {tuple(x.shape)}, got {tuple(mask.shape)}; use "
            "input.expand() for more axes."
        )
    if mask.device != x.device:
        raise ValueError(
            f"{name}: mask must be on input's device {x.device}, got {mask.device}; use .to(input.device)."
        )


def prepared(name: str, x: Any, scale: Any, mask: Any, dtype: Any) -> tuple[Tensor, float]:
    """Check input, scale, mask and dtype, and bring the input to the dtype wanted.

    Under autocast on a GPU that is float32, as for PyTorch's; on a CPU autocast changes nothing.

    Args:
        name: The function.
        x: Its input.
        scale: The factor.
        mask: The mask, or None.
        dtype: The dtype asked for, or None.

    Returns:
        The input and the scale.
    """
    check_input(name, x, dtype)
    scale = check_scale(name, scale)
    if mask is not None:
        check_mask(name, x, mask)
    if dtype is None and x.dtype not in (torch.float32, torch.float64) and x.device.type != "cpu":
        dtype = torch.float32 if is_autocast(x.device.type) else None
    return (x if dtype is None or x.dtype == dtype else x.to(dtype)), scale
