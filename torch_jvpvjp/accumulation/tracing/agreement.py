"""Whether a recording has the derivative that PyTorch gives the function itself, asked once for each recording.

A recording is read from what PyTorch's own autograd says, so it should; but a function can do unforeseen things, and a
Jacobian must not be wrong because of them. One pullback of one cotangent costs little and depends on every op.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._torch import vjp
from .._torch_contexts import plain_kernels
from ..bracket import Mode
from ..carrying import close, weights
from ..primal import PrimalRun
from ..structure import Block, Dense
from ..tensors import Tensors, check_batching, check_duality
from .parts import Part
from .traced import Traced


def agrees(
    traced: Traced, functions: Sequence[Callable[[Tensor], Any]], x: Tensor, constants: Mapping[int, Tensor]
) -> bool:
    """Whether value and one pullback of a recording are those of the functions at x.

    The tolerance is that of another order of the same operations. A recording that draws random numbers, or one of no
    entries, is not asked.

    Args:
        traced: The recording.
        functions: What was recorded.
        x: The point.
        constants: The tensors from outside that the tape refers to.

    Returns:
        Whether they agree.

    Raises:
        ValueError: If the functions do not run at x, though they do on a tensor without data.
    """
    if not x.numel() or not traced.output.numel:
        return True
    if traced.opaque:  # of what is recorded between black boxes only single ops are asked about
        if _open_parts(traced):
            modes = [Mode.ADJOINT] * len(traced.regions)
            primal = PrimalRun(traced.tape, traced.regions, modes, x, constants)
            primal.finish()
            _check_parts(traced, Tensors(primal, x))
        return True
    if any(op.draws for op in traced.tape.ops):
        return True

    def composition(value: Tensor) -> Any:
        for function in functions:
            value = function(value)
        return value

    with plain_kernels(), torch.no_grad():  # of what is outside; the pullback is recorded all the same
        try:
            return _compared(traced, composition, x, constants)
        except RuntimeError:
            try:
                composition(x.clone())
            except RuntimeError as error:
                raise ValueError(
                    f"jacobian: f must take a tensor of shape {tuple(x.shape)} and dtype {x.dtype}, got an error: "
                    f"{error}."
                ) from error
            return False  # it runs, and its recording does not


def _compared(traced: Traced, composition: Callable[[Tensor], Any], x: Tensor, constants: Mapping[int, Tensor]) -> bool:
    primal = PrimalRun(traced.tape, traced.regions, [Mode.ADJOINT] * len(traced.regions), x, constants)
    try:
        y, pullback = vjp(composition, x.clone())
        y_bar = weights(y.numel(), y).reshape(y.shape)
        with torch.enable_grad():  # without, that of `det` is wrong at singular matrices
            (expected,) = pullback(y_bar)
    except RuntimeError:  # autograd refuses it, as where a stage writes into what the one before must keep
        return close(primal.finish(), composition(x.clone()))
    value = primal.finish()
    eps = max(torch.finfo(meta.dtype).eps for meta in traced.tape.metas if meta.dtype.is_floating_point)
    if traced.tape.restores:
        return close(value, y, eps=eps)  # autograd leaves a part of the derivative out
    if not traced.regions:
        return close(value, y, eps=eps) and not expected.any()
    tensors = Tensors(primal, x)
    block = Block(Dense(1, y.numel()), y_bar.reshape(1, -1))
    _check_parts(traced, tensors)
    for region in reversed(traced.regions):
        if any(part.vjp_cost is None for part in region.parts if part.arcs is None):
            return close(value, y, eps=eps)  # PyTorch has no pullback of it to compare with
        block = region.backward(tensors, block)
    return close(value, y, eps=eps) and close(tensors.matrix(block).reshape(x.shape), expected, eps=eps)


def _open_parts(traced: Traced) -> list[Part]:
    """Return the recorded ops without a closed form."""
    parts = (part for region in traced.regions for part in region.parts)
    return [part for part in parts if part.arcs is None and not part.op.opaque]


def _check_parts(traced: Traced, tensors: Tensors) -> None:
    for part in _open_parts(traced):
        check_batching(part, tensors)
        check_duality(part, tensors)
