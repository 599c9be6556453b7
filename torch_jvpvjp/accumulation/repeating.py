"""A recorded program run again, and whether it gives what was recorded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .program import Program


def repeated(program: Program, inputs: Sequence[Tensor], count: int) -> Sequence[Tensor] | None:
    """Return what a program gives first; None if it fails, as at a view that the memory of a value does not allow."""
    try:
        return program(*inputs)[:count]
    except RuntimeError:
        return None


def marks(parts: Sequence[Tensor]) -> list[Tensor]:
    """Return a few numbers for each part that tell two Jacobians apart."""
    return list(map(_marks, parts))


def alike(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Return whether the marks of two Jacobians are the same but for rounding, or there are none to be compared."""
    return all(
        other.is_meta or torch.allclose(one, other, rtol=1e-2, atol=1e-3, equal_nan=True)
        for one, other in zip(found, expected, strict=True)
    )


def _marks(part: Tensor) -> Tensor:
    """Return the sum of magnitudes, and some sums as parts of it."""
    flat, dtype = part.reshape(-1), torch.promote_types(part.dtype, torch.float32)
    whole = torch.linalg.vector_norm(flat, 1, dtype=dtype)  # a copy of the Jacobian may not fit beside it
    pieces = flat, flat[: flat.numel() // 2], flat[::2], flat[::3]
    parts = [piece.sum(dtype=dtype) for piece in pieces]
    return torch.stack([whole, *(part / whole.clamp(min=torch.finfo(whole.dtype).tiny) for part in parts)])
