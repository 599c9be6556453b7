"""The reference of linear cross-entropy and its rules up to the second order, all of them one chunk of rows at a time.

The linear layer is bilinear and cross-entropy's rows have rules and kernels of their own, so that each rule here is the
chain rule for one chunk: logits, what the rows do to them, and back through the factors.
"""

from typing import Any

import torch
from torch import Tensor

from ...registration import differentiable_op
from .._arithmetic import empty_like
from .chunks import (
    Factors,
    Gathered,
    logits,
    logits_along,
    row_arguments,
    row_bend,
    row_losses,
    row_pull,
    row_push,
    spans,
)


@differentiable_op("torch_jvpvjp::rows_linear_cross_entropy", residuals=("rest",))
def op(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
    softcap: float | None,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The reference: ℓ and L of every row of X Wᵀ + b.

    Args:
        input: X, (N, D).
        weight: W, (V, D).
        bias: b, (V), or None.
        target: Classes, (N), int64.
        ignore_index: The class whose rows count for nothing.
        label_smoothing: ε.
        softcap: κ, or None.
        chunk_size: Rows of a chunk, or None.

    Returns:
        ℓ, L, and for kernels what L as rounded lacks, (N) each, all 0 for an ignored row.
    """
    inputs = op.signature.inputs_type(input, weight, bias, target, ignore_index, label_smoothing, softcap, chunk_size)
    at = Factors(input, weight, bias)
    parts = [row_losses(row_arguments(inputs, logits(at.rows(*span)), *span)) for span in spans(inputs)]
    losses, lse, rest = (torch.cat(results).squeeze(-1) for results in zip(*parts, strict=True))
    return losses, lse, rest


op.autocast("lower")


@op.jvp
def _jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]:
    """ℓ, L and what it lacks, ℓ̇, L̇ from Z and Ż."""
    at, along = _point(primals), Factors(tangents.input, tangents.weight, tangents.bias)
    parts = []
    for span in spans(primals):
        chunk = at.rows(*span)
        args = row_arguments(primals, logits(chunk), *span)
        parts.append(row_push(args, logits_along(chunk, along.rows(*span))))
    *numbers, losses_dot, lse_dot = (torch.cat(results).squeeze(-1) for results in zip(*parts, strict=True))
    return tuple(numbers), (losses_dot, lse_dot)


@op.vjp
def _vjp(cotangents: Any, inputs: Any, outputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """X̄ = Z̄ W, W̄ = Z̄ᵀ X, b̄ = Σ Z̄; a kernel may read L off the outputs, with its rest."""
    at = _point(inputs)
    gathered = Gathered(at, needs)
    for span in spans(inputs):
        chunk = at.rows(*span)
        args = row_arguments(inputs, logits(chunk), *span)
        gathered.add((row_pull(args, *_numbers(span, cotangents.y0, cotangents.y1)), chunk))
    return (*gathered.results(), None)


def _second(inputs: Any, along: Factors, numbers: tuple[Any, ...], first: Gathered, second: Gathered) -> None:
    """Gather the cotangents of a direction and of the point, with a, d, c, e as `numbers`.

    With Z̄ and Ż̄ the cotangents of Z and Ż:  directions get Ż̄ W, Ż̄ᵀ X;  the point gets Z̄ W + Ż̄ Ẇ and Z̄ᵀ X + Ż̄ᵀ Ẋ.
    """
    at = _point(inputs)
    for span in spans(inputs):
        chunk, moved = at.rows(*span), along.rows(*span)
        args = row_arguments(inputs, logits(chunk), *span)
        a, d, c, e = _numbers(span, *numbers)
        z_bar, z_dot_bar = row_bend(args, logits_along(chunk, moved), a, d, c, e)
        first.add((z_dot_bar, chunk))
        second.add((z_bar, chunk), (z_dot_bar, moved))


@op.jvp.vjp
def _jvp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Reverse over forward: a, d, c, e are the cotangents of ℓ̇, L̇, ℓ, L."""
    along = Factors(inputs.input_dot, inputs.weight_dot, inputs.bias_dot)
    first, second = Gathered(along, _at_three(needs[4:])), Gathered(_point(inputs), _at_three(needs))
    numbers = (cotangents.y0_dot, cotangents.y1_dot, cotangents.y0, cotangents.y1)
    _second(inputs, along, numbers, first, second)
    return (*second.results(), None, *first.results(), None)


@op.vjp.jvp
def _vjp_jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """Forward over reverse: a, d are the cotangents of ℓ, L, and c, e their tangents."""
    along, needs = Factors(tangents.input, tangents.weight, tangents.bias), tuple(primals.needs)
    first, second = Gathered(_point(primals), needs), Gathered(_point(primals), needs)
    numbers = (primals.y0_bar, primals.y1_bar, tangents.y0_bar, tangents.y1_bar)
    _second(primals, along, numbers, first, second)
    return (*first.results(), None), (*second.results(), None)


@op.vjp.vjp
def _vjp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Reverse over reverse: cotangents get ℓ̇, L̇ along those of X̄, W̄, b̄, and the point what bends along them."""
    along = Factors(cotangents.input_bar, cotangents.weight_bar, cotangents.bias_bar)
    at, second = _point(inputs), Gathered(_point(inputs), _at_three(needs[2:]))
    parts = []
    for span in spans(inputs):
        chunk, moved = at.rows(*span), along.rows(*span)
        args = row_arguments(inputs, logits(chunk), *span)
        z_dot = logits_along(chunk, moved)
        parts.append(row_push(args, z_dot)[3:])
        bars = _numbers(span, inputs.y0_bar, inputs.y1_bar)
        z_bar, z_dot_bar = row_bend(args, z_dot, bars[0], bars[1], None, None)
        second.add((z_bar, chunk), (z_dot_bar, moved))
    pushed = (torch.cat(results).squeeze(-1) for results in zip(*parts, strict=True))
    c_bar, e_bar = (
        None if t is None else p.to(t.dtype) for p, t in zip(pushed, (inputs.y0_bar, inputs.y1_bar), strict=True)
    )
    return (c_bar, e_bar, *second.results(), None, None, None)


# ---- shapes: what tracing sees instead of the loops ------------------------------------------------------------------


@op.fake
def _fake(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
    softcap: float | None,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return _row(input), _row(input), _row(input)


@op.jvp.fake
def _jvp_fake(primals: Any, tangents: Any) -> Any:
    x = primals.input
    return (_row(x), _row(x), _row(x)), (_row(x), _row(x))


@op.vjp.fake
def _vjp_fake(cotangents: Any, inputs: Any, outputs: Any) -> Any:
    return empty_like(inputs.input, inputs.weight, inputs.bias, None)


@op.jvp.vjp.fake
def _jvp_vjp_fake(cotangents: Any, inputs: Any) -> Any:
    tangents = (inputs.input_dot, inputs.weight_dot, inputs.bias_dot, None)
    return (*empty_like(inputs.input, inputs.weight, inputs.bias, None), *empty_like(*tangents))


@op.vjp.jvp.fake
def _vjp_jvp_fake(primals: Any, tangents: Any) -> Any:
    likes = (primals.input, primals.weight, primals.bias, None)
    return empty_like(*likes), empty_like(*likes)


@op.vjp.vjp.fake
def _vjp_vjp_fake(cotangents: Any, inputs: Any) -> Any:
    outputs = (inputs.y0, inputs.y1)
    return empty_like(inputs.y0_bar, inputs.y1_bar, inputs.input, inputs.weight, inputs.bias, None, *outputs)


# ---- small pieces ----------------------------------------------------------------------------------------------------


def _row(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:1], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def _point(inputs: Any) -> Factors:
    return Factors(inputs.input, inputs.weight, inputs.bias)


def _at_three(needs: tuple[bool, ...]) -> tuple[bool, ...]:
    return tuple(needs[:3])


def _numbers(span: tuple[int, int], *numbers: Tensor | None) -> tuple[Tensor | None, ...]:
    """A chunk of each number, as cross-entropy's rows take them."""
    return tuple(None if t is None else t[span[0] : span[1]].unsqueeze(-1) for t in numbers)
