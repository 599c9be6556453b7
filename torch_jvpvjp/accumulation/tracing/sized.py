"""Functions whose results have sizes that depend on data, written by what a recording can follow: counts and masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _repeated(
    input: Tensor, repeats: Any = None, dim: int | None = None, *, output_size: int | None = None
) -> Tensor | None:
    """Return x with each slice as often as `repeats` says: y[k] = x[i] where Σ_{j<i} rⱼ ≤ k < Σ_{j≤i} rⱼ."""
    if not isinstance(repeats, Tensor) or repeats.dim() != 1 or repeats.is_floating_point():
        return None
    x = input.flatten() if dim is None else input
    axis = 0 if dim is None else dim
    if x.dim() == 0 or repeats.shape[0] != x.shape[axis] or not repeats.shape[0]:
        return None
    if bool((repeats < 0).any()):
        return None  # which raises
    ends = repeats.cumsum(0)
    size = int(ends[-1])
    if output_size is not None and output_size != size:
        return None
    places = torch.arange(size, device=ends.device)
    return x.index_select(axis, torch.searchsorted(ends, places, right=True).to(x.device))


def _unique(
    input: Tensor,
    sorted: bool = True,  # noqa: A002, FBT001, FBT002 (as the function)
    return_inverse: bool = False,  # noqa: FBT001, FBT002
    return_counts: bool = False,  # noqa: FBT001, FBT002
    dim: int | None = None,
) -> Any:
    """Return the whole numbers that x holds, in order: sorted, those that differ from the one before."""
    if input.is_floating_point() or input.is_complex() or not sorted or dim is not None or not input.numel():
        return None
    ascending, order = input.flatten().sort(stable=True)
    is_first = torch.cat([ascending.new_ones(1, dtype=torch.bool), ascending[1:] != ascending[:-1]])
    found = [ascending[is_first]]
    if return_inverse:
        found.append(torch.empty_like(order).scatter(0, order, is_first.cumsum(0) - 1).reshape(input.shape))
    if return_counts:
        places = is_first.nonzero().flatten()
        found.append(torch.diff(places, append=places.new_full((1,), input.numel())))
    return found[0] if len(found) == 1 else tuple(found)


SIZED: dict[Any, Callable[..., Any]] = {
    torch.repeat_interleave: _repeated,
    Tensor.repeat_interleave: _repeated,
    torch.unique: _unique,
    Tensor.unique: _unique,
}
"""What a function does in steps that can be followed; None where it does something else."""
