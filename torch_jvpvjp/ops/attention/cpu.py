"""Kernels for CPU tensors: PyTorch's fused attention where it is right, else tiles of rows; never an N×N matrix.

On one thread tiles are quicker than the fused kernels where oneDNN multiplies quicker than what these call, see
`products`. On two that is so of the pullback where rows see all keys: the fused kernel forms five products of small
tiles. On more, which was not measured, and else the fused kernels share heads among threads, and tiles, which go head
by head, gain nothing.
"""

from typing import Any

import torch
from torch import Tensor

from ..._onednn import LEAST_FMA_BY_HEAD
from .._devices import triton_devices
from . import fused
from .arguments import UNBOUNDED
from .in_place import fits, in_place
from .inputs import operands_of, scores_of
from .products import products_of
from .rules import op


def primal(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """o and ℓ: fused, or tile by tile. Nothing here reads what ℓ lacks."""
    inputs = op.signature.inputs_type(*args)
    if in_tiles(inputs, 1):
        return in_place.primal(inputs)
    plain = fused.is_plain(inputs)
    if not plain and not fused.fits(inputs):
        return in_place.primal(inputs)
    o, lse = fused.plain(inputs) if plain else fused.forward(inputs)
    return o, lse, torch.zeros_like(lse)


def vjp(cotangents: Any, inputs: Any, outputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """The cotangents of the arguments, fused or tile by tile, with o and ℓ read off the outputs."""
    w, lse_bar = cotangents
    if in_tiles(inputs, 2 if inputs.right == UNBOUNDED else 1):
        return in_place.vjp(cotangents, inputs, outputs, needs=needs)
    # In 16 bits PyTorch's backward errs two to three times as much as tiles and MATH do, and of float16 takes ten times
    # as long. Nor may ℓ have been lowered by autocast.
    wide = {inputs.query.dtype, outputs[1].dtype} <= {torch.float32, torch.float64}
    if wide and w is not None and lse_bar is None and any(needs) and not needs[3]:
        plain = w.dim() == outputs[0].dim() == 4 and fused.is_plain(inputs)
        if (plain or fused.fits(inputs)) and fused.keeps_digits(outputs[1]):
            if plain:
                return *fused.plain_backward(w, inputs, outputs), None
            found = fused.backward(w, inputs, outputs)
            return *(t.to(like.dtype) for t, like in zip(found, inputs, strict=False)), None
    return in_place.vjp(cotangents, inputs, outputs, needs=needs)


def in_tiles(inputs: Any, most_threads: int) -> bool:
    """Whether tiles are quicker than PyTorch's kernels; for small arguments this costs little.

    Args:
        inputs: The arguments of the op.
        most_threads: On how many tiles are quicker at most.

    Returns:
        Whether they are.
    """
    q, k = inputs.query, inputs.key
    if q.dtype != torch.float32 or q.shape[-3:].numel() * k.shape[-2] < LEAST_FMA_BY_HEAD:
        return False
    if torch.get_num_threads() > most_threads:
        return False
    at, scores = operands_of(inputs), scores_of(inputs)
    return fits(scores, at) and products_of(at, scores).by_head


# ---- registration ----------------------------------------------------------------------------------------------------

# In the interpreter CPU tensors take the Triton kernels.
if "cpu" not in triton_devices():
    op.kernel("cpu")(primal)
    op.jvp.kernel("cpu")(in_place.jvp)
    op.vjp.kernel("cpu")(vjp)
    op.jvp.vjp.kernel("cpu")(in_place.jvp_vjp)
    op.vjp.jvp.kernel("cpu")(in_place.vjp_jvp)
    op.vjp.vjp.kernel("cpu")(in_place.vjp_vjp)
