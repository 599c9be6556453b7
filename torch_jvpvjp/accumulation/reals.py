"""Complex values as the real numbers that they hold, as PyTorch differentiates them.

With z = a + i b, the Jacobian in z is that in (a, b), a real matrix whose rows and columns come in pairs. A tangent
of z in PyTorch is ȧ + i ḃ, and its cotangent ∂L/∂a + i ∂L/∂b, so that a vector of the real numbers is a view of either:
nothing is conjugated, and ⟨ȳ, ẏ⟩ is the inner product of real vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def real_numbers(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Return how many real numbers a tensor holds: two for each complex entry."""
    return torch.Size(shape).numel() * (1 + dtype.is_complex)


def as_vectors(rows: Tensor, like: Tensor) -> Tensor:
    """Return rows of real numbers, (c, n), as tensors of the shape and dtype of another, behind one axis."""
    if not like.is_complex():
        return rows.to(like.dtype).reshape(rows.shape[0], *like.shape)
    pairs = rows.to(like.dtype.to_real()).reshape(rows.shape[0], *like.shape, 2)
    return torch.view_as_complex(pairs.contiguous())


def as_rows(vectors: Tensor) -> Tensor:
    """Return tensors behind one axis as rows of the real numbers that they hold, (c, n)."""
    return in_pairs(vectors).reshape(vectors.shape[0], -1)


def in_pairs(values: Tensor) -> Tensor:
    """Return complex values as real numbers with one more axis, of two, behind; real ones as they are."""
    return torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
