"""Jacobians as sparse tensors, one for each output and each input."""

from __future__ import annotations

from itertools import accumulate, pairwise, product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from .structure import Structure
from .structures.index import Integers
from .trees import Side

_MOST_FILLED = 0.5  # with more entries than this part of all, a dense tensor is smaller


def is_sparse(structure: Structure) -> bool:
    """Return whether a sparse tensor is smaller than a dense one."""
    return structure.nnz <= _MOST_FILLED * structure.m * structure.n


class _Part(NamedTuple):
    """The Jacobian of one output in one input."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    indices: Tensor  # (axes, nnz)
    taken: Tensor | None  # which entries of the whole it has; None for all


class Sparsity:
    """Where the entries of a Jacobian stand, in every block of its tree.

    The entries of a structure come row by row, and those of a block are in the order of its rows as well, so that every
    tensor is coalesced as it comes.

    Args:
        structure: The structure of the Jacobian, of all outputs in all inputs.
        output: The outputs.
        source: The inputs.
        device: Where its entries are.
    """

    def __init__(self, structure: Structure, output: Side, source: Side, device: torch.device) -> None:
        self.structure = structure
        self._output, self._source = output, source
        pattern = structure.pattern().tocoo()
        rows, columns = pattern.row.astype(np.int64), pattern.col.astype(np.int64)
        self._parts: list[_Part] = []
        for (row, top, bottom), (leaf, left, right) in product(_ranges(output), _ranges(source)):
            inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
            flat = (rows[inside] - top) * leaf.numel + columns[inside] - left
            shape = (*row.shape, *leaf.shape)
            places: Integers = np.stack(np.unravel_index(flat, shape)) if shape else np.zeros((0, flat.size), np.int64)
            taken = None if inside.all() else torch.from_numpy(np.flatnonzero(inside)).to(device)
            self._parts.append(_Part(shape, row.dtype, torch.from_numpy(places).to(device), taken))

    def planted(self, entries: Tensor) -> Any:
        """Return the entries of the structure, row by row, as coalesced sparse tensors in the tree of the Jacobian."""
        tensors = [_tensor(part, entries) for part in self._parts]
        width = len(self._source.leaves)
        rows = [tree_unflatten(tensors[i : i + width], self._source.spec) for i in range(0, len(tensors), width)]
        return tree_unflatten(rows, self._output.spec)


def _ranges(side: Side) -> list[tuple[Any, int, int]]:
    """Return the leaves of a side with the first of their entries and the first behind them."""
    bounds = pairwise(accumulate(side.sizes, initial=0))
    return [(leaf, first, last) for leaf, (first, last) in zip(side.leaves, bounds, strict=True)]


def _tensor(part: _Part, entries: Tensor) -> Tensor:
    own = (entries if part.taken is None else entries.index_select(0, part.taken)).to(part.dtype)
    # Said here, since PyTorch 2.11 warns where it is left open; of entries without data nothing can be checked.
    with torch.sparse.check_sparse_tensor_invariants(enable=not own.is_meta):
        # indices of its own, which a caller may write into
        return torch.sparse_coo_tensor(part.indices.clone(), own, part.shape, is_coalesced=True)
