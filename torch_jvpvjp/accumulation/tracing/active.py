"""Which values of a tape lie between x and y, so that the Jacobian is carried through them."""

from __future__ import annotations

from .tape import Tape, TapeOp


def between(tape: Tape, moves: bool) -> set[int]:
    """Return the values that lie between x and y: active, and used on the way to y, where y `moves` with x."""
    reaching: set[int] = {tape.result} if moves else set()
    for op in reversed(tape.ops):
        if reaching.intersection(index for index in op.outputs if index is not None):
            reaching.update(op.active)
    between = {tape.source} & reaching
    for op in tape.ops:
        if between.intersection(op.active):
            between.update(index for index in op.outputs if index in reaching)
    return between


def with_active(op: TapeOp, between: set[int]) -> TapeOp:
    """Return an op with those of its active values that lie between x and y; none if it makes no such value."""
    reaches = between.intersection(index for index in op.outputs if index is not None)
    active = tuple(index for index in op.active if index in between) if reaches else ()
    return TapeOp(op.target, op.args, op.kwargs, op.outputs, active)


def differentiable(tape: Tape, index: int) -> bool:
    """Return whether a value is one of fractions, real or complex."""
    dtype = tape.metas[index].dtype
    return dtype.is_floating_point or dtype.is_complex
