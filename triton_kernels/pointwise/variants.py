"""Every kind of kernel variant that the pointwise launcher chooses, for ahead-of-time compilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from .._variants import Variant, variants_of
from .jet import pointwise_jet

_FUNCTIONS = (
    "gelu",
    "gelu_tanh",
    "silu",
    "sigmoid",
    "tanh",
    "sin",
    "softplus",
    "mish",
    "relu",
    "tanh_slope",
    "sigmoid_slope",
    "relu_slope",
)


def aot_variants() -> list[Variant]:
    """Return the second order of every function in bfloat16, and all points of the tower of GELU in every dtype."""
    return variants_of(_calls())


def _calls() -> Iterator[Callable[[], object]]:
    for name in _FUNCTIONS:
        yield from _second_order((name, 1.0, 20.0), torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        yield from _first_order(("gelu", 1.0, 20.0), dtype)
        yield from _second_order(("gelu", 1.0, 20.0), dtype)
    yield from _second_order(("mish", 1.0, 20.0), torch.float64)
    yield from _first_order(("silu", 1.0, 20.0), torch.float16)
    x = torch.empty(1, 1001, 1, device="meta")  # a size that is no multiple of 16
    yield partial(pointwise_jet, ("silu", 1.0, 20.0), x, x, wants_y=True, wants_p=True)


def _first_order(function: tuple[str, float, float], dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    """Yield the primal, the JVP and the VJP, with one direction and with many."""
    x = torch.empty(1, 1 << 16, 1, dtype=dtype, device="meta")
    many = torch.empty(4, 1 << 16, 1, dtype=dtype, device="meta")
    one_value = torch.empty((), dtype=dtype, device="meta").expand(x.shape)  # the cotangent of a sum
    yield partial(pointwise_jet, function, x, wants_y=True)
    for p in (x, many):
        yield partial(pointwise_jet, function, x, p, wants_y=True, wants_p=True)
        yield partial(pointwise_jet, function, x, p, wants_p=True)
    yield partial(pointwise_jet, function, x, one_value, wants_p=True)


def _second_order(function: tuple[str, float, float], dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    """Yield the VJP of the JVP (the JVP of the VJP is the same), the VJP of the VJP and the JVP of the JVP."""
    x = torch.empty(1, 1 << 16, 1, dtype=dtype, device="meta")
    yield partial(pointwise_jet, function, x, x, x, x, wants_q=True, wants_bend=True)
    if function[0] == "gelu":
        yield partial(pointwise_jet, function, x, x, x, wants_bend=True, wants_p=True)
        yield partial(pointwise_jet, function, x, x, x, x, wants_y=True, wants_p=True, wants_q=True, wants_bend=True)
