"""How a batch axis of vmap folds into the one axis that every operand of attention may have in front.

Where some operands have one already (other tangents, say, of one primal), both axes become one, and results that belong
to operands without it are taken once or summed. Tangents of a primal that has none stay tangents of one primal.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...registration import DifferentiableOp
from ...registration.conventions import JvpConvention, VjpConvention
from ...registration.vmap import VmapRule
from .._arithmetic import total
from .inputs import rank_of
from .rules import op


def _arguments_of_results(point: DifferentiableOp) -> list[int] | None:
    """For each result of a pullback, the argument whose shape it has; None for a point that pulls nothing back."""
    convention = point.convention
    if isinstance(convention, VjpConvention):
        return [convention.offset + i for i in convention.base.signature.differentiable]
    if isinstance(convention, JvpConvention) and isinstance(convention.base, VjpConvention):
        base = convention.base
        return [base.offset + i for i in base.base.signature.differentiable] * 2
    return None


def _rule(point: DifferentiableOp) -> VmapRule:
    """The vmap rule of a point.

    A pullback's results have the shapes of its arguments, so its differentiable arguments are expanded (stride 0): no
    sum runs over the batch. So is the rest of ℓ, as ℓ is.

    Args:
        point: The point.

    Returns:
        The rule.
    """
    signature = point.signature
    names = [a.name for a in signature.arguments]
    ranks = {i: rank_of(names[i]) for i in signature.tensors}
    result_ranks = [rank_of(r.name) for r in signature.results]
    likes = _arguments_of_results(point)
    primals = len(op.signature.arguments)

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        inner, with_inner = _axis_in_front(in_dims, args, ranks)
        if likes is not None and inner is not None and point is op.jvp.vjp.op and args[2:4] != (None, None):
            apart = _apart(info, in_dims, args, with_inner)
            if apart is not None:
                return apart
        values = list(args)
        for i, rank in ranks.items():
            if values[i] is not None:
                expands = likes is not None and (i in signature.differentiable or names[i] == "rest")
                values[i] = _merged(values[i], in_dims[i], rank, info.batch_size, inner, expands=expands)
        shaped: list[Tensor] = []
        out_dims: list[int | None] = []
        for j, (result, rank) in enumerate(zip(point.unpacked(point.overload(*values)), result_ranks, strict=True)):
            absent = likes is not None and result.dim() == 1 and result.numel() == 0
            batched = result.dim() > rank and not absent
            if batched and inner is not None:
                result = result.unflatten(0, (info.batch_size, inner))  # noqa: PLW2901
                if likes is not None and likes[j] not in with_inner:
                    result = result.sum(1)  # noqa: PLW2901 -- a pullback of what was shared along it
                elif likes is None and j < 3 and not any(i < primals for i in with_inner):
                    result = result.select(1, 0)  # noqa: PLW2901 -- the value at a primal that has none
            shaped.append(result)
            out_dims.append(0 if batched else None)
        return tuple(shaped), tuple(out_dims)

    return rule


def _axis_in_front(
    in_dims: Sequence[int | None], args: Sequence[Any], ranks: dict[int, int]
) -> tuple[int | None, set[int]]:
    """Size of the axis in front that some arguments have besides vmap's, and which do."""
    inner, found = None, set()
    for i, rank in ranks.items():
        if args[i] is not None and args[i].dim() - (in_dims[i] is not None) > rank:
            inner = args[i].shape[1 if in_dims[i] == 0 else 0]
            found.add(i)
    return inner, found


def _apart(info: Any, in_dims: tuple[int | None, ...], args: tuple[Any, ...], with_inner: set[int]) -> Any:
    """The pullback of a JVP whose cotangents of tangents have an axis in front and those of outputs have none.

    What comes from the outputs counts once and is pulled back by itself, what comes from the tangents is summed.

    Args:
        info: What PyTorch tells a vmap rule.
        in_dims: Where each argument has vmap's axis, or None.
        args: The arguments of the pullback.
        with_inner: Positions of the arguments that have an axis in front besides vmap's.

    Returns:
        What the rule returns, or None if this is no such case.
    """
    outputs, tangents = (0, 1), (2, 3)
    lacks = any(args[i] is not None and i not in with_inner for i in outputs)
    if not lacks or not any(i in with_inner for i in tangents):
        return None
    point, pull = op.jvp.vjp.op, op.vjp.op
    count = len(op.signature.arguments)
    needs = args[-1]
    moved = point.vmap_rule, (None, None, *in_dims[2:]), (None, None, *args[2:])
    assert moved[0] is not None and pull.vmap_rule is not None
    results, dims = moved[0](info, moved[1], *moved[2])
    kept = (*range(2), *range(4, 4 + count), *range(8 + count, 11 + count))  # cotangents, arguments, o, ℓ, its rest
    alone, alone_dims = pull.vmap_rule(
        info, (*(in_dims[i] for i in kept), None), *(args[i] for i in kept), needs[: len(needs) // 2]
    )
    summed, out_dims = list(results), list(dims)
    for j, (result, dim) in enumerate(zip(alone, alone_dims, strict=True)):
        if needs[j]:
            summed[j] = total(*(r if d == 0 else r.unsqueeze(0) for r, d in ((result, dim), (summed[j], out_dims[j]))))
            out_dims[j] = 0
    return tuple(summed), tuple(out_dims)


def _merged(x: Tensor, dim: int | None, rank: int, size: int, inner: int | None, *, expands: bool) -> Tensor:
    """A tensor with at most one axis in front of its own."""
    if dim is not None:
        x = x.movedim(dim, 0)
    if inner is None:
        return x.expand(size, *x.shape) if dim is None and expands else x
    has_inner = x.dim() - (dim is not None) > rank
    if dim is None and not has_inner and not expands:
        return x
    outer = x if dim is not None else x.unsqueeze(0)
    both = outer if has_inner else outer.unsqueeze(1)
    own = both.shape[2:]
    return both.expand(size, inner, *own).reshape(size * inner, *own)


for _point in (op, op.jvp.op, op.vjp.op, op.jvp.vjp.op, op.vjp.jvp.op, op.vjp.vjp.op):
    _point.vmap(_rule(_point))
