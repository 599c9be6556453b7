"""What launchers of attention take, and how it becomes kernel arguments."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

_UNBOUNDED = 2**30
_FARTHEST = 2**23  # elements between two vectors: those of a tile, 128 of them, are addressed by 32 bits
_LARGEST_TILE = 256
_NO_LISTS = ((None, None), (0, 0, 0))
# Sizes and strides in which kernels do not differ: lengths change without a compilation. Of other strides it counts
# whether they are multiples of 16, as those of aligned tensors are at all lengths.
NOT_SPECIALIZED = [
    *("batch", "heads", "group", "rows", "columns", "left", "right", "offset", "stored", "row_blocks", "column_blocks"),
    *("bias_batch", "bias_heads", "slopes_b", "ranges_b", "spans_b", "seed_n", "list_b", "list_h", "listed"),
]


class Blocks(NamedTuple):
    """Which blocks of rows and keys are not empty, as lists; int32, (b, h, ...) with b, h full or 1.

    Attributes:
        kv_count: How many blocks of keys each block of rows looks at, (b, h, R).
        kv_index: Which, (b, h, R, C); the first kv_count of them count.
        q_count: How many blocks of rows look at each block of keys, (b, h, C).
        q_index: Which, (b, h, C, R).
        q_block: Rows in a block, a power of two from 16.
        kv_block: Keys in a block, likewise.
    """

    kv_count: Tensor
    kv_index: Tensor
    q_count: Tensor
    q_index: Tensor
    q_block: int
    kv_block: int


class Scores(NamedTuple):
    """What is done to the scores.

    Attributes:
        scale: s.
        left: Keys that a row sees before its position; negative: all.
        right: Keys that it sees after; negative: all.
        offset: Position of row 0 among the keys.
        softcap: κ; 0: none.
        mask: What is visible, bool, (N, B, Hq, Lq, Lk) with axes full or 1, or None.
        slopes: ALiBi's, (B or 1, Hq), or None.
        ranges: First key, end of keys and position of each row, int32, (B or 1, 3, Lq), in place of the window, or
            None; first keys and ends do not decrease.
        seed: Seeds of dropout, int64, (N or 1) or (), or None.
        dropout_p: Probability of dropout.
        blocks: Lists of blocks that hold all that is visible, or None.
    """

    scale: float
    left: int = -1
    right: int = -1
    offset: int = 0
    softcap: float = 0.0
    mask: Tensor | None = None
    slopes: Tensor | None = None
    ranges: Tensor | None = None
    seed: Tensor | None = None
    dropout_p: float = 0.0
    blocks: Blocks | None = None


class Operands(NamedTuple):
    """Something for each of query, key, value and bias."""

    q: Any = None
    k: Any = None
    v: Any = None
    bias: Any = None


class RuleArguments(NamedTuple):
    """The scores' part of a kernel's arguments.

    Attributes:
        pointers: mask, slopes, ranges, seed.
        strides: Of bias, its tangent, mask, slopes, ranges and seed.
        window: left, right, offset.
        numbers: scale, softcap, dropout_p.
        key_lists: Lists of keys for rows.
        key_list_strides: Their strides and length.
        row_lists: Lists of rows for keys.
        row_list_strides: Their strides and length.
    """

    pointers: tuple[Any, ...]
    strides: tuple[int, ...]
    window: tuple[int, int, int]
    numbers: tuple[float, float, float]
    key_lists: tuple[Any, Any]
    key_list_strides: tuple[int, int, int]
    row_lists: tuple[Any, Any]
    row_list_strides: tuple[int, int, int]


def rule_arguments(options: Scores, bias: Tensor | None, bias_dot: Tensor | None) -> RuleArguments:
    """Bring options to kernel arguments.

    Args:
        options: The options.
        bias: Added to the scores, or None.
        bias_dot: Its tangent, or None.

    Returns:
        The arguments.
    """
    mask, slopes, ranges, seed = options.mask, options.slopes, options.ranges, options.seed
    if slopes is not None:
        slopes = slopes.contiguous()
    if ranges is not None:
        ranges = ranges.contiguous()
    blocks = options.blocks
    return RuleArguments(
        (mask, slopes, ranges, seed if options.dropout_p > 0 else None),
        (
            *score_strides(bias),
            *score_strides(bias_dot),
            *score_strides(mask),
            *(0 if t is None or t.dim() == 0 or t.shape[0] == 1 else t.stride(0) for t in (slopes, ranges, seed)),
        ),
        (
            _UNBOUNDED if options.left < 0 else options.left,
            _UNBOUNDED if options.right < 0 else options.right,
            options.offset,
        ),
        (options.scale, options.softcap, options.dropout_p),
        *(_NO_LISTS if blocks is None else _lists(blocks.kv_count, blocks.kv_index)),
        *(_NO_LISTS if blocks is None else _lists(blocks.q_count, blocks.q_index)),
    )


def _lists(count: Tensor, index: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[int, int, int]]:
    """Counts and entries, contiguous; elements of the counts between two of a batch and two heads; length of a list."""
    count, index = count.contiguous(), index.contiguous()
    batch, heads, blocks = count.shape
    strides = (0 if batch == 1 else heads * blocks, 0 if heads == 1 else blocks, index.shape[-1])
    return (count, index), strides


def score_strides(tensor: Tensor | None) -> tuple[int, ...]:
    """Strides of (N, B, Hq, Lq, Lk), 0 along axes of size 1; zeros for None."""
    if tensor is None:
        return (0,) * 5
    return tuple(0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def head_strides(tensor: Tensor | None) -> tuple[int, ...]:
    """Strides (N, B, H, L) of (N, B, H, L, d), 0 along axes of size 1; zeros for None."""
    return score_strides(tensor)[:4]


def unit_last(tensor: Tensor | None) -> Any:
    """The tensor, copied only if the elements of its vectors are not adjacent, or too far apart for a tile."""
    if tensor is None or ((tensor.stride(-1) == 1 or tensor.shape[-1] <= 1) and tensor.stride(-2) < _FARTHEST):
        return tensor
    return tensor.contiguous()


def is_wide(*tensors: Tensor | None) -> bool:
    """Whether the last two axes of some tensor, or tiles at their ends, span more elements than 31 bits can number."""
    return any(
        (t.shape[-2] + _LARGEST_TILE) * t.stride(-2) + (t.shape[-1] + _LARGEST_TILE) * t.stride(-1) >= 2**31
        for t in tensors
        if t is not None
    )


def check_counted(rows: int, columns: int) -> None:
    """Refuse lengths at whose sum with a window or an offset numbers of rows and keys leave 32 bits.

    Args:
        rows: Lq.
        columns: Lk.

    Raises:
        ValueError: If one is too long.
    """
    most = _UNBOUNDED - _LARGEST_TILE
    if max(rows, columns) > most:
        raise ValueError(f"attention: kernels count up to {most} rows and keys, got {rows} and {columns}.")


def are_alike(*tensors: Tensor | None) -> bool:
    """Whether those that there are have the same stride between vectors."""
    return len({t.stride(-2) for t in tensors if t is not None}) <= 1


def is_fine(q: Tensor) -> bool:
    """Whether operands are of float32 or wider, whose results show each rounding of scores and of ℓ."""
    return q.dtype.itemsize > 2


def capped(options: Scores, q: Tensor) -> int:
    """How scores are capped: 0 not at all, 1 as well as operands of 16 bits show, 2 exactly."""
    return 0 if options.softcap <= 0 else 2 if is_fine(q) else 1


def padded(size: int) -> int:
    """The length of a block for a head size: a power of two that a matrix product takes."""
    return max(16, 1 << (size - 1).bit_length())


def shared_size(*tensors: Tensor | None) -> int:
    """N: the size of the first axis after broadcasting."""
    return max([1, *(t.shape[0] for t in tensors if t is not None and t.dim())])


def with_front(tensor: Tensor | None) -> Any:
    """A tensor of heads or scores with the axis N in front."""
    return tensor if tensor is None or tensor.dim() == 5 else tensor.unsqueeze(0)
