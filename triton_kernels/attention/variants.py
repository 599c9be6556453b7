"""The kernel variants of attention that are compiled ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from .._variants import Variant, variants_of
from .arguments import Blocks, Operands, Scores
from .config import assume
from .pullback import attention_second_order, attention_vjp
from .value import attention_forward

_ALIKE = {"sm_80": ("sm_80", "gfx942")}  # targets that take the same tiles
_LENGTH = 256
_FAR = (1 << 19, 1 << 13)  # so many vectors, so far apart, are numbered by 64 bits
_YES = Operands(True, True, True, False)  # noqa: FBT003
_ALL = Operands(True, True, True, True)  # noqa: FBT003


def _heads(size: int, dtype: torch.dtype, n: int = 1, heads: int = 4) -> torch.Tensor:
    return torch.empty((n, 2, heads, _LENGTH, size), dtype=dtype, device="meta")


def _number(dtype: torch.dtype) -> torch.Tensor:
    return torch.empty((1, 2, 4, _LENGTH), dtype=dtype, device="meta")


def _forward(
    size: int,
    dtype: torch.dtype,
    tangents: int = 0,
    missing: tuple[str, ...] = (),
    bias: torch.Tensor | None = None,
    **options: Any,
) -> Callable[[], object]:
    at = Operands(_heads(size, dtype), _heads(size, dtype, heads=2), _heads(size, dtype, heads=2), bias)
    dots = None
    if tangents:
        n = tangents
        dots = Operands(_heads(size, dtype, n), _heads(size, dtype, n, 2), _heads(size, dtype, n, 2), bias)
        dots = dots._replace(**dict.fromkeys(missing))
    return lambda: attention_forward(at, dots, Scores(0.125, **options))


def _pull(
    size: int, dtype: torch.dtype, *, second: bool, bias: torch.Tensor | None = None, **options: Any
) -> Callable[[], object]:
    at = Operands(_heads(size, dtype), _heads(size, dtype, heads=2), _heads(size, dtype, heads=2), bias)
    o, lse, needs = _heads(size, dtype), _number(torch.float32), _YES if bias is None else _ALL
    scores = Scores(0.125, **options)
    if second:
        return lambda: attention_second_order(at, at, o, lse, o, lse, o, None, o, None, scores, needs, needs)
    return lambda: attention_vjp(at, o, lse, o, None, scores, needs)


def _main() -> Iterator[Callable[[], object]]:
    """What nearly every call is."""
    for size in (64, 128):
        for tangents in (0, 1):
            yield _forward(size, torch.bfloat16, tangents)
        for second in (False, True):
            yield _pull(size, torch.bfloat16, second=second)


def _others() -> Iterator[Callable[[], object]]:
    """Every option once, other dtypes and head sizes."""

    def meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    blocks = Blocks(
        meta(1, 1, 2, dtype=torch.int32),
        meta(1, 1, 2, 2, dtype=torch.int32),
        meta(1, 1, 2, dtype=torch.int32),
        meta(1, 1, 2, 2, dtype=torch.int32),
        128,
        128,
    )
    mask = meta(1, 2, 1, _LENGTH, _LENGTH, dtype=torch.bool)
    bias, wide_bias = (meta(1, 1, 4, _LENGTH, _LENGTH, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    everything = {
        "softcap": 20.0,
        "slopes": meta(1, 4, dtype=torch.float32),
        "ranges": meta(1, 3, _LENGTH, dtype=torch.int32),
        "seed": meta(1, dtype=torch.int64),
        "dropout_p": 0.1,
    }
    yield _forward(64, torch.bfloat16, 2)
    yield _forward(64, torch.float16, 1, missing=("q",))
    yield _forward(80, torch.float32, 1, missing=("k", "v"))
    yield _forward(256, torch.bfloat16, 1)
    yield _forward(64, torch.bfloat16, 1, mask=mask, blocks=blocks)
    yield _forward(64, torch.bfloat16, 1, bias=bias, **everything)
    yield _pull(80, torch.float32, second=True)
    yield _pull(256, torch.bfloat16, second=True)
    yield _pull(64, torch.bfloat16, second=False, mask=mask, blocks=blocks)
    yield _pull(64, torch.bfloat16, second=True, bias=bias, **everything)
    for size, tangents in ((128, 1), (256, 0)):
        yield _forward(size, torch.bfloat16, tangents, bias=wide_bias)
    for second in (False, True):
        yield _pull(128, torch.bfloat16, second=second, bias=wide_bias)


def _wide(size: int, bias: torch.Tensor | None = None, **options: Any) -> Iterator[Callable[[], object]]:
    """Value with tangent and the second order, where elements of a head stand 2³¹ and more behind its first."""
    length, apart = _FAR

    def heads(count: int) -> torch.Tensor:
        strides = (0, 0, size, apart, 1)
        return torch.empty_strided((1, 2, count, length, size), strides, dtype=torch.bfloat16, device="meta")

    at, scores, needs = Operands(heads(4), heads(2), heads(2), bias), Scores(0.125, **options), _YES
    if bias is not None:
        needs = _ALL
    o, lse = torch.empty_like(at.q, memory_format=torch.contiguous_format), torch.empty(at.q.shape[:-1], device="meta")
    yield lambda: attention_forward(at, at, scores)
    yield lambda: attention_second_order(at, at, o, lse, o, lse, o, None, o, None, scores, needs, needs)


def _wide_scores() -> Iterator[Callable[[], object]]:
    """The same with a bias and a mask, whose rows lie as far apart."""
    matrix, length = torch.empty((), device="meta"), _FAR[0]
    bias = matrix.new_empty((1, 1, 4, length, length), dtype=torch.bfloat16)
    yield from _wide(64, bias, mask=matrix.new_empty((1, 2, 1, length, length), dtype=torch.bool))


def aot_variants() -> list[Variant]:
    """The variants that cover every dtype, head size and option; the usual ones also in the smaller tiles, and large.

    Returns:
        The variants, each for the targets whose configuration it is.
    """
    large, small = [*_main(), *_others(), *_wide(128), *_wide_scores()], [*_main(), *_wide(64)]
    targets: dict[Variant, tuple[str, ...]] = {}
    for target, calls in (("sm_90", large), ("sm_100", large), ("sm_80", small)):
        with assume(target):
            for variant in variants_of(calls):
                targets[variant] = (*targets.get(variant, ()), *_ALIKE.get(target, (target,)))
    return [replace(variant, targets=names) for variant, names in targets.items()]
