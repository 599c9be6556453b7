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
    """
    if not apart and vectors[0].shape[0] > 1:
        asked = asked and not inside_vmap()
        before = random_state(vectors[0].device) if asked else None
        results = vmapped(carry, vectors)
        if before is None or not torch.equal(before, random_state(vectors[0].device)):
            return list(results)
        if _is_linear(carry, vectors, results):
            return list(results)
    results_of = [carry(*one) for one in zip(*vectors, strict=True)]
    return [torch.stack(parts) for parts in zip(*results_of, strict=True)]


def close(found: Tensor, expected: Tensor, scale: Tensor | None = None) -> bool:
    """Whether two tensors are equal but for the rounding of another order of the same operations.

    Args:
        found: A tensor.
        expected: Another, in whose dtype they are compared.
        scale: The largest number that went into them; the largest of `expected` if not given.

    Returns:
        Whether they are.
    """
    slack = 10 * torch.finfo(expected.dtype).eps ** 0.5
    scale = expected.abs().max() if scale is None else scale
    atol = float(slack * scale.nan_to_num(0.0, 0.0, 0.0))
    return torch.allclose(found.to(expected.dtype), expected, rtol=slack, atol=atol, equal_nan=True)


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
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state(device: torch.device, state: Tensor) -> None:
    """Let what draws random numbers on a device draw those again that followed a state."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
