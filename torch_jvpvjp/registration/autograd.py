"""The Python kernel at the dispatcher's ``Autograd`` key, and the one autograd node behind every point.

It sees one functorch level at a time, so it does exactly three things: a dual among the inputs calls the JVP op once on
primals and tangents; else an input that requires grad records a node whose backward calls the VJP op; else it
redispatches below autograd. Where a rule is missing, the formula itself is differentiated.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _torch_private as private
from .autocast import without_autocast

if TYPE_CHECKING:
    from .op import DifferentiableOp


_is_compiling = torch.compiler.is_dynamo_compiling


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
    if value is None or not (value.is_floating_point() or value.is_complex()):
        return False
    return not private.is_legacy_batched(value)  # such a one has no tangent, and cannot be asked for it


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
        with op.examination.of_duals(args):
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
            # Views of what a kernel made belong to nobody else, and autograd lets only what is no view be written into.
            results = tuple([r.detach() if r._is_view() else r for r in op.compute(args)])
        else:
            # A node's forward switches both grad modes off; the levels below this one must not see constants.
            with torch.enable_grad(), private.set_fwd_grad_enabled(True):
                results = _below_autograd(op, keyset, args)
        live = op.convention.live_results(args)
        if len(live) != len(results):
            ctx.mark_non_differentiable(*(r for j, r in enumerate(results) if j not in live))
        ctx.set_materialize_grads(False)
        ctx.saves_duals = saved is not None
        _save(op, ctx, args if saved is None else saved, results)
        return results

    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        args, outputs = _saved(op, ctx)
        if ctx.saves_duals and outputs and any(t is not None for t in _unpack_duals(op, args)[1]):
            results = op.unpacked(op.overload(*args))  # the saved outputs have no tangents
            outputs = [results[j] for j in op.saved_results]
        needs = ctx.needs_input_grad[2:]
        if private.is_any_autocast_enabled():  # inside of a region; forward ran without autocast
            with without_autocast(args, op.signature):
                return (None, None, *_pull_back(op, args, outputs, cotangents, needs))
        return (None, None, *_pull_back(op, args, outputs, cotangents, needs))

    return type(
        f"{op.qualname.replace('::', '_')}_node",
        (private.SingleLevelFunction,),
        # `of_dispatcher_op` tells whoever reads an autograd graph that this node is one op that the dispatcher shows.
        {"forward": staticmethod(forward), "backward": staticmethod(backward), "of_dispatcher_op": True},
    )


def _save(op: "DifferentiableOp", ctx: Any, args: Sequence[Any], results: Sequence[Tensor]) -> None:
    """Save tensors through autograd (so that their own graphs and levels survive) and everything else on the node."""
    kept = list(args)
    for i in op.unsaved_inputs:
        kept[i] = None
    if op.shape_only is not None:
        _drop_memory(op, kept, ctx.needs_input_grad[2:])
    tensors = op.signature.tensors
    ctx.save_for_backward(*[kept[i] for i in tensors], *[results[j] for j in op.saved_results])
    for i in tensors:
        kept[i] = None
    ctx.kept = kept


def _drop_memory(op: "DifferentiableOp", kept: list[Any], needs: Sequence[bool]) -> None:
    """Put tensors of one element, expanded, in the place of inputs of which backward reads the shape alone."""
    signature = op.signature
    assert op.shape_only is not None
    wanted = signature.tangents_type(*[needs[i] for i in signature.differentiable])
    for name in op.shape_only(signature.inputs_type(*kept), wanted):
        i = signature.inputs_type._fields.index(name)
        if kept[i] is not None:
            kept[i] = kept[i].new_empty(()).expand(kept[i].shape)


def _saved(op: "DifferentiableOp", ctx: Any) -> tuple[list[Any], list[Any]]:
    """The arguments and the outputs that ``_save`` kept."""
    tensors = [None if t is None else private.unwrap_if_dead(t) for t in ctx.saved_tensors]
    positions = op.signature.tensors
    args = ctx.kept.copy()
    for i, tensor in zip(positions, tensors, strict=False):
        args[i] = tensor
    return args, tensors[len(positions) :]


def _pull_back(
    op: "DifferentiableOp",
    args: Sequence[Any],
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Cotangents of all arguments: by the VJP op, or by differentiating the formula where there is no rule."""
    signature, pull = op.signature, op.vjp_op
    gradients: list[Tensor | None] = [None] * len(args)
    bars = [cotangents[j] for j in signature.differentiable_results]
    mask = [needs[i] for i in signature.differentiable]
    present, dispatched = False, _is_compiling()  # by compiled autograd
    for bar in bars:
        if bar is not None:
            present = True
            dispatched = dispatched or private.is_legacy_batched(bar)
    if not present or True not in mask:
        return gradients
    if pull is None:
        wanted = [i for i in signature.differentiable if needs[i]]
        for i, gradient in zip(wanted, _pull_back_formula(op, tuple(args), bars, wanted), strict=True):
            gradients[i] = gradient
        return gradients
    operands = (*bars, *args, *outputs, mask)
    # The fast path cannot tell a tensor of the vmap before functorch from a plain one.
    pulled = pull.unpacked(pull.overload(*operands)) if dispatched else pull.call_flat(operands)
    for i, needed, gradient in zip(signature.differentiable, mask, pulled, strict=True):
        if needed:
            gradients[i] = gradient
    return gradients


def _pull_back_formula(
    op: "DifferentiableOp", args: tuple[Any, ...], bars: Sequence[Tensor | None], wanted: Sequence[int]
) -> tuple[Tensor, ...]:
    """``torch.func.vjp`` of the formula. A node's backward runs at user level, where a transform is allowed.

    Only outputs with a cotangent take part: a zero in the place of an absent one costs its work, and is NaN where the
    derivative of that output is infinite.

    Args:
        op: The op.
        args: Its arguments.
        bars: Cotangents of its differentiable results.
        wanted: Positions of the arguments whose cotangents are wanted.

    Returns:
        Those cotangents.
    """
    live = op.convention.live_results(args)
    given = {j: bar for j, bar in zip(op.signature.differentiable_results, bars, strict=True) if j in live}
    outputs = [j for j, bar in given.items() if bar is not None]

    def formula(*primals: Tensor) -> tuple[Tensor, ...]:
        full = list(args)
        for i, primal in zip(wanted, primals, strict=True):
            full[i] = primal
        results = op.run_formula(tuple(full))
        return tuple(results[j] for j in outputs)

    with nullcontext() if _is_compiling() else private.without_saved_tensors_hooks():
        with op.examination.of_derivative(args):
            values, pullback, *_ = torch.func.vjp(formula, *(args[i] for i in wanted))
        cotangents = [given[j] for j in outputs]
        return pullback(tuple(b.to(v.dtype) for v, b in zip(values, cotangents, strict=True) if b is not None))
