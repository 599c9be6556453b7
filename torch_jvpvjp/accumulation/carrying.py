"""Carrying many vectors through a linear map at once, and never believing a batch that single vectors deny.

PyTorch's batched derivatives are wrong for a few ops: in 2.11 to 2.15 `vmap` of the pullback of `torch.cdist` gives
numbers that the pullback of each row does not give. J being linear, one more vector tells: J (Σ wᵢ vᵢ) = Σ wᵢ (J vᵢ).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ._torch import inside_vmap, vmapped

Carry = Callable[..., tuple[Tensor, ...]]


def carry_each(carry: Carry, vectors: Sequence[Tensor], *, apart: bool = False, asked: bool = True) -> list[Tensor]:
    """Carry vectors through a linear map.

    Args:
        carry: The map, of one tensor or several; it returns a tuple.
        vectors: For each of its arguments the vectors, behind one axis.
        apart: Whether to take one after another.
        asked: Whether results that were made all at once are compared with one that was not, and made one after another
            if they differ. A map that draws random numbers is not asked, since the next call is another map, nor is
            one under a `vmap` around, where values are not to be seen.

    Returns:
        For each of its results what became of the vectors, behind one axis.

    Raises:
        RuntimeError: If the map takes neither all vectors at once nor one after another.
    """
    if not apart and vectors[0].shape[0] > 1:
        asked = asked and not inside_vmap()
        before = random_state(vectors[0].device) if asked else None
        try:
            results = vmapped(carry, vectors)
        except RuntimeError as error:  # something on the way takes no vectors at once, as some writing in place
            try:
                return _one_by_one(carry, vectors)
            except RuntimeError:
                raise error from None
        if before is None or not torch.equal(before, random_state(vectors[0].device)):
            return list(results)
        if _is_linear(carry, vectors, results):
            return list(results)
    return _one_by_one(carry, vectors)


def _one_by_one(carry: Carry, vectors: Sequence[Tensor]) -> list[Tensor]:
    results_of = [carry(*one) for one in zip(*vectors, strict=True)]
    return [torch.stack(parts) for parts in zip(*results_of, strict=True)]


def close(found: Tensor, expected: Tensor, scale: Tensor | None = None, eps: float = 0.0) -> bool:
    """Whether two tensors are equal but for the rounding of another order of the same operations.

    Args:
        found: A tensor.
        expected: Another, in whose dtype they are compared.
        scale: The largest number that went into them; the largest of `expected` if not given.
        eps: The rounding of the coarsest dtype on the way to them, if that is coarser than theirs, as with autocast.

    Returns:
        Whether they are.
    """
    if not expected.numel() or expected.is_meta:
        return found.shape == expected.shape
    slack = max(10 * torch.finfo(expected.dtype).eps ** 0.5, 2 * eps**0.5)
    scale = expected.abs().max() if scale is None else scale
    atol = float(slack * scale.nan_to_num(0.0, 0.0, 0.0))
    return torch.allclose(found.to(expected.dtype), expected, rtol=slack, atol=atol, equal_nan=True)


def dual(
    y_bars: Sequence[Tensor], y_dots: Sequence[Tensor], x_bars: Sequence[Tensor], x_dots: Sequence[Tensor]
) -> bool:
    """Whether ⟨ȳ, ẏ⟩ = ⟨x̄, ẋ⟩, as it must be where ẏ = J ẋ and x̄ = Jᵀ ȳ, but for rounding.

    PyTorch's JVP of a few ops is not that of their VJP (`scatter_reduce` by products, in 2.11 to 2.15), nor is that of
    a function that writes under `no_grad`, or asks whether a tensor requires grad; `jacrev` has the VJP.

    Args:
        y_bars: Cotangents ȳ of each output.
        y_dots: Tangents ẏ of each output.
        x_bars: The cotangents x̄ of each input.
        x_dots: The tangents ẋ of each input.

    Returns:
        Whether it is.
    """
    left, right = (
        [(a * b).double() for a, b in zip(ones, others, strict=True)]
        for ones, others in ((y_bars, y_dots), (x_bars, x_dots))
    )
    scale = torch.stack([term.abs().sum() for term in (*left, *right)]).sum()
    if not scale.isfinite():
        return True  # there is nothing to compare
    whole = [torch.stack([term.sum() for term in terms]).sum() for terms in (left, right)]
    slack = 10 * max(torch.finfo(x.dtype).eps for x in (*y_dots, *x_dots)) ** 0.5
    return bool((whole[0] - whole[1]).abs() <= slack * scale)


def weights(count: int, like: Tensor) -> Tensor:
    """Return numbers of both signs in which no pattern of vectors cancels."""
    return torch.arange(count, dtype=like.dtype, device=like.device).mul(1.7).cos()


def _is_linear(carry: Carry, vectors: Sequence[Tensor], results: Sequence[Tensor]) -> bool:
    """Return whether the map takes a sum of the vectors to that of the results; not if any result is inf or NaN."""
    with torch.no_grad():
        single = carry(*(_weighted(vector) for vector in vectors))
        for one, result in zip(single, results, strict=True):
            if not result.numel():
                continue
            scale = result.detach().abs().max()
            if not scale.isfinite() or not close(one.detach(), _weighted(result.detach()), scale):
                return False
    return True


def _weighted(vectors: Tensor) -> Tensor:
    return torch.tensordot(weights(vectors.shape[0], vectors), vectors, 1)


def random_state(device: torch.device) -> Tensor:
    """Return the state of what draws random numbers on a device."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.default_generator.get_state()


def set_random_state(device: torch.device, state: Tensor) -> None:
    """Let what draws random numbers on a device draw those again that followed a state."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
