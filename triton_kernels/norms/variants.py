"""The variants that the norm launchers choose, for ahead-of-time compilation: each branch, and each kind of tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from .._variants import Variant, variants_of
from ._pieces import Norm
from .forward import norm_forward
from .jvp import norm_jvp
from .pair import Side, pair_forward, pair_jvp, pair_vjp
from .second_order import Second, norm_second_order
from .vjp import norm_vjp

_RMS, _LAYER = Norm(1e-6), Norm(1e-5, centred=True)
_MODULATED, _LLAMA = Norm(1e-6, centred=True, offset=1.0), Norm(1e-6, offset=1.0, rounded=True)
_ROWS = 64
_LONG = 65536  # columns of a row that no tile holds

# As the derivative rules ask: VJP of the JVP, JVP of the VJP, VJP of the VJP, without the sums, and one of them.
_ALL = Second(x_first=True, w_first=True, bias_first=True, x_second=True, w_second=True, bias_second=True)
_TRAINING = Second(x_first=True, x_second=True, w_second=True, bias_second=True)
_ROWS_ONLY = Second(x_first=True, x_second=True)
_TWICE_BACK = Second(x_second=True, w_second=True, y_dot=True)


def aot_variants() -> list[Variant]:
    """Return each variant once: RMS and layer norm in bfloat16 over all tiles, the rest where it differs."""
    return variants_of(_calls())


def _calls() -> Iterator[Callable[[], object]]:
    for n in (128, 4096, _LONG):
        yield from _layer(_RMS, n, torch.bfloat16, bias=False)
    for n in (1024, 8192, _LONG):
        yield from _layer(_LAYER, n, torch.bfloat16, bias=True)
    yield from _layer(_LAYER, 4096, torch.float32, bias=True)
    yield from _layer(_RMS, 2048, torch.float64, bias=False)
    yield from _flags(1000)  # rows that start at odd addresses
    yield from _modulations(1152)
    yield from _heads(128)


def _tensors(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.empty(1, _ROWS, n, dtype=dtype, device="meta"), torch.empty(1, n, dtype=dtype, device="meta")


def _layer(norm: Norm, n: int, dtype: torch.dtype, *, bias: bool) -> Iterator[Callable[[], object]]:
    """Yield what a layer asks for when all of its derivatives are taken."""
    x, w = _tensors(n, dtype)
    b = w if bias else None
    yield partial(norm_forward, x, w, b, norm)
    yield partial(norm_jvp, x, w, b, x, w, b, norm)
    yield partial(norm_vjp, x, x, w, b, norm, (True, True, bias))
    yield partial(norm_second_order, x, w, b, x, None, None, x, x, norm, _TRAINING)
    yield partial(norm_second_order, x, w, b, x, w, b, x, None, norm, _TWICE_BACK)


def _flags(n: int) -> Iterator[Callable[[], object]]:
    """Yield operands present and absent, one tangent and many, a residual, float16."""
    x, w = _tensors(n, torch.float16)
    many = x.expand(4, -1, -1)
    for norm in (_RMS, _LAYER):
        yield partial(norm_forward, x, None, None, norm)
        yield partial(norm_jvp, x, w, None, many, None, None, norm)
        yield partial(norm_vjp, many, x, w, None, norm, (True, False, False))
        yield partial(norm_second_order, x, w, w, x, w, w, x, x, norm, _ALL)
    yield partial(norm_second_order, x, None, None, x, None, None, x, None, _RMS, _ROWS_ONLY)
    yield partial(norm_jvp, x, w, None, None, w, None, _RMS)
    yield partial(norm_forward, x, w, None, _LLAMA, residual=x)
    yield partial(norm_jvp, x, w, None, x, None, None, _LLAMA, residual=x, residual_dot=x)
    yield partial(norm_vjp, x, x, w, None, _RMS, (True, True, False), carry=x)


def _modulations(n: int) -> Iterator[Callable[[], object]]:
    """Yield a shift and a scale of each sample."""
    x, w = (t.expand(4, *t.shape[1:]).contiguous() for t in _tensors(n, torch.bfloat16))
    yield partial(norm_forward, x, w, w, _MODULATED)
    yield partial(norm_jvp, x, w, w, x, w, w, _MODULATED)
    yield partial(norm_vjp, x, x, w, w, _MODULATED, (True, True, True))
    yield partial(norm_second_order, x, w, w, x, w, w, x, x, _MODULATED, _ALL)


def _heads(n: int) -> Iterator[Callable[[], object]]:
    """Yield queries and keys, normalised together."""
    x, w = _tensors(n, torch.bfloat16)
    side = Side(x, w, x, None, x, needs_x=True, needs_weight=True)
    yield partial(pair_forward, side, side, _RMS)
    yield partial(pair_jvp, side, side, _RMS)
    yield partial(pair_vjp, side, side, _RMS)
    yield partial(pair_vjp, side._replace(needs_weight=False), side._replace(needs_weight=False), _RMS)
