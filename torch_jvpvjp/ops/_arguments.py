"""What every public function asks of each of its tensors, before anything is computed."""

from typing import Any

from torch import Tensor, strided

from ..registration.layouts import check_dense, kind_of
from ._arithmetic import FLOATS

__all__ = ["check_dense", "check_floating", "check_tensor", "is_floating", "kind_of"]


def check_tensor(function: str, name: str, value: Any, *, optional: bool = False) -> None:
    """Refuse what is not a dense tensor.

    Args:
        function: The function that was called.
        name: The argument.
        value: What came.
        optional: Whether None would have done.

    Raises:
        TypeError: If it is no tensor, or a sparse, nested or MKL-DNN one.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a Tensor{' or None' if optional else ''}, got {kind_of(value)}.")
    check_dense(function, name, value)


def check_floating(function: str, name: str, value: Any, *, optional: bool = False) -> None:
    """Refuse what is not a dense tensor of a dtype that ops compute in.

    Args:
        function: The function that was called.
        name: The argument.
        value: What came.
        optional: Whether None would have done.

    Raises:
        TypeError: If it is none.
    """
    if is_floating(value):
        return  # what nearly every call is, decided at once
    check_tensor(function, name, value, optional=optional)
    if value.dtype not in FLOATS:
        way_out = ".dequantize()" if value.is_quantized else ".real" if value.is_complex() else ".to()"
        raise TypeError(
            f"{function}: {name} must be float16, bfloat16, float32 or float64, got {value.dtype}; use {way_out}."
        )


def is_floating(value: Any) -> bool:
    """Whether `check_floating` has nothing against it.

    Args:
        value: What came.

    Returns:
        True for a dense tensor of a dtype that ops compute in.
    """
    return isinstance(value, Tensor) and value.dtype in FLOATS and value.layout is strided and not value.is_nested
