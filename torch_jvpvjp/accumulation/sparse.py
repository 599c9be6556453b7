"""Jacobians as sparse tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .structure import Structure

_MOST_FILLED = 0.5  # with more entries than this part of all, a dense tensor is smaller


def is_sparse(structure: Structure) -> bool:
    """Return whether a sparse tensor is smaller than a dense one."""
    return structure.nnz <= _MOST_FILLED * structure.m * structure.n


def as_sparse(entries: Tensor, structure: Structure | None, shape: Sequence[int]) -> Tensor:
    """Return the entries of a structure, row by row, as a coalesced sparse tensor of the given shape.

    A tensor that comes without a structure is a dense Jacobian, and is returned as it is.
    """
    if structure is None:
        return entries
    pattern = structure.pattern().tocoo()
    flat = pattern.row.astype(np.int64) * structure.n + pattern.col.astype(np.int64)
    places = np.stack(np.unravel_index(flat, tuple(shape))) if shape else np.zeros((0, flat.size), np.int64)
    indices = torch.from_numpy(places).to(entries.device)
    with torch.sparse.check_sparse_tensor_invariants():  # said here, since PyTorch 2.11 warns where it is left open
        return torch.sparse_coo_tensor(indices, entries, tuple(shape), is_coalesced=True)
