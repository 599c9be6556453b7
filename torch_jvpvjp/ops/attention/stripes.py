"""Cutting attention so that no matrix of queries by keys is ever whole, and no time goes to keys that no row sees."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .maps import Operands, Scores, Window

# Scores of a stripe over all batches and heads: of formulas, which hold a dozen such matrices at once, and of a fused
# kernel, which is given one and is slow by few rows.
_SCORES_IN_STRIPE, _SCORES_IN_CALL = 2**17, 2**19
_FEWEST_ROWS, _MOST_ROWS = 32, 512
_NUMBERS_OF_DROPOUT = 8  # that a generator of four words of eight bytes holds for a score, in units of a score

# Scores of a tile, for every thread: products are slow by few rows, and where keys are hidden by position, many rows
# see many keys that single ones do not.
_SCORES_IN_TILE = 2**18
_ROWS_IN_TILE, _ROWS_IN_TRIANGLE = 512, 128
_MOST_THREADS = 32
_LARGER_BY_HEAD = 2  # how many times as many scores, and rows of a triangle, if every head is multiplied by itself
_WIDTHS_BY_HEAD = 8  # of windows in a triangle: oneDNN makes code for every shape, some 600 kB, and keeps it


def striped(at: Operands, scores: Scores) -> Iterator[Window]:
    """Stripes of rows with the keys that one of them may see: memory grows with the number of keys alone.

    Args:
        at: The arguments.
        scores: What is done to the scores.

    Yields:
        The windows, of all rows in order; at least one.
    """
    per_row = at.q.shape[:-2].numel() * at.k.shape[-2] * (1 if scores.dropout_p == 0 else _NUMBERS_OF_DROPOUT)
    yield from windows(at, scores, _rows(_SCORES_IN_STRIPE, per_row))


def rows_of_call(per_row: int) -> int:
    """How many rows a fused kernel is called with, to which a matrix is given.

    Args:
        per_row: Numbers of the matrix for each of them.

    Returns:
        The number of rows.
    """
    return _rows(_SCORES_IN_CALL, per_row)


def _rows(numbers: int, per_row: int) -> int:
    return max(_FEWEST_ROWS, min(_MOST_ROWS, numbers // max(1, per_row)))


def windows(at: Operands, scores: Scores, step: int) -> Iterator[Window]:
    """Stripes of so many rows.

    Args:
        at: The arguments.
        scores: What is done to the scores.
        step: How many.

    Yields:
        The windows, of all rows in order; at least one.
    """
    rows, keys = at.q.shape[-2], at.k.shape[-2]
    if rows == 0:
        yield Window(0, 0, 0, keys)
        return
    for a in range(0, rows, step):
        b = min(rows, a + step)
        c, d = _keys_of(a, b, keys, scores)
        yield Window(a, b, c, d)


def _keys_of(a: int, b: int, keys: int, scores: Scores) -> tuple[int, int]:
    """First and end of the keys that rows a to b may see."""
    if scores.ranges is not None:
        if scores.ranges.device.type != "cpu":  # reading them would wait for the device
            return 0, keys
        part = scores.ranges[..., a:b]
        return int(part[..., 0, :].min()), int(part[..., 1, :].max())
    c = 0 if scores.left < 0 else max(0, min(keys, a + scores.offset - scores.left))
    d = keys if scores.right < 0 else max(c, min(keys, b + scores.offset + scores.right))
    return c, d


# ---- tiles: some rows of some heads ----------------------------------------------------------------------------------


class Part(NamedTuple):
    """Elements of the batch and key heads that are computed together, as views of what has no axis in front.

    Attributes:
        batch: Which elements of the batch.
        heads: Which key heads; all of them if there are several elements.
        group: Query heads for each.
    """

    batch: slice
    heads: slice
    group: int

    def rows(self, x: Tensor, window: Window) -> Tensor:
        """Rows a to b of (B, Hq, L, d), those of a key head under one another: (batch · heads, group · r, d)."""
        x = self._of_queries(x, window)
        return x.reshape(-1, self.group * x.shape[2], x.shape[3])

    def put(self, into: Tensor, window: Window, rows: Tensor, factor: float = 1.0) -> None:
        """Write rows in that layout, times a factor, into (B, Hq, L, d)."""
        place = self._of_queries(into, window)
        if factor == 1:
            place.copy_(rows.view(place.shape))
        else:
            torch.mul(rows.view(place.shape), factor, out=place)

    def keys(self, x: Tensor) -> Tensor:
        """(B, Hk, n, d) as (batch · heads, n, d)."""
        return x[self.batch, self.heads].reshape(-1, x.shape[2], x.shape[3])

    def scores(self, x: Tensor, window: Window) -> Tensor:
        """A part of (b, h, r, n), axes full or 1, as a view that broadcasts with `by_head`."""
        x = x if x.shape[0] == 1 else x[self.batch]
        x = x.unsqueeze(2) if x.shape[1] == 1 else self._heads_of_queries(x).unflatten(1, (-1, self.group))
        x = x if x.shape[-2] == 1 else x[..., window.a : window.b, :]
        return x if x.shape[-1] == 1 else x[..., window.c : window.d]

    def by_head(self, scores: Tensor) -> Tensor:
        """Scores (batch · heads, group · r, n) as (batch, heads, group, r, n)."""
        heads = self.heads.stop - self.heads.start
        return scores.view(-1, heads, self.group, scores.shape[1] // self.group, scores.shape[2])

    def _of_queries(self, x: Tensor, window: Window) -> Tensor:
        return x[self.batch, self._query_heads(), window.a : window.b]  # at once, since each step takes microseconds

    def _heads_of_queries(self, x: Tensor) -> Tensor:
        return x[:, self._query_heads()]

    def _query_heads(self) -> slice:
        return slice(self.heads.start * self.group, self.heads.stop * self.group)


def tiled(at: Operands, scores: Scores, *, by_head: bool = False) -> tuple[list[Part], list[Window]]:
    """Parts and windows: every tile has about as many scores as a cache holds.

    Args:
        at: The arguments, with no axis in front.
        scores: What is done to the scores.
        by_head: Whether a tile is of one key head.

    Returns:
        Some heads each, and the windows of all rows of any.
    """
    batch, heads, keys = at.k.shape[:3]
    group, step = at.q.shape[1] // heads, _step(at, scores, _LARGER_BY_HEAD if by_head else 1)
    together = 1 if by_head else max(1, _room(1) // (group * min(step, at.q.shape[2]) * keys))
    several = max(1, together // heads)  # elements of the batch
    parts = [
        Part(slice(b, min(batch, b + several)), slice(h, min(heads, h + together)), group)
        for b in range(0, batch, several)
        for h in range(0, heads, min(together, heads))
    ]
    found = list(windows(at, scores, step))
    return parts, _of_few_widths(found, keys) if by_head else found


def _of_few_widths(found: list[Window], keys: int) -> list[Window]:
    """Windows that begin at the first key, some of them wider."""
    grain = -(-len(found) // _WIDTHS_BY_HEAD)
    if grain == 1 or any(one.c != 0 for one in found):
        return found
    ends = [found[min(i // grain * grain + grain, len(found)) - 1].d for i in range(len(found))]
    return [one._replace(d=min(keys, end)) for one, end in zip(found, ends, strict=True)]


def rows_of_head(at: Operands, scores: Scores) -> int:
    """Rows of a tile of one key head.

    Args:
        at: The arguments, with no axis in front.
        scores: What is done to the scores.

    Returns:
        Their number, that of all query heads together.
    """
    return at.q.shape[1] // at.k.shape[1] * min(_step(at, scores, _LARGER_BY_HEAD), at.q.shape[2])


def _step(at: Operands, scores: Scores, larger: int) -> int:
    """Rows of one query head in a tile."""
    group = at.q.shape[1] // at.k.shape[1]
    by_position = scores.left >= 0 or scores.right >= 0 or scores.ranges is not None
    rows = min(_ROWS_IN_TILE, larger * _ROWS_IN_TRIANGLE) if by_position else _ROWS_IN_TILE
    fewest, most = -(-_FEWEST_ROWS // group), -(-rows // group)
    return max(fewest, min(most, _room(larger) // (group * at.k.shape[2])))


def _room(larger: int) -> int:
    return larger * _SCORES_IN_TILE * min(_MOST_THREADS, torch.get_num_threads())
