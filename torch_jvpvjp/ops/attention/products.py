"""The products of a tile: of all its heads in one call of PyTorch's, or of one head by oneDNN, where that is quicker.

oneDNN gives X Wᵀ, X contiguous. So sums over rows are made transposed, Σ xᵀ S for Σ Sᵀ x: S is large, x small.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ..._onednn import (
    LEAST_FMA_BY_HEAD,
    onednn_is_on,
    onednn_is_quicker_by_head,
    onednn_products,
    products_stay_float32,
)
from .maps import Operands, Scores
from .stripes import rows_of_head


class Products(Protocol):
    """What multiplies; scores are (heads, rows, keys), everything else (heads, rows or keys, d)."""

    by_head: bool
    """Whether a tile must be of one head, and takes keys that are dense and multiplied by the scale."""

    def scores(
        self, rows: Tensor, keys: Tensor, factor: float, added: Tensor | None, buffer: Callable[[], Tensor]
    ) -> Tensor:
        """Rows times keys transposed times a factor, plus what is added, which may be written into."""
        ...

    def rows(self, scores: Tensor, keys: Tensor, added: Tensor | None = None) -> Tensor:
        """Scores times keys, plus what is added, which may be written into."""
        ...

    def sums(self, into: Tensor, factor: float) -> "Sums":
        """What sums up, over tiles, scores transposed times rows times a factor, for all keys of some heads."""
        ...


class Sums(Protocol):
    """A sum of products of scores transposed and rows."""

    def add(self, first: int, end: int, scores: Tensor, rows: Tensor) -> None:
        """Add a product to some of the keys."""
        ...

    def close(self) -> None:
        """Let the sum be where it belongs."""
        ...


class Batched:
    """Products of all heads at once, in place."""

    by_head = False

    def scores(  # noqa: D102 -- as the protocol's
        self, rows: Tensor, keys: Tensor, factor: float, added: Tensor | None, buffer: Callable[[], Tensor]
    ) -> Tensor:
        into = buffer() if added is None else added
        return torch.baddbmm(into, rows, keys.mT, beta=0 if added is None else 1, alpha=factor, out=into)

    def rows(self, scores: Tensor, keys: Tensor, added: Tensor | None = None) -> Tensor:  # noqa: D102
        return torch.bmm(scores, keys) if added is None else added.baddbmm_(scores, keys)

    def sums(self, into: Tensor, factor: float) -> Sums:  # noqa: D102
        return _InPlaceSums(into, factor)


class _InPlaceSums:
    def __init__(self, into: Tensor, factor: float) -> None:
        self._into, self._factor = into, factor

    def add(self, first: int, end: int, scores: Tensor, rows: Tensor) -> None:
        self._into[:, first:end].baddbmm_(scores.mT, rows, alpha=self._factor)

    def close(self) -> None:
        pass


class ByHead:
    """Products of one head by oneDNN, float32."""

    by_head = True

    def scores(  # noqa: D102
        self,
        rows: Tensor,
        keys: Tensor,
        factor: float,
        added: Tensor | None,
        buffer: Callable[[], Tensor],  # noqa: ARG002 (oneDNN makes its own)
    ) -> Tensor:
        x = rows[0] if factor == 1 else rows[0] * factor
        return product(x, keys[0], None if added is None else added[0]).unsqueeze(0)

    def rows(self, scores: Tensor, keys: Tensor, added: Tensor | None = None) -> Tensor:  # noqa: D102
        return product(scores[0], keys[0].t(), None if added is None else added[0]).unsqueeze(0)

    def sums(self, into: Tensor, factor: float) -> Sums:  # noqa: D102
        return _TransposedSums(into, factor)


class _TransposedSums:
    def __init__(self, into: Tensor, factor: float) -> None:
        self._into, self._factor = into, factor
        self._sum: Tensor | None = None  # (d, keys)

    def add(self, first: int, end: int, scores: Tensor, rows: Tensor) -> None:
        keys = self._into.shape[1]
        if (first, end) == (0, keys):
            self._sum = product(rows[0].t(), scores[0].t(), self._sum)
            return
        if self._sum is None:
            self._sum = rows.new_zeros(rows.shape[2], keys)
        self._sum[:, first:end].add_(product(rows[0].t(), scores[0].t(), None))

    def close(self) -> None:
        if self._sum is not None:
            self._into[0].copy_((self._sum if self._factor == 1 else self._sum.mul_(self._factor)).t())


def product(x: Tensor, w: Tensor, added: Tensor | None = None) -> Tensor:
    """X Wᵀ by oneDNN, plus what is added; long sums piece by piece.

    oneDNN adds the terms of a sum one after another. Of 1024 terms that errs by 1.6 times what MKL does, of 2048 by 2.3
    times; in pieces of 256 by 1.2 times. A piece of X is copied, of W it must be without gaps.

    Args:
        x: X, (m, n), n at least 1.
        w: W, (l, n).
        added: (m, l), or None.

    Returns:
        (m, l).
    """
    found = onednn_products()
    assert found is not None, "products_of asks onednn_is_quicker_by_head first"
    alone, plus = found
    terms = x.shape[1]
    pieces = [(x, w)]
    if terms > _MOST_TERMS and w.t().is_contiguous():
        starts = range(0, terms, _MOST_TERMS)
        pieces = [(x[:, a : a + _MOST_TERMS], w[:, a : a + _MOST_TERMS]) for a in starts]
    for one, other in pieces:
        added = alone(one, other, None, "none", [], "") if added is None else plus(one, added, other, None, "add")
    assert added is not None
    return added


_MOST_TERMS = 256
BATCHED, BY_HEAD = Batched(), ByHead()


def products_of(at: Operands, scores: Scores) -> Products:
    """What multiplies quickest here.

    Args:
        at: The arguments in the dtype of the computation, with no axis in front.
        scores: What is done to the scores.

    Returns:
        The products.
    """
    return BY_HEAD if _suits_onednn(at, scores) and onednn_is_quicker_by_head(torch.get_num_threads()) else BATCHED


def _suits_onednn(at: Operands, scores: Scores) -> bool:
    """Whether products of one head are large, float32, and such that oneDNN may make them."""
    if at.q.dtype != torch.float32 or scores.ranges is not None or scores.left >= 0:  # few keys are seen at once
        return False
    return (
        _fma_of_product(at, scores) >= LEAST_FMA_BY_HEAD * torch.get_num_threads()
        and onednn_is_on()
        and products_stay_float32()
        and not torch.are_deterministic_algorithms_enabled()
    )


def _fma_of_product(at: Operands, scores: Scores) -> int:
    """Multiplications of one product of a tile, on average."""
    rows, keys = rows_of_head(at, scores), at.k.shape[-2]
    if scores.right >= 0:  # rows of a tile see half of the keys and, for the last of them, more
        keys = min(keys, (keys + rows) // 2)
    return rows * keys * min(at.k.shape[-1], at.v.shape[-1])
