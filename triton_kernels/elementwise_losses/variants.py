"""Every kind of kernel variant that the launchers of elementwise losses choose, for ahead-of-time compilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from .._variants import Variant, variants_of
from .loss import elementwise_loss, elementwise_loss_vjp

_LOSSES = ("mse", "huber", "kl", "kl_log", "js", "js_log")


def aot_variants() -> list[Variant]:
    """Return the primal, the JVP and the VJP of each loss in bfloat16, and of two in wider dtypes."""
    return variants_of(_calls())


def _calls() -> Iterator[Callable[[], object]]:
    for loss in _LOSSES:
        yield from _points(loss, torch.bfloat16)
    for dtype in (torch.float32, torch.float64):
        yield from _points("mse", dtype)
        yield from _points("js", dtype)
    x = torch.empty(1, 1, 1001, device="meta")
    yield partial(elementwise_loss, "mse", x, x, None, x, wants_y_dot=True)
    yield partial(elementwise_loss, "mse", x, x, x, wants_y_dot=True, reduce=False)
    yield partial(elementwise_loss_vjp, "mse", x, x, x, needs_t=False, reduce=False)


def _points(loss: str, dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    x = torch.empty(1, 1, 1 << 20, dtype=dtype, device="meta")
    yield partial(elementwise_loss, loss, x, x)
    yield partial(elementwise_loss, loss, x, x, x, x, wants_y_dot=True)
    yield partial(elementwise_loss_vjp, loss, x[..., :1], x, x)
