"""Tangents of nothing, which PyTorch's JVPs make without memory, in dispatch modes.

The JVP of a sum or a product with a factor, as `torch.add(a, b, alpha=0.5)`, multiplies the tangent of what has none by
the factor. In a dispatch mode that product, of such a tensor and a number, ends the process (PyTorch 2.11 to 2.15).
"""

from __future__ import annotations

from typing import Any

import torch

_aten: Any = torch.ops.aten


def without_scaled_zeros(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Return a call that a mode has been given, or the one that makes the zero which it would multiply by a number.

    Args:
        func: The op.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        The op, and the arguments, to be called.
    """
    if func is not _aten.mul.Scalar or not args[0]._is_zerotensor():
        return func, args, kwargs
    made = {"dtype": torch.result_type(*args), "layout": torch.strided, "device": args[0].device}
    return _aten._efficientzerotensor.default, (list(args[0].shape),), made
