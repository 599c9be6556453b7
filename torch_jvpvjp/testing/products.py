"""Matrix products in a lower dtype: what a formula loses where tensor cores multiply, and no more."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..registration import _torch_private as private

_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)


class _Rounding(private.TorchDispatchMode):
    """Round what matrix products take and give to a dtype; sums inside of them, and all else, stay as they are."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _PRODUCTS:
            return func(*args, **(kwargs or {}))
        a, b = (x.to(self.dtype).to(x.dtype) for x in args)
        product = func(a, b)
        return product.to(self.dtype).to(product.dtype)


@contextmanager
def products_in(dtype: torch.dtype) -> Iterator[None]:
    """Make matrix products of wider tensors lose what they lose in a dtype: mixed precision, as autocast has it.

    A formula that computes in float32 between its inputs and outputs is not how any fused kernel computes in float16:
    tensor cores take operands in float16, so whatever is multiplied has been rounded. With P, V of rounding error ε/2
    and |V| ≤ v the product P V of a row of probabilities is off by up to ε v, however small it is itself; a budget that
    knows the result alone cannot see that. This measures it on the formula, for every product where it arises.

    Args:
        dtype: The dtype.

    Yields:
        Nothing.
    """
    with _Rounding(dtype):
        yield
