"""Kernel variants that the group norm launchers choose, for ahead-of-time compilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from .._variants import Variant, variants_of
from .forward import group_norm_forward
from .jvp import group_norm_jvp
from .second_order import Second, group_norm_second_order
from .vjp import group_norm_vjp

# Channels of a sample, sites and groups: a group that does not fit a tile, one that does, an odd one.
_SIZES = ((320, 4096, 32), (1280, 64, 32), (64, 49, 8))

_ALL = Second(*map(bool, Second._fields))
_SIX, _FOUR = _ALL._replace(y_dot=False), _ALL._replace(x_first=False, w_first=False, bias_first=False)


def aot_variants() -> list[Variant]:
    """Return each variant once: sizes and layouts in bfloat16, one of each kind in the other dtypes."""
    return variants_of(_calls())


def _calls() -> Iterator[Callable[[], object]]:
    for sizes in _SIZES[:2]:
        for channels_last in (False, True):
            yield from _main_calls(*sizes, channels_last, torch.bfloat16, "silu")
    yield from _main_calls(*_SIZES[2], False, torch.float16, "identity")
    yield from _main_calls(*_SIZES[0], False, torch.float32, "silu")
    yield from _main_calls(*_SIZES[1], True, torch.float64, "silu")
    yield from _flag_calls()


def _main_calls(
    channels: int, sites: int, groups: int, channels_last: bool, dtype: torch.dtype, activation: str
) -> Iterator[Callable[[], object]]:
    """Yield what a layer with weight and bias asks for when its first derivatives are taken."""
    shape = (1, 2, sites, channels) if channels_last else (1, 2, channels, sites)
    x, w = torch.empty(shape, dtype=dtype, device="meta"), torch.empty(1, channels, dtype=dtype, device="meta")
    m = torch.empty(1, 2, groups, dtype=torch.float64 if dtype == torch.float64 else torch.float32, device="meta")
    options = (groups, channels_last, 1e-5, activation)
    yield partial(group_norm_forward, x, w, w, *options)
    yield partial(group_norm_jvp, x, w, w, x, w, w, *options)
    yield partial(group_norm_jvp, x, w, w, x.expand(4, -1, -1, -1), None, None, *options)
    yield partial(group_norm_vjp, x, x, w, w, m, m, groups, channels_last, activation, (True, True, True))
    rest = (m, m, groups, channels_last, activation)
    yield partial(group_norm_second_order, x, w, w, x, w, w, x, x, *rest, _SIX)
    yield partial(group_norm_second_order, x, w, w, x, w, w, x, None, *rest, _FOUR)


def _flag_calls() -> Iterator[Callable[[], object]]:
    """Yield operands absent and results not wanted."""
    x, w = torch.empty(1, 2, 64, 256, device="meta"), torch.empty(1, 64, device="meta")
    m = torch.empty(1, 2, 8, device="meta")
    yield partial(group_norm_forward, x, None, None, 8, False, 1e-5, "identity")
    yield partial(group_norm_jvp, x, None, None, x, None, None, 8, False, 1e-5, "identity")
    yield partial(group_norm_jvp, x, w, None, None, w, None, 8, False, 1e-5, "silu")
    yield partial(group_norm_jvp, x, None, w, None, None, w.expand(4, -1), 8, False, 1e-5, "silu")
    for needs in ((True, False, False), (False, True, True), (False, False, True)):
        yield partial(group_norm_vjp, x, x, w, w, m, m, 8, False, "silu", needs)
    plain = (None, None, x, None, None, x)
    yield partial(group_norm_second_order, x, *plain, None, m, m, 8, False, "identity", Second(x_second=True))
    yield partial(group_norm_second_order, x, w, w, None, w, None, x, None, m, m, 8, False, "silu", _ALL)
