"""The linear maps that the rules of softmax, log_softmax and logsumexp are made of, in plain PyTorch.

Notation, row by row:  z = s x, -∞ where not kept,  p = exp(z) / Σ exp(z),  ⟨p, v⟩ = Σ p v. Tensors are in the dtype the
ops compute in and broadcast from the right; results are not yet summed over what was broadcast. A row of which a mask
keeps nothing finite has p = 0.
"""

import torch
from torch import Tensor


def scores(x: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """z = s x, -∞ where not kept."""
    z = x if scale == 1 else x * scale
    return z if mask is None else torch.where(mask, z, -float("inf"))


def kept(v: Tensor, mask: Tensor | None) -> Tensor:
    """v, 0 where not kept."""
    return v if mask is None else torch.where(mask, v, 0)


def exponentials(z: Tensor, masked: bool, dim: int, *, infinite: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """exp(z − t), its sum (1 in the place of 0 where masked) and t, the row's maximum, 0 where that is -∞.

    Args:
        z: Scores, at least one a row.
        masked: Whether there is a mask.
        dim: The axis, counted from the end.
        infinite: Whether t is 0 where the maximum is ∞ too, so that ∞ stays ∞.

    Returns:
        The three.
    """
    top = z.detach().amax(dim, keepdim=True)
    empty = top.isinf() if infinite else top == -float("inf")
    top = torch.where(empty, 0, top)
    powers = (z - top).exp()
    sums = powers.sum(dim, keepdim=True)
    return powers, torch.where(sums == 0, 1, sums) if masked else sums, top


def primal(kind: str, x: Tensor, mask: Tensor | None, dim: int, scale: float) -> Tensor:
    """p or z − log Σ exp z."""
    z = scores(x, mask, scale)
    if z.shape[dim] == 0:
        return z.clone()
    powers, sums, top = exponentials(z, mask is not None, dim)
    if kind == "softmax":
        return powers / sums
    y = z - top - sums.log()
    return y if mask is None else torch.where(mask, y, -float("inf"))  # a constant there, whatever the sum does


def push(kind: str, y: Tensor, x_dot: Tensor, mask: Tensor | None, dim: int, scale: float) -> Tensor:
    """J ẋ from the output y: s p ∘ (ẋ − ⟨p, ẋ⟩), or s (ẋ − ⟨p, ẋ⟩) where kept."""
    v = kept(x_dot, mask)
    p = y if kind == "softmax" else y.exp()
    centred = v - (p * v).sum(dim, keepdim=True)
    return scale * (p * centred if kind == "softmax" else kept(centred, mask))


def pull(kind: str, y: Tensor, a: Tensor, mask: Tensor | None, dim: int, scale: float) -> Tensor:
    """Jᵀa from the output y: s p ∘ (a − ⟨p, a⟩), or s (a − p Σ a) where kept."""
    if kind == "softmax":
        return push(kind, y, a, None, dim, scale)  # J is symmetric, and 0 where y is
    a = kept(a, mask)
    return scale * (a - y.exp() * a.sum(dim, keepdim=True))


def bend(kind: str, y: Tensor, y_dot: Tensor, a: Tensor, mask: Tensor | None, dim: int, scale: float) -> Tensor:
    """∂⟨a, J ẋ⟩/∂x from y and ẏ = J ẋ: s [ẏ ∘ (a − ⟨p, a⟩) − p ⟨ẏ, a⟩], or −s p ∘ ẏ Σ a."""
    if kind == "softmax":
        mean, cross = (y * a).sum(dim, keepdim=True), (y_dot * a).sum(dim, keepdim=True)
        return scale * (y_dot * (a - mean) - y * cross)
    return -scale * (y.exp() * y_dot) * kept(a, mask).sum(dim, keepdim=True)


def bend_output(kind: str, y: Tensor, y_bar: Tensor, u: Tensor, mask: Tensor | None, dim: int, scale: float) -> Tensor:
    """∂⟨u, Jᵀ(y) ȳ⟩/∂y: s [u ∘ (ȳ − ⟨y, ȳ⟩) − ȳ ⟨y, u⟩], or −s u ∘ exp(y) Σ ȳ."""
    if kind == "softmax":
        along, against = (y * u).sum(dim, keepdim=True), (y * y_bar).sum(dim, keepdim=True)
        return scale * (u * (y_bar - against) - y_bar * along)
    return -scale * (u * y.exp()) * kept(y_bar, mask).sum(dim, keepdim=True)
