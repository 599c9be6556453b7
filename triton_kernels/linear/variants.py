"""Kernel variants that the linear layer's launcher chooses, for ahead-of-time compilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from .._variants import Variant, variants_of
from .epilogue import linear_epilogue

_FUNCTIONS = ("identity", "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "softplus", "mish")
_ROWS = 64


def aot_variants() -> list[Variant]:
    """Return each variant once: every activation in bfloat16, some in every dtype and set of operands."""
    return variants_of(_calls())


def _calls() -> Iterator[Callable[[], object]]:
    for function in _FUNCTIONS:
        yield _call(function, 4096, torch.bfloat16, bias=True)
    for dtype in (torch.float16, torch.float32, torch.float64):
        yield _call("gelu", 4096, dtype, bias=True)
        yield _call("identity", 4096, dtype, bias=False)
    for n in (100, 4096):  # rows that start at any address
        yield _call("silu", n, torch.bfloat16, bias=False)
        yield _call("silu", n, torch.bfloat16, bias=True, bias_dot=True, tangents=4)
        yield _call("silu", n, torch.bfloat16, bias=False, tangents=4)


def _call(
    function: str, n: int, dtype: torch.dtype, *, bias: bool, bias_dot: bool = False, tangents: int = 1
) -> Callable[[], object]:
    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    return partial(
        linear_epilogue,
        function,
        empty(1, _ROWS, n),
        empty(tangents, _ROWS, n),
        empty(1, n) if bias else None,
        empty(tangents, n) if bias_dot else None,
        wants_z=function != "identity",
    )
