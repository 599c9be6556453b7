"""The Python kernel at the dispatcher's ``Autograd`` key, and the one autograd node behind every point.

It sees one functorch level at a time, so it does exactly three things: a dual among the inputs calls the JVP op once on
primals and tangents; else an input that requires grad records a node whose backward calls the VJP op; else it
redispatches below autograd. Where a rule is missing, the formula itself is differentiated.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _torch_private as private

if TYPE_CHECKING:
    from .op import DifferentiableOp


def make_autograd_kernel(op: "DifferentiableOp") -> Callable[..., Any]:
    """Build the ``Autograd`` kernel of an op.

    Args:
        op: The op.

    Returns:
        A dispatcher kernel that takes the keyset first.
    """
    signature = op.signature

    def autograd_kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        args = signature.fill(args, kwargs)
        primals, tangents = _unpack_duals(op, args)
        if any(t is not None for t in tangents):
            return op.packed(_push_forward(op, args, primals, tangents))
        if torch.is_grad_enabled() and _requires_grad(op, args):
            with private.enable_single_level_autograd_function():
                return op.packed(op.node.apply(keyset, None, *args))
        return op.packed(_below_autograd(op, keyset, args))

    return autograd_kernel


_DISPATCH = "dispatch"


def _below_autograd(op: "DifferentiableOp", keyset: Any, args: Sequence[Any]) -> tuple[Tensor, ...]:
    with private.BelowAutograd():
        if keyset is _DISPATCH:
            return op.unpacked(op.overload(*args))
        return op.unpacked(op.overload.redispatch(keyset & private.AFTER_AUTOGRAD, *args))


def _unpack_duals(op: "DifferentiableOp", args: Sequence[Any]) -> tuple[list[Any], list[Tensor | None]]:
    """Primals of all arguments, and the tangents of the differentiable ones (None where there is none)."""
    primals, tangents = list(args), []
    for i in op.signature.differentiable:
        tangent = None
        if _can_differentiate(args[i]):
            primal, tangent = private.unpack_dual(args[i], level=0)
            if tangent is not None:
                primals[i] = primal
        tangents.append(tangent)
    for i in op.signature.frozen:
        if _can_differentiate(args[i]) and private.unpack_dual(args[i], level=0)[1] is not None:
            raise _frozen_error(op, i, "a tangent")
    return primals, tangents


def _can_differentiate(value: Any) -> bool:
    return value is not None and (value.is_floating_point() or value.is_complex())


def _requires_grad(op: "DifferentiableOp", args: Sequence[Any]) -> bool:
    for i in op.signature.frozen:
        if args[i] is not None and args[i].requires_grad:
            raise _frozen_error(op, i, "requires_grad=True")
    return any(args[i] is not None and args[i].requires_grad for i in op.signature.differentiable)


def _frozen_error(op: "DifferentiableOp", position: int, what: str) -> NotImplementedError:
    name = op.signature.arguments[position].name
    return NotImplementedError(
        f"{op.qualname}: argument {name!r} is declared non-differentiable but has {what}; its derivative would be "
        f"silently zero. Pass {name}.detach() if that is meant."
    )


def _push_forward(
    op: "DifferentiableOp", args: Sequence[Any], primals: Sequence[Any], tangents: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Duals of the results: by the JVP op in one call, or by running the formula on the duals where it is missing."""
    push = op.jvp_op
    if push is None:
        return op.run_formula(tuple(args))
    count = len(op.signature.results)
    operands = (*primals, *tangents)
    if torch.is_grad_enabled() and _requires_grad(push, operands):
        # Backward may run while the dual level is open; for its results to have tangents, it must find the duals.
        with private.enable_single_level_autograd_function():
            flat = push.node.apply(_DISPATCH, (*args, *tangents), *operands)
    else:
        flat = push.unpacked(push.overload(*operands))
    results = list(flat[:count])
    for j, tangent in zip(op.signature.differentiable_results, flat[count:], strict=True):
        # Always through make_dual, which refuses a tangent of another shape.
        results[j] = private.make_dual(results[j], tangent, level=0)
    return tuple(results)


