"""What is added to scores and has no derivative: −∞ where a key is hidden, and ALiBi's distances."""

from typing import NamedTuple

import torch
from torch import Tensor

from .maps import Scores, Window
from .stripes import Part


class Fill(NamedTuple):
    """Numbers to be added to the scores of a tile.

    Attributes:
        values: They, broadcasting with (batch, heads, group, r, n − start).
        start: The first column of the tile that they belong to; nothing is added before it.
    """

    values: Tensor
    start: int

    def add_to(self, scores: Tensor) -> None:
        """Add them to scores (batch, heads, group, r, n)."""
        part = scores if self.start == 0 else scores[..., self.start :]
        part.add_(self.values)


class Fills:
    """What is added to the scores of tiles, found once for a window if it is the same for all heads.

    Args:
        scores: What is done to the scores.
    """

    def __init__(self, scores: Scores) -> None:
        mask, ranges = scores.mask, scores.ranges
        self._alike = (
            scores.slopes is None
            and (mask is None or mask.shape[:2] == (1, 1))
            and (ranges is None or ranges.shape[0] == 1)
        )
        self._last: tuple[Window, Fill | None] | None = None

    def of(self, scores: Scores, part: Part, window: Window, like: Tensor) -> Fill | None:
        """See `fill_of`."""
        if not self._alike:
            return fill_of(scores, part, window, like)
        if self._last is None or self._last[0] != window:
            self._last = window, fill_of(scores, part, window, like)
        return self._last[1]


def fill_of(scores: Scores, part: Part, window: Window, like: Tensor) -> Fill | None:
    """What is added to the scores of a tile.

    Args:
        scores: What is done to the scores.
        part: Which heads.
        window: Which rows and keys.
        like: A tensor of the dtype of the computation.

    Returns:
        The numbers, or None if there are none.
    """
    start = 0
    if scores.right >= 0 and scores.left < 0 and scores.mask is None and scores.slopes is None:
        start = max(0, min(window.d, window.a + scores.offset + scores.right + 1) - window.c)  # all see what is before
        if start == window.d - window.c:
            return None
    visible = _visible(scores, part, window, start, like)
    # 1 − 1/1 = 0 and 1 − 1/0 = −∞, which takes a fraction of the time of torch.where.
    values = None if visible is None else visible.to(like.dtype).reciprocal_().neg_().add_(1)
    if scores.slopes is not None:
        slopes = part.scores(scores.slopes[..., None, None], window).to(like.dtype)
        distance = (_positions(scores, part, window, like).to(like.dtype) - _keys(window, 0, like)).abs_()
        values = torch.addcmul(like.new_zeros(()) if values is None else values, slopes, distance, value=-1)
    return None if values is None else Fill(values, start)


def _visible(scores: Scores, part: Part, window: Window, start: int, like: Tensor) -> Tensor | None:
    """Which keys rows see, bool, broadcasting with (batch, heads, group, r, n − start); None for all."""
    seen = None if scores.mask is None else part.scores(scores.mask, window)
    keys = _keys(window, start, like)
    if scores.ranges is not None:
        first, end = _range(scores, 0, part, window), _range(scores, 1, part, window)
        inside = (keys >= first) & (keys < end)
        seen = inside if seen is None else seen & inside
    elif scores.left >= 0 or scores.right >= 0:
        ahead = keys - _positions(scores, part, window, like)
        if scores.right >= 0:
            seen = ahead <= scores.right if seen is None else seen & (ahead <= scores.right)
        if scores.left >= 0:
            seen = ahead >= -scores.left if seen is None else seen & (ahead >= -scores.left)
    return seen


def _keys(window: Window, start: int, like: Tensor) -> Tensor:
    return torch.arange(window.c + start, window.d, device=like.device)


def _positions(scores: Scores, part: Part, window: Window, like: Tensor) -> Tensor:
    """Position of each row among the keys, (r, 1), or (batch, 1, 1, r, 1)."""
    if scores.ranges is not None:
        return _range(scores, 2, part, window).long()
    return torch.arange(window.a, window.b, device=like.device)[:, None] + scores.offset


def _range(scores: Scores, which: int, part: Part, window: Window) -> Tensor:
    """First keys, ends or positions of the rows, (batch or 1, 1, 1, r, 1)."""
    assert scores.ranges is not None
    ranges = scores.ranges if scores.ranges.shape[0] == 1 else scores.ranges[part.batch]
    return ranges[:, which, None, None, window.a : window.b, None]
