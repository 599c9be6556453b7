"""Tiles of attention kernels, chosen from head size, dtype and what is computed: no autotuner, no timing."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .arguments import Blocks, Scores, padded


class Config(NamedTuple):
    """A tile and how many warps work on it.

    Attributes:
        block_m: Rows.
        block_n: Columns.
        num_warps: Warps of a program.
        stages: Depth of the pipeline over tiles.
    """

    block_m: int
    block_n: int
    num_warps: int
    stages: int

    def options(self) -> dict[str, int | bool]:
        """Return the depth of the pipeline and the compiler's options."""
        return {
            "STAGES": self.stages,
            "num_warps": self.num_warps,
            "num_stages": 1,  # of loops that ask for none of their own
            "enable_fp_fusion": True,
        }


class _Tables(NamedTuple):
    """Configurations; in each line those of padded head sizes up to 64, up to 128, and 256.

    Attributes:
        forward: A line for every number of tangents that a program computes: 0, 1, more.
        adjoints: A line by what a program keeps while it walks over the rest, and whether there is a second order.
    """

    forward: tuple[tuple[Config, Config, Config], ...]
    adjoints: dict[tuple[str, bool], tuple[Config, Config, Config]]


# 227 KiB of shared memory and wgmma: sm_90, sm_100. 16-bit operands. Four warps are one warp group; each takes 64 of
# the axis that is kept. An operand that stays in shared memory is read again for every tile, so tiles along the other
# axis are 64 long where registers allow it. What is spilled is spilled outside of the loops over tiles, but for sums of
# the second order over rows.
_LARGE = _Tables(
    (
        (Config(128, 64, 8, 3), Config(128, 64, 8, 3), Config(128, 64, 8, 2)),
        (Config(64, 64, 4, 3), Config(128, 64, 8, 2), Config(64, 32, 8, 2)),
        (Config(128, 32, 8, 2), Config(64, 32, 8, 2), Config(32, 32, 8, 1)),
    ),
    {
        ("rows", False): (Config(64, 64, 4, 3), Config(128, 64, 8, 3), Config(64, 32, 8, 2)),
        ("columns", False): (Config(64, 64, 4, 3), Config(32, 64, 4, 3), Config(32, 64, 8, 1)),
        ("bias", False): (Config(64, 64, 8, 1), Config(64, 32, 8, 1), Config(32, 32, 8, 1)),
        ("rows", True): (Config(64, 64, 4, 2), Config(128, 32, 8, 2), Config(32, 32, 8, 1)),
        ("columns", True): (Config(32, 128, 8, 2), Config(16, 64, 4, 2), Config(32, 32, 8, 1)),
        ("values", True): (Config(32, 128, 8, 2), Config(32, 128, 8, 3), Config(32, 32, 8, 1)),
        ("bias", True): (Config(64, 32, 8, 1), Config(32, 16, 4, 1), Config(16, 16, 4, 1)),
    },
)
# Scores, P and sums of products also take the 512 columns of tensor memory of sm_100, and before Triton 3.9 more of
# them: those tiles of which it would compile nothing that can be loaded are smaller there.
_LARGE_BEFORE_3_9 = _LARGE._replace(
    forward=(
        _LARGE.forward[0],
        (_LARGE.forward[1][0], Config(128, 32, 8, 3), Config(32, 32, 8, 2)),
        _LARGE.forward[2],
    ),
    adjoints=_LARGE.adjoints
    | {
        ("rows", True): (Config(64, 64, 4, 2), Config(64, 32, 8, 2), Config(32, 32, 8, 1)),
        ("columns", True): (Config(32, 64, 8, 2), *_LARGE.adjoints["columns", True][1:]),
    },
)
# 64 KiB of gfx942, no wgmma on sm_80.
_SMALL = _Tables(
    (
        (Config(128, 32, 8, 2), Config(64, 32, 8, 2), Config(32, 16, 4, 1)),
        (Config(64, 32, 8, 2), Config(32, 32, 8, 1), Config(16, 16, 4, 1)),
        (Config(32, 32, 8, 1), Config(32, 16, 4, 1), Config(16, 16, 4, 1)),
    ),
    {
        ("rows", False): (Config(64, 32, 8, 1), Config(32, 32, 8, 1), Config(16, 16, 4, 1)),
        ("columns", False): (Config(32, 32, 4, 1), Config(32, 16, 4, 1), Config(16, 16, 4, 1)),
        ("bias", False): (Config(32, 32, 4, 1), Config(32, 32, 8, 1), Config(16, 16, 4, 1)),
        ("rows", True): (Config(32, 32, 8, 1), Config(16, 32, 8, 1), Config(16, 16, 4, 1)),
        ("columns", True): (Config(32, 16, 4, 1), Config(16, 16, 4, 1), Config(16, 16, 4, 1)),
        ("bias", True): (Config(32, 32, 8, 1), Config(16, 16, 4, 1), Config(16, 16, 4, 1)),
    },
)
# float32 by tensor cores, in TF32.
_BY_KIND = {kind: (Config(32, 32, 4, 1), Config(16, 32, 4, 1), Config(16, 16, 4, 1)) for kind in _LARGE.adjoints}
_TF32 = _Tables(((Config(64, 32, 4, 1), Config(32, 32, 4, 1), Config(16, 16, 4, 1)),) * 3, _BY_KIND)
# float32 and, in the interpreter, float64, on all devices. Without tensor cores a thread holds the whole vectors that
# it multiplies: many threads and small tiles, or kilobytes of each are spilled.
_LEAST = Config(16, 16, 8, 1)
_TINY = (_LEAST, _LEAST, _LEAST)
_PLAIN = (Config(32, 32, 8, 1), Config(32, 16, 8, 1), _LEAST)
_WIDE = _Tables(
    (_PLAIN, _TINY, _TINY),
    {
        ("rows", False): _PLAIN,
        ("columns", False): (Config(32, 32, 8, 1), _LEAST, _LEAST),
        ("bias", False): _BY_KIND["bias", False],
        ("rows", True): _TINY,
        ("columns", True): _TINY,
        ("bias", True): _BY_KIND["bias", True],
    },
)

