"""Kernel variants that the rope launcher chooses, for ahead-of-time compilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from .._variants import Variant, variants_of
from .launcher import Angles, Heads, rope_turn

_BATCHES, _TOKENS = 2, 64


def aot_variants() -> list[Variant]:
    """Return each variant once: all that bfloat16 models ask for, the main ones in other dtypes and sizes."""
    return variants_of(_calls())


def _calls() -> Iterator[Callable[[], object]]:
    for interleaved in (False, True):
        yield from _main_calls(128, 64, torch.bfloat16, torch.float32, interleaved)
        yield from _main_calls(128, 32, torch.float32, torch.float32, interleaved)  # a quarter turns twice, a half not
        yield from _first_calls(64, 32, torch.float16, torch.float16, interleaved)
        yield from _first_calls(80, 10, torch.bfloat16, torch.bfloat16, interleaved)  # rows not divisible by 16
    yield from _first_calls(128, 64, torch.float64, torch.float64, False)
    yield from _first_calls(512, 256, torch.bfloat16, torch.float32, False)  # more than one block of pairs


def _heads(d: int, dtype: torch.dtype, groups: int = 1) -> Heads:
    q, k = (torch.empty(groups, _BATCHES, heads, _TOKENS, d, dtype=dtype, device="meta") for heads in (32, 8))
    return Heads(q, k)


def _angles(c: int, dtype: torch.dtype) -> Angles:
    angle = torch.empty(1, 1, _TOKENS, c, dtype=dtype, device="meta")
    return Angles(angle, angle)


def _first_calls(
    d: int, c: int, dtype: torch.dtype, angle_dtype: torch.dtype, interleaved: bool
) -> Iterator[Callable[[], object]]:
    """Yield the primal, its tangents and its pullback."""
    heads, angles = _heads(d, dtype), _angles(c, angle_dtype)
    turn = partial(rope_turn, heads, angles, interleaved=interleaved)
    yield turn
    yield partial(turn, b=heads, wants_second=True)
    yield partial(turn, inverse=True)


def _main_calls(
    d: int, c: int, dtype: torch.dtype, angle_dtype: torch.dtype, interleaved: bool
) -> Iterator[Callable[[], object]]:
    """Yield what all derivatives to the second order ask for, with tables and both layouts of heads."""
    heads, angles = _heads(d, dtype), _angles(c, angle_dtype)
    yield from _first_calls(d, c, dtype, angle_dtype, interleaved)
    turn = partial(rope_turn, heads, angles, interleaved=interleaved, heads_last=True)
    positions: Tensor = torch.empty(1, _BATCHES, _TOKENS, dtype=torch.int64, device="meta")
    yield partial(turn, positions=positions)
    yield partial(turn, b=_heads(d, dtype, 4), wants_second=True)  # four tangents of one primal
    yield partial(turn, b=heads, dots=angles, wants_second=True)
    pull = partial(turn, inverse=True, x=heads)
    yield partial(pull, wants_first_sum=True)
    yield partial(
        pull, b=heads, dots=angles, x_dot=heads, wants_second=True, wants_first_sum=True, wants_second_sum=True
    )
