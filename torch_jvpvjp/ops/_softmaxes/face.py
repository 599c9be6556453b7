"""What the public functions softmax and log_softmax do with their arguments."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...registration import DifferentiableOp
from .._arguments import check_dense
from .._arithmetic import FLOATS
from .._native import REVERSED, standing
from .arguments import check_dim, prepared

_is_compiling = torch.compiler.is_dynamo_compiling


def along_axis(
    op: DifferentiableOp,
    native: Callable[..., Tensor],
    x: Any,
    dim: Any,
    scale: Any,
    mask: Any,
    dtype: torch.dtype | None,
) -> Tensor:
    """Check the arguments and call the op, or PyTorch's function where that may stand for it.

    Args:
        op: The op.
        native: PyTorch's function.
        x: The input.
        dim: The axis.
        scale: s.
        mask: What is kept, or None.
        dtype: Dtype that the input is brought to first, or None.

    Returns:
        y.
    """
    if (
        mask is None
        and dtype is None
        and type(scale) is float
        and scale == 1.0
        and type(dim) is int
        and dim == -1
        and type(x) is Tensor
        and x.dim()
        and (x.dtype is torch.float32 or (x.dtype in FLOATS and not torch.is_autocast_enabled("cuda")))
    ):
        scale = 1.0  # what nearly every call is, decided at once
    else:
        x, scale = prepared(op.__name__, x, scale, mask, dtype)
        dim = check_dim(op.__name__, x, dim)
        if not x.dim():
            mask = None if mask is None else mask.reshape(1)
            return along_axis(op, native, x.reshape(1), -1, scale, mask, None).reshape(())
    if mask is None and scale == 1 and standing(x) in REVERSED:
        return native(x, dim)
    check_dense(op.__name__, "input", x)  # what was decided at once has not looked
    if _is_compiling():
        return op(x, mask, dim, scale)
    return op.call_flat((x, mask, dim, scale))[0]  # a call of the op would only look at the arguments again