_BEFORE_3_9 = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)
# Of operands of 16 bits, by the GPUs that they are for, each named by its oldest.
_BY_TARGET = {"sm_80": _SMALL, "sm_90": _LARGE, "sm_100": _LARGE_BEFORE_3_9 if _BEFORE_3_9 else _LARGE}

_forced: list[tuple[int, int]] = []
_assumed: list[str] = ["sm_90"]  # of tensors without a device, for ahead-of-time compilation


@functools.cache
def _target_of(device: torch.device) -> str:
    """The key of a device in `_BY_TARGET`: from sm_120 on GPUs have as little as sm_80 again."""
    major = 0 if torch.version.hip is not None else torch.cuda.get_device_capability(device)[0]
    return "sm_80" if major < 9 or major >= 12 else "sm_90" if major == 9 else "sm_100"


@contextmanager
def assume(target: str) -> Iterator[None]:
    """Take tensors on the meta device for ones on another than sm_90.

    Args:
        target: "sm_80", which gfx942 is like, "sm_90" or "sm_100".

    Yields:
        Nothing.
    """
    _assumed.append(target)
    try:
        yield
    finally:
        _assumed.pop()


def _tables(like: Tensor) -> _Tables:
    if like.dtype.itemsize > 2:
        return _TF32 if precision(like.dtype) == "tf32" else _WIDE
    return _BY_TARGET[_target_of(like.device) if like.is_cuda else _assumed[-1]]


def _column(head: int) -> int:
    return min(2, max(0, padded(head).bit_length() - 7))


@contextmanager
def tiles(block_m: int, block_n: int) -> Iterator[None]:
    """Force the size of tiles inside the block, so that tests have several at lengths that the interpreter can take.

    Args:
        block_m: Rows.
        block_n: Columns.

    Yields:
        Nothing.
    """
    _forced.append((block_m, block_n))
    try:
        yield
    finally:
        _forced.pop()


def tangents_of_program(count: int, head: int) -> int:
    """How many of `count` tangents a program computes at once: as many as registers hold, without a rest."""
    most = 2 if padded(head) <= 64 else 1
    return max(each for each in range(1, most + 1) if count % each == 0)


