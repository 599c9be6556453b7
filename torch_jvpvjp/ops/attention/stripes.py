"""Cutting the rows so that no matrix of queries by keys is ever whole, and no time goes to keys that no row sees."""

from collections.abc import Iterator

from .maps import Operands, Scores, Window

# Scores of a stripe over all batches and heads: a few MiB, near what a core's cache holds.
_SCORES_IN_STRIPE = 2**20
_FEWEST_ROWS, _MOST_ROWS = 32, 512


def striped(at: Operands, scores: Scores) -> Iterator[Window]:
    """Stripes of rows with the keys that one of them may see: memory grows with the number of keys alone.

    Args:
        at: The arguments.
        scores: What is done to the scores.

    Yields:
        The windows, of all rows in order; at least one.
    """
    rows, keys = at.q.shape[-2], at.k.shape[-2]
    if rows == 0:
        yield Window(0, 0, 0, keys)
        return
    per_row = max(1, at.q.shape[:-2].numel() * keys)
    step = max(_FEWEST_ROWS, min(_MOST_ROWS, _SCORES_IN_STRIPE // per_row))
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