def make_node(op: "DifferentiableOp") -> Any:
    """Build the autograd node of an op: its forward computes, its backward pulls back.

    It is applied as ``apply(keyset, saved, *args)``. The keyset is the dispatcher's, at one functorch level; or None on
    the fast path, in plain eager; or ``_DISPATCH`` to dispatch anew. ``saved`` is what backward shall find in place of
    args.

    Args:
        op: The op.

    Returns:
        A subclass of ``_SingleLevelFunction``.
    """

    def forward(ctx: Any, keyset: Any, saved: tuple[Any, ...] | None, *args: Any) -> tuple[Tensor, ...]:
        if keyset is None:
            results = op.compute(args)
        else:
            # A node's forward switches both grad modes off; the levels below this one must not see constants.
            with torch.enable_grad(), private.set_fwd_grad_enabled(True):
                results = _below_autograd(op, keyset, args)
        live = op.convention.live_results(args)
        dead = [r for j, r in enumerate(results) if j not in live]
        if dead:
            ctx.mark_non_differentiable(*dead)
        ctx.set_materialize_grads(False)
        ctx.saves_duals = saved is not None
        _save(op, ctx, args if saved is None else saved, results)
        return results

    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        args, outputs = _saved(ctx)
        if ctx.saves_duals and outputs and any(t is not None for t in _unpack_duals(op, args)[1]):
            results = op.unpacked(op.overload(*args))  # the saved outputs have no tangents
            outputs = tuple(results[j] for j in op.vjp_convention.saved_results)
        return (None, None, *_pull_back(op, args, outputs, cotangents, ctx.needs_input_grad[2:]))

    return type(
        f"{op.qualname.replace('::', '_')}_node",
        (private.SingleLevelFunction,),
        {"forward": staticmethod(forward), "backward": staticmethod(backward)},
    )


def _save(op: "DifferentiableOp", ctx: Any, args: Sequence[Any], results: Sequence[Tensor]) -> None:
    """Save tensors through autograd (so that their own graphs and levels survive) and everything else on the node."""
    outputs: tuple[int, ...] = ()
    unsaved: tuple[int, ...] = ()
    if op.vjp_op is not None:
        outputs, unsaved = op.vjp_convention.saved_results, op.vjp_convention.unsaved
    kept = list(args)
    for i in unsaved:
        kept[i] = None
    tensors = [(i, a) for i, a in enumerate(kept) if isinstance(a, Tensor)]
    for i, _ in tensors:
        kept[i] = None
    ctx.positions = [i for i, _ in tensors]
    ctx.kept = kept
    ctx.save_for_backward(*(a for _, a in tensors), *(results[j] for j in outputs))


def _saved(ctx: Any) -> tuple[tuple[Any, ...], tuple[Tensor, ...]]:
    """The arguments and the outputs that ``_save`` kept."""
    tensors = [private.unwrap_if_dead(t) for t in ctx.saved_tensors]
    args = list(ctx.kept)
    for i, tensor in zip(ctx.positions, tensors, strict=False):
        args[i] = tensor
    return tuple(args), tuple(tensors[len(ctx.positions) :])


def _pull_back(
    op: "DifferentiableOp",
    args: tuple[Any, ...],
    outputs: tuple[Tensor, ...],
    cotangents: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Cotangents of all arguments: by the VJP op, or by differentiating the formula where there is no rule."""
    signature = op.signature
    gradients: list[Tensor | None] = [None] * len(args)
    bars = [cotangents[j] for j in signature.differentiable_results]
    wanted = [i for i in signature.differentiable if needs[i]]
    if not wanted or all(bar is None for bar in bars):
        return gradients
    if op.vjp_op is None:
        for i, gradient in zip(wanted, _pull_back_formula(op, args, bars, wanted), strict=True):
            gradients[i] = gradient
        return gradients
    mask = [needs[i] for i in signature.differentiable]
    pull = op.vjp_op
    operands = (*bars, *args, *outputs, mask)
    if any(bar is not None and private.is_legacy_batched(bar) for bar in bars):
        pulled = pull.unpacked(pull.overload(*operands))  # the fast path cannot tell such a tensor from a plain one
    else:
        pulled = pull.call_flat(operands)
    for i, needed, gradient in zip(signature.differentiable, mask, pulled, strict=True):
        gradients[i] = gradient if needed else None
    return gradients


def _pull_back_formula(
    op: "DifferentiableOp", args: tuple[Any, ...], bars: Sequence[Tensor | None], wanted: Sequence[int]
) -> tuple[Tensor, ...]:
    """``torch.func.vjp`` of the formula. A node's backward runs at user level, where a transform is allowed."""
    outputs = op.convention.live_results(args)
    positions = {j: n for n, j in enumerate(op.signature.differentiable_results)}

    def formula(*primals: Tensor) -> tuple[Tensor, ...]:
        full = list(args)
        for i, primal in zip(wanted, primals, strict=True):
            full[i] = primal
        results = op.run_formula(tuple(full))
        return tuple(results[j] for j in outputs)

    values, pullback = torch.func.vjp(formula, *(args[i] for i in wanted))
    given = [bars[positions[j]] for j in outputs]
    filled = tuple(torch.zeros_like(v) if b is None else b.to(v.dtype) for v, b in zip(values, given, strict=True))
    return pullback(filled)
