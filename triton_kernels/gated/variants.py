"""Every kind of kernel variant that the gated launcher chooses, for ahead-of-time compilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from .._variants import Variant, variants_of
from .product import gated_product

_BOTH = (True, True)


def aot_variants() -> list[Variant]:
    """Return the tower of every function in bfloat16, and that of the main one in every dtype, packed and not."""
    return variants_of(_calls())


def _calls() -> Iterator[Callable[[], object]]:
    for function in ("silu", "gelu", "gelu_tanh", "sigmoid"):
        yield from _tower(function, *_operands(torch.bfloat16, 4096))
    for dtype in (torch.float32, torch.float64):
        yield from _tower("gelu", *_operands(dtype, 4096))
    packed = torch.empty(1, 64, 8192, dtype=torch.bfloat16, device="meta")
    yield from _tower("silu", packed[..., :4096], packed[..., 4096:], packed="gate first")
    yield from _tower("silu", *_operands(torch.float16, 4096))
    narrow = torch.empty(1, 64, 40, dtype=torch.bfloat16, device="meta")
    yield from _tower("sigmoid", narrow[..., 20:], narrow[..., :20], packed="gate last")
    g, u = _operands(torch.bfloat16, 4096)
    yield partial(gated_product, "silu", g, u, g, a=g, b=g, wants_first=_BOTH, wants_second=_BOTH)
    yield partial(gated_product, "silu", g, u, None, u, wants_y=True, wants_y_dot=True)
    yield partial(gated_product, "silu", g, u, a=g, wants_first=(True, False))
    many = g.expand(4, -1, -1).contiguous()
    yield partial(gated_product, "silu", g, u, many, many, wants_y=True, wants_y_dot=True)
    yield partial(gated_product, "silu", g, u, a=many, wants_first=_BOTH)


def _operands(dtype: torch.dtype, n: int) -> tuple[Tensor, Tensor]:
    return torch.empty(1, 64, n, dtype=dtype, device="meta"), torch.empty(1, 64, n, dtype=dtype, device="meta")


def _tower(function: str, g: Tensor, u: Tensor, packed: str | None = None) -> Iterator[Callable[[], object]]:
    """Yield the primal, the JVP, the VJP, the VJP of the JVP (as the JVP of the VJP) and the VJP of the VJP."""
    a = torch.empty(g.shape, dtype=g.dtype, device="meta")
    product = partial(gated_product, function, g, u, packed=packed)
    yield partial(product, wants_y=True)
    yield partial(product, g, u, wants_y=True, wants_y_dot=True)
    yield partial(product, a=a, wants_first=_BOTH)
    yield partial(product, g, u, a, a, wants_first=_BOTH, wants_second=_BOTH)
    yield partial(product, g, u, a, wants_y_dot=True, wants_second=_BOTH)
