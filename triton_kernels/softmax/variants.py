"""Kernel variants that the softmax launchers choose, for ahead-of-time compilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from .._variants import Variant, variants_of
from ._tiles import NO_MASK, MaskLayout, lay_out_mask
from .apply import softmax_apply
from .pullback import softmax_pullback_vjp
from .second_order import softmax_second_order

_ROWS = 64
_DENSE = ("softmax", "log_softmax")


def aot_variants() -> list[Variant]:
    """Return each variant once: every point in bfloat16, short, long and strided rows, masked ones wider."""
    return variants_of(_calls())


def _calls() -> Iterator[Callable[[], object]]:
    for kind in _DENSE:
        yield from _dense_calls(kind, 4096, 1, torch.bfloat16, masked=False)
    yield from _dense_calls("softmax", 65536, 1, torch.bfloat16, masked=False)
    yield from _dense_calls("log_softmax", 65536, 1, torch.float32, masked=True)
    yield from _dense_calls("softmax", 64, 48, torch.float64, masked=True)
    yield from _lse_calls(4096, 1, torch.bfloat16, masked=False)
    yield from _lse_calls(65536, 1, torch.float32, masked=True)


def _tensors(n: int, inner: int, dtype: torch.dtype, masked: bool) -> tuple[Tensor, MaskLayout]:
    x = torch.empty(1, _ROWS, n, inner, dtype=dtype, device="meta")
    mask = torch.empty(1, 1, n, 1, dtype=torch.bool, device="meta").expand(1, _ROWS, n, inner)
    return x, lay_out_mask(mask, 2) if masked else NO_MASK


def _dense_calls(kind: str, n: int, inner: int, dtype: torch.dtype, *, masked: bool) -> Iterator[Callable[[], object]]:
    x, mask = _tensors(n, inner, dtype, masked)
    many = x.expand(4, -1, -1, -1)
    apply = partial(softmax_apply, kind=kind, scale=0.5)
    yield partial(apply, x, None, mask)
    yield partial(apply, x, x, mask)
    yield partial(apply, x, many, mask)
    pulled = NO_MASK if kind == "softmax" else mask  # the zeros in softmax's output are mask enough
    yield partial(apply, x, x, pulled, from_output=True, transposed=True)
    second = partial(softmax_second_order, kind=kind, scale=0.5)
    yield partial(second, x, x, x, x, mask)
    yield partial(second, x, x, x, x, pulled, from_output=True)
    yield partial(softmax_pullback_vjp, x, x, x, pulled, kind=kind, scale=0.5)


def _lse_calls(n: int, inner: int, dtype: torch.dtype, *, masked: bool) -> Iterator[Callable[[], object]]:
    x, mask = _tensors(n, inner, dtype, masked)
    number = torch.empty(1, _ROWS, inner, dtype=dtype, device="meta")
    apply = partial(softmax_apply, kind="logsumexp", scale=0.5)
    yield partial(apply, x, None, mask)
    yield partial(apply, x, x, mask)
    yield partial(apply, x, number, mask, transposed=True)
    yield partial(softmax_second_order, x, x, number, number, mask, kind="logsumexp", scale=0.5)
    yield partial(
        softmax_second_order,
        x,
        x,
        number,
        None,
        mask,
        kind="logsumexp",
        scale=0.5,
        wants_first=False,
        wants_pushed=True,
    )
