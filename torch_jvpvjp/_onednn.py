"""Products of float32 matrices on a CPU by oneDNN, and whether that is quicker here than PyTorch's own.

    X, W, b  ↦  X Wᵀ + b,        X, Y, W  ↦  X Wᵀ + Y.

PyTorch's products of float32 call MKL, which does not use AVX-512 on processors that are not Intel's; oneDNN, which
PyTorch carries for convolutions, does. Both are products of float32; oneDNN adds the terms of a sum one after another
and errs by 1.7 times as much as MKL for 512 to 1024 terms, 2.3 times for 2048, unless they go piece by piece. Which one
a machine is quicker with is measured once in a process for each number of threads, when something first has a product
that is large enough; small ones stay, since oneDNN takes some microseconds to look up its kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from time import perf_counter
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from ._allocator import keep_freed_memory

LEAST_FMA = 1 << 22  # oneDNN takes half of the time there; between other work, which its code is cold after, still less
LEAST_FMA_BY_HEAD = 6 << 20  # of each thread: where tiles of attention, which pass over scores between, still gain
_MOST_THREADS = 32
_FEWEST_ROUNDS, _MOST_ROUNDS, _MOST_SECONDS = 11, 41, 0.1


@cache
def onednn_products() -> tuple[Any, Any] | None:
    """Return the ops by which PyTorch's compiler multiplies matrices with oneDNN; None where there is no oneDNN.

    The first is of X, W, an optional bias b, "none", [] and "", and gives X Wᵀ + b; the second, of X, Y, W, b and
    "add", gives X Wᵀ + b + Y.
    """  # noqa: DOC201
    packet = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
    return None if packet is None else (packet.default, packet.binary)


def onednn_is_on() -> bool:
    """Return whether PyTorch may call oneDNN now."""  # noqa: DOC201
    return torch._C._get_mkldnn_enabled()


def products_stay_float32() -> bool:
    """Return whether oneDNN is to multiply float32 as such: `torch.set_float32_matmul_precision` may allow less."""  # noqa: DOC201
    return torch._C._get_fp32_precision_getter("mkldnn", "matmul") in {"none", "ieee"}


@cache
def onednn_is_quicker(threads: int) -> bool:  # noqa: ARG001 (by which it is remembered)
    """Return whether oneDNN multiplies matrices of float32 in well under the time of `torch.mm`, as measured now.

    Args:
        threads: Of PyTorch.
    """  # noqa: DOC201
    products = onednn_products()
    if products is None:
        return False
    side, share = 192, 0.85
    with _disable_current_modes(), torch.no_grad():
        left, right = torch.ones(2, side, side)
        plain, quick = _least_seconds(
            lambda: torch.mm(left, right), lambda: products[0](left, right.t(), None, "none", [], "")
        )
    return quick < share * plain


@cache
def onednn_is_quicker_in_rows(threads: int) -> bool:  # noqa: ARG001 (by which it is remembered)
    """Return whether oneDNN multiplies several matrices with one, their rows one below another, in less time.

    `torch.mm` multiplies one after another. It pays where `onednn_is_quicker` does not, too: W is laid out but once.

    Args:
        threads: Of PyTorch.
    """  # noqa: DOC201
    products = onednn_products()
    if products is None:
        return False
    count, side, share = 5, 256, 0.97  # the passes over entries between take less time as well
    with _disable_current_modes(), torch.no_grad():
        rows, right = torch.ones(count * side, side), torch.ones(side, side)

        def one_by_one() -> None:
            for block in rows.split(side):
                torch.mm(right, block)

        plain, quick = _least_seconds(one_by_one, lambda: products[0](rows, right.t(), None, "none", [], ""))
    return quick < share * plain


@cache
def onednn_is_quicker_by_head(threads: int) -> bool:
    """Return whether oneDNN makes products of float32 one by one in well under the time that `torch.bmm` takes for all.

    They are as large as they must at least be for so many threads, `LEAST_FMA_BY_HEAD` for each.

    Args:
        threads: Of PyTorch.
    """  # noqa: DOC201
    products = onednn_products()
    if products is None:
        return False
    heads, rows, width, share = 2, 512, 64, 0.7  # what tiles do besides costs more than in a fused kernel
    keys = LEAST_FMA_BY_HEAD // (rows * width) * min(threads, _MOST_THREADS)
    with _disable_current_modes(), torch.no_grad():
        keep_freed_memory()  # oneDNN returns new tensors
        left, right, into = (torch.ones(heads, *shape) for shape in ((rows, width), (keys, width), (rows, keys)))

        def by_head() -> None:
            for x, w in zip(left, right, strict=True):
                products[0](x, w, None, "none", [], "")

        plain, quick = _least_seconds(lambda: torch.bmm(left, right.mT, out=into), by_head)
    return quick < share * plain


def _least_seconds(*functions: Callable[[], Any]) -> list[float]:
    """Return the least time of each of some functions, called in turn: others may run meanwhile."""
    found = [list(map(_seconds, functions)) for _ in range(2)]  # the first make what later ones have
    end = perf_counter() + _MOST_SECONDS
    while len(found) < _FEWEST_ROUNDS or (len(found) < _MOST_ROUNDS and perf_counter() < end):
        found.append(list(map(_seconds, functions)))
    return [min(times) for times in zip(*found, strict=True)]


def _seconds(function: Callable[[], Any]) -> float:
    start = perf_counter()
    function()
    return perf_counter() - start
