"""The order in which a tensor's axes lie in memory, which results of elementwise functions keep as PyTorch's do."""

from torch import Tensor


def memory_order(x: Tensor) -> list[int] | None:
    """The axes from the outermost in memory to the innermost.

    Args:
        x: A tensor.

    Returns:
        Their numbers; None if they lie in their own order, or some are expanded and lie nowhere.
    """
    if x.is_contiguous():
        return None
    strides = x.stride()
    if 0 in strides:
        return None
    order = sorted(range(x.dim()), key=lambda axis: -strides[axis])
    return None if order == list(range(x.dim())) else order


def inverse(order: list[int]) -> list[int]:
    """The permutation that undoes another.

    Args:
        order: Axes.

    Returns:
        For each axis, where it went.
    """
    return sorted(range(len(order)), key=order.__getitem__)