def forward_config(head: int, like: Tensor, bias: Tensor | None, tangents: int, blocks: Blocks | None) -> Config:
    """Tiles of value and tangents.

    Args:
        head: The greater head size.
        like: An operand.
        bias: What is added to the scores, or None.
        tangents: Tangents of a program.
        blocks: Lists of blocks, which tiles must divide.

    Returns:
        The configuration.
    """
    config = _tables(like).forward[min(tangents, 2)][_column(head)]
    if _is_tight(bias, head, like):
        most = 32 if tangents and padded(head) > 128 else config.block_m
        config = Config(min(config.block_m, most), min(config.block_n, 32), config.num_warps, min(config.stages, 2))
    return _fitted(config, blocks)


def adjoint_config(
    head: int, like: Tensor, bias: Tensor | None, kind: str, blocks: Blocks | None, *, second: bool
) -> Config:
    """Tiles of pullbacks and their tangents.

    Args:
        head: The greater head size.
        like: An operand.
        bias: What is added to the scores, or None.
        kind: "rows", "columns" or "bias": what a program keeps while it walks over the rest; "values": columns of which
            it sums those of values alone.
        blocks: Lists of blocks, which tiles must divide.
        second: Whether the tangent of the pullback is computed.

    Returns:
        The configuration.
    """
    table = _tables(like).adjoints
    alike = "columns" if kind == "values" and (kind, second) not in table else kind
    config = table[alike, second][_column(head)]
    if _is_tight(bias, head, like):
        config = config._replace(stages=max(1, config.stages - 1))
    return _fitted(config, blocks)


def sums_apart(head: int, *, second: bool) -> bool:
    """Whether the sums over rows for keys and those for values are two launches.

    With their tangents they are four: for heads of 128 that is all registers of a program whose tiles are long enough
    for wgmma, and in float32 so many more than all that compilers allot next to none. Apart they take 9 and 6 products
    a tile, together 12; in float32 as many instructions, a quarter less of which go to local memory.

    Args:
        head: The greater head size.
        second: Whether there are tangents of sums.

    Returns:
        Whether they are.
    """
    return second and padded(head) >= 128


def second_order_fits(head: int, like: Tensor) -> bool:
    """Whether the device of an operand has the shared memory that a program of the second order takes.

    In float32, with heads of more than 128, that is 112 KiB. GPUs of compute capability 8.6, 8.9 and 12.0 have 99, in
    which all else fits that they are given.

    Args:
        head: The greater head size.
        like: An operand.

    Returns:
        Whether it has.
    """
    if like.dtype != torch.float32 or padded(head) <= 128 or not like.is_cuda or torch.version.hip is not None:
        return True
    return _shared_memory(like.device) >= SHARED_OF_WIDE_SECOND_ORDER


SHARED_OF_WIDE_SECOND_ORDER = 112 << 10  # bytes


@functools.cache
def _shared_memory(device: torch.device) -> int:
    """The bytes that one program may have."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def _is_tight(bias: Tensor | None, head: int, like: Tensor) -> bool:
    """Whether there is no room for what comes through shared memory if a bias is of float32 beside 16 bits."""
    return bias is not None and bias.dtype.itemsize > like.dtype.itemsize and padded(head) >= 128


def _fitted(config: Config, blocks: Blocks | None) -> Config:
    """The configuration with tiles that divide blocks, or those that a test asked for."""
    if _forced:
        config = config._replace(block_m=_forced[-1][0], block_n=_forced[-1][1])
    if blocks is None:
        return config
    return config._replace(block_m=min(config.block_m, blocks.q_block), block_n=min(config.block_n, blocks.kv_block))


def call_key(q: Tensor, options: Scores, tensors: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """What calls must share for all but their numbers to be the same.

    Args:
        q: The queries.
        options: What is done to the scores.
        tensors: All tensors of a call, those of the options too, or None.

    Returns:
        Device and circumstances, options, and shapes, strides and dtypes of the tensors.
    """
    blocks = options.blocks
    return (
        q.device,
        _forced[-1] if _forced else None,  # what tiles depend on besides: what tests force ...
        _assumed[-1],
        precision(q.dtype),  # ... and what PyTorch is told of float32
        options.scale,
        options.left,
        options.right,
        options.offset,
        options.softcap,
        options.dropout_p,
        None if blocks is None else blocks[4:],
        *[None if t is None else (t.shape, t.stride(), t.dtype) for t in tensors],
    )


def precision(dtype: torch.dtype) -> str:
    """How float32 is multiplied: as PyTorch's global setting for matrix products asks."""
    # Whichever name it was set by, this one tells; `allow_tf32`, the older one, raises where the newer was used.
    allowed = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed else "ieee"
