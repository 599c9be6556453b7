"""Kernel variants that the cross-entropy launchers choose, for ahead-of-time compilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from .._variants import Variant, variants_of
from ._targets import Options
from .forward import cross_entropy_forward
from .second_order import cross_entropy_second_order
from .vjp import cross_entropy_vjp

_ROWS = 64


def aot_variants() -> list[Variant]:
    """Return each variant once: classes and probabilities, rows that fit a tile and long ones, every option."""
    return variants_of(_calls())


def _calls() -> Iterator[Callable[[], object]]:
    plain = Options(None, -100, 0.0, None)
    every = Options(torch.empty(65536, device="meta"), -100, 0.1, 30.0)
    yield from _point_calls(1024, 1, torch.bfloat16, False, plain)
    yield from _point_calls(131072, 1, torch.bfloat16, False, plain)
    yield from _point_calls(65536, 1, torch.float32, False, every)
    yield from _point_calls(65536, 1, torch.float32, True, every)
    part = Options(None, -100, 0.1, 30.0, first=4096, classes=262144)
    yield from _point_calls(4096, 1, torch.bfloat16, False, part, second_order=False)
    yield from _point_calls(20, 4096, torch.float32, False, plain)


def _point_calls(
    n: int, inner: int, dtype: torch.dtype, probabilities: bool, options: Options, *, second_order: bool = True
) -> Iterator[Callable[[], object]]:
    x = torch.empty(1, _ROWS, n, inner, dtype=dtype, device="meta")
    number = torch.empty(1, _ROWS, inner, dtype=torch.float32, device="meta")
    target = x if probabilities else number.long()
    target_dot: Tensor | None = x if probabilities else None
    yield partial(cross_entropy_forward, x, target, None, None, options)
    yield partial(cross_entropy_forward, x, target, x, target_dot, options)
    yield partial(cross_entropy_vjp, number, number, x, target, (number, number), options, needs_target=probabilities)
    if not second_order:
        return
    cotangents = (number, number, number, number)
    wants = (True, probabilities, True, probabilities, False)
    yield partial(cross_entropy_second_order, x, target, x, target_dot, cotangents, options, wants=wants)
