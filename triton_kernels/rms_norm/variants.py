"""Every kernel variant that the RMS norm launchers choose, for ahead-of-time compilation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from .._variants import Variant, variants_of
from .forward import rms_norm_forward
from .jvp import rms_norm_jvp
from .second_order import rms_norm_second_order
from .vjp import rms_norm_vjp

_ALL_N = (1, 128, 512, 2048, 4096, 8192, 16384, 65536)  # one for each kind of configuration
_SOME_N = (256, 2048, 4096, 8192, 16384)
_FLAG_N = (1024, 65536)  # rows that fit a tile, rows that do not
_ROWS = 64


def aot_variants() -> list[Variant]:
    """Return each variant once: every configuration and set of operands in bfloat16, the main ones in every dtype."""
    return variants_of(_calls())


def _calls() -> Iterator[Callable[[], object]]:
    for n in _ALL_N:
        yield from _main_calls(n, torch.bfloat16, torch.bfloat16)
    for dtype, n in itertools.product((torch.float32, torch.float64), _SOME_N):
        yield from _main_calls(n, dtype, dtype)
    yield from _main_calls(2048, torch.float16, torch.float16)  # what else differs from bfloat16 are conversions
    yield from _main_calls(1024, torch.bfloat16, torch.float32)  # weights kept in float32
    yield from _main_calls(1000, torch.bfloat16, torch.bfloat16)  # rows that start at odd addresses
    yield from _main_calls(8195, torch.bfloat16, torch.bfloat16)
    for n in _FLAG_N:
        yield from _flag_calls(n, torch.bfloat16)


def _tensors(n: int, dtype: torch.dtype, weight_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.empty(1, _ROWS, n, dtype=dtype, device="meta"), torch.empty(1, n, dtype=weight_dtype, device="meta")


def _main_calls(n: int, dtype: torch.dtype, weight_dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    """Yield what a layer with a weight asks for when all of its derivatives are taken."""
    x, w = _tensors(n, dtype, weight_dtype)
    yield partial(rms_norm_forward, x, w, 1e-6)
    yield partial(rms_norm_jvp, x, w, x, w, 1e-6)
    yield partial(rms_norm_jvp, x, w, x.expand(4, -1, -1), None, 1e-6)
    yield partial(rms_norm_vjp, x, x, w, 1e-6, True, True)
    yield partial(rms_norm_vjp, x, x, w, 1e-6, True, False)
    yield partial(_second_order, x, w, x, w, x, x, (True, True, True, True, False))
    yield partial(_second_order, x, w, x, w, x, None, (False, False, True, True, True))


def _flag_calls(n: int, dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    """Yield operands present and absent, results wanted and not, one tangent and many, few rows and many."""
    x, w = _tensors(n, dtype, dtype)
    many = x.expand(4, -1, -1)
    tall = torch.empty(1, 1 << 15, n, dtype=dtype, device="meta")
    for weight in (w, None):
        yield partial(rms_norm_forward, x, weight, 1e-6)
        for x_dot, w_dot in ((x, None), (x, w), (None, w), (many, w), (many, None), (None, w.expand(4, -1))):
            if weight is None and w_dot is not None:
                continue
            yield partial(rms_norm_jvp, x, weight, x_dot, w_dot, 1e-6)
        for y_bar, needs_x, needs_weight in itertools.product((x, many, tall), (True, False), (True, False)):
            shape_of = tall if y_bar is tall else x
            yield partial(rms_norm_vjp, y_bar, shape_of, weight, 1e-6, needs_x, needs_weight)
        tangents = ((x, w), (x, None), (None, w)) if weight is not None else ((x, None),)
        if n != _FLAG_N[0]:
            tangents = tangents[:1]
        for (x_dot, w_dot), b, wanted in itertools.product(tangents, (x, None), _WANTED):
            if b is None or not wanted[-1]:  # the VJP of the VJP, which wants ẏ, has no b
                yield partial(_second_order, x, weight, x_dot, w_dot, x, b, wanted)


# (x_first, w_first, x_second, w_second, y_dot) as the derivative rules ask: VJP of the JVP, JVP of the VJP, VJP of the
# VJP, with and without the weight's part.
_WANTED = (
    (True, True, True, True, False),
    (True, False, True, False, False),
    (False, False, True, True, False),
    (False, False, True, False, False),
    (False, False, True, True, True),
    (False, False, True, False, True),
)


def _second_order(
    x: Tensor,
    weight: Tensor | None,
    x_dot: Tensor | None,
    weight_dot: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    wanted: tuple[bool, bool, bool, bool, bool],
) -> object:
    x_first, w_first, x_second, w_second, y_dot = wanted
    return rms_norm_second_order(
        x,
        weight,
        x_dot,
        weight_dot,
        a,
        b,
        1e-6,
        wants_x_first=x_first,
        wants_w_first=w_first,
        wants_x_second=x_second,
        wants_w_second=w_second,
        wants_y_dot=y_dot,
    )
