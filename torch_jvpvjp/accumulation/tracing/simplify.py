"""Small rewritings of a tape that leave its values as they are."""

from __future__ import annotations

import torch

from .tape import Ref, Tape, TapeOp

_aten = torch.ops.aten


def simplified(tape: Tape) -> Tape:
    """Return the tape with X Wᵀ + b, which comes as a transposition and a product, written as one linear layer.

    The Jacobian in a transposed weight is a permuted Kronecker product; that of a linear layer in its weight is
    regular.
    """
    maker = {output: op for op in tape.ops for output in op.outputs if output is not None}
    ops = [_linear(op, maker) or op for op in tape.ops]
    needed = {tape.result}
    kept: list[TapeOp] = []
    for op in reversed(ops):
        if not needed.isdisjoint(op.outputs):
            needed.update(op.operands)
            kept.append(op)
    tape.ops = kept[::-1]
    return tape


def _linear(op: TapeOp, maker: dict[int, TapeOp]) -> TapeOp | None:
    """Return the linear layer that an op is, if it is one."""
    if op.kwargs:
        return None
    if op.target is _aten.addmm.default and len(op.args) == 3:
        bias, x, transposed = op.args
    elif op.target is _aten.mm.default:
        bias, (x, transposed) = None, op.args
    else:
        return None
    turned = maker.get(transposed.index)
    if turned is None or turned.target is not _aten.t.default:
        return None
    weight: Ref = turned.args[0]
    active = [index if index != transposed.index else weight.index for index in op.active]
    return TapeOp(_aten.linear.default, (x, weight, bias), {}, op.outputs, tuple(dict.fromkeys(active)))
