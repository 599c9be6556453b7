"""The shortest way to a JVP: one forward-mode level is open, and the JVP's kernel takes what lies below it.

Through the dispatcher such a call costs two Python kernels and, under ``torch.func.jvp``, an interpreter for each. Here
the level is peeled off the arguments, the JVP computes on plain tensors, and its results become duals.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _torch_private as private

if TYPE_CHECKING:
    from .op import DifferentiableOp

_Tensor, _Parameter = torch.Tensor, torch.nn.Parameter
_forward_ad = private.forward_ad
_LEVEL, _JVP, _GRAD = 1, private.TransformType.Jvp, private.TransformType.Grad  # the only interpreter there may be
_wrapped, _unwrap, _wrap = private.is_functorch_wrapped_tensor, private.unwrap_level, private.wrap_level


def peel(tensors: Iterable[Tensor | None]) -> list[tuple[Tensor | None, Tensor | None]] | None:
    """Primals and tangents of the one forward-mode level that is open, if no other transform is.

    Args:
        tensors: Duals of that level, constants, or None.

    Returns:
        Plain tensors, the tangent of a constant None; or None if another transform is active, or a tensor or tangent
        is a subclass or is lazy.
    """
    top = private.peek_interpreter_stack()
    wrapping = top is not None
    if not private.is_fwd_grad_enabled() or (wrapping and (top.level() != _LEVEL or top.key() != _JVP)):
        return None
    pairs: list[tuple[Tensor | None, Tensor | None]] = []
    for tensor in tensors:
        if tensor is None:
            pairs.append((None, None))
            continue
        primal, tangent = tensor, None
        lifted = _wrapped(tensor)
        if (lifted or not wrapping) and (tensor.is_floating_point() or tensor.is_complex()):
            primal, tangent = private.unpack_dual(tensor, level=0)
        if lifted and wrapping:
            primal = _unwrap(primal, _LEVEL)
            tangent = tangent if tangent is None else _unwrap(tangent, _LEVEL)
        if not _is_bare(primal) or not (tangent is None or _is_bare(tangent)):
            return None
        if tangent is not None and private.is_legacy_batched(tangent):
            return None
        if private.is_lazy(primal) or (tangent is not None and private.is_lazy(tangent)):
            return None
        pairs.append((primal, tangent))
    return pairs


def is_pushed_alone(tensors: Iterable[Tensor | None]) -> bool:
    """Whether one forward-mode level is open and no primal of these has another derivative; tangents may have one.

    Args:
        tensors: Floating-point duals of that level, constants, or None.

    Returns:
        True if one JVP of these, and what is linear in its tangents, is all that can follow.
    """
    top = private.peek_interpreter_stack()
    if _forward_ad._current_level < 0 if top is None else top.level() != _LEVEL or top.key() != _JVP:
        return False
    if not private.is_fwd_grad_enabled():
        return False
    for tensor in tensors:
        if tensor is not None and not _is_plain(_unwrap(tensor, _LEVEL) if _wrapped(tensor) else tensor):
            return False
    return True


def is_pulled_alone() -> bool:
    """Whether one level of `torch.func.grad`, `vjp` or `jacrev` without `vmap` is all that is open."""
    top = private.peek_interpreter_stack()
    return top is not None and top.level() == _LEVEL and top.key() == _GRAD and _forward_ad._current_level < 0


def has_plain_tangent(tensor: Tensor) -> bool:
    """Whether no tangent of this has another derivative, where one forward-mode level is open.

    Args:
        tensor: A dual of that level, or a constant.

    Returns:
        True if so; it takes about as long as a small op.
    """
    lifted = _wrapped(tensor)
    if not lifted and private.peek_interpreter_stack() is not None:
        return True
    tangent = private.unpack_dual(tensor, level=0)[1]
    return tangent is None or _is_plain(_unwrap(tangent, _LEVEL) if lifted else tangent)


def _is_plain(tensor: Tensor) -> bool:
    kind = type(tensor)
    if kind is not _Tensor and kind is not _Parameter:
        return False
    return not tensor.requires_grad and not private.is_legacy_batched(tensor)


def _is_bare(tensor: Tensor) -> bool:
    kind = type(tensor)
    return (kind is _Tensor or kind is _Parameter) and not _wrapped(tensor)


def push_once(op: "DifferentiableOp", args: Sequence[Any]) -> tuple[Tensor, ...] | None:
    """The results of an op as duals of the one forward-mode level that is open, recorded where gradients follow.

    Args:
        op: The op.
        args: One value per argument.

    Returns:
        One tensor per result; or None if that level may not be all, or the JVP has no rule.
    """
    push, signature = op.jvp_op, op.signature
    pairs = None if push is None else peel([args[i] for i in signature.tensors])
    if push is None or pairs is None:
        return None
    primals, by_position = list(args), dict(zip(signature.tensors, pairs, strict=True))
    for i, (primal, _) in by_position.items():
        primals[i] = primal
    tangents = [by_position[i][1] for i in signature.differentiable]
    moving, recording = any(t is not None for t in tangents), torch.is_grad_enabled()
    for i in signature.frozen:
        primal, tangent = by_position[i]
        if tangent is not None or (recording and primal is not None and primal.requires_grad):
            return None  # the dispatcher's way explains what is wrong
    point, operands = (push, (*primals, *tangents)) if moving else (op, tuple(primals))
    recording = recording and private.any_requires_grad(*[operands[i] for i in point.signature.tensors])
    interpreter = None if private.peek_interpreter_stack() is None else private.pop_level()
    # Without a transform backward may run while the dual level is open; for its results to have tangents, it must find
    # the duals.
    saved = (*args, *tangents) if moving and interpreter is None else None
    try:
        results = point.node.apply(None, saved, *operands) if recording else point.compute(operands)
    finally:
        if interpreter is not None:
            private.push_level(interpreter)
    return _duals(op, results, interpreter is not None) if moving else results


def push_linear(function: Callable[..., Tensor], *tensors: Tensor, constants: Sequence[Tensor] = ()) -> Tensor:
    """A linear map of duals, f(x) and f(ẋ) each by itself: what PyTorch makes of products with a constant is slow.

    Its JVP takes the constant's tangent for a zero tensor, and what is added to one goes through PyTorch's references
    in Python, which takes many times as long as the product or quotient.

    Args:
        function: Of tensors to a tensor, linear in all of them together.
        *tensors: What it is called with.
        constants: What else it reads, and is not linear in: where one has a tangent, PyTorch is left to differentiate.

    Returns:
        The result, a dual if each tensor is one of the innermost level, and that is of forward mode.
    """
    top = private.peek_interpreter_stack()
    level = -1 if top is None else top.level()
    pushed = _forward_ad._current_level >= 0 if top is None else top.key() == _JVP
    watched = private.len_torch_dispatch_stack() or private.len_torch_function_stack() or private.get_tracing_state()
    if not pushed or watched or not private.is_fwd_grad_enabled():
        return function(*tensors)
    if any(not _is_at(t, level) for t in tensors) or any(_may_move(c, level) for c in constants):
        return function(*tensors)
    pairs = [private.unpack_dual(t, level=0) for t in tensors]
    if any(tangent is None for _, tangent in pairs):
        return function(*tensors)
    primals, tangents = zip(*pairs, strict=True)
    return private.make_dual(function(*primals), function(*tangents), level=0)


def _is_at(tensor: Tensor, level: int) -> bool:
    """Whether a tensor is PyTorch's own and of this level of `torch.func`, -1 for none."""
    return type(tensor) is _Tensor and private.level_of(tensor) == level and not private.is_legacy_batched(tensor)


def _may_move(constant: Tensor, level: int) -> bool:
    """Whether a tensor may have a tangent of this level of `torch.func`, -1 for that of a plain dual level."""
    if private.level_of(constant) != level:
        return False  # of another level, where it is as constant as a plain tensor
    return not _is_at(constant, level) or private.unpack_dual(constant, level=0)[1] is not None


def _duals(op: "DifferentiableOp", results: Sequence[Tensor], wrapping: bool) -> tuple[Tensor, ...]:
    """Join each differentiable result with its tangent, at the level that is open."""
    if wrapping:
        results = [_wrap(r, _LEVEL) for r in results]
    count = len(op.signature.results)
    joined = list(results[:count])
    for j, tangent in zip(op.signature.differentiable_results, results[count:], strict=True):
        joined[j] = private.make_dual(joined[j], tangent, level=0)
    return tuple(joined)
