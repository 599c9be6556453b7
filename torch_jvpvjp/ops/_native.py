"""PyTorch's own function in the place of an op, on CPU tensors, where PyTorch differentiates it rightly.

There an op of ours gains nothing over PyTorch's and costs a node in Python. How far PyTorch's derivatives are right
differs by function. The face of an op asks `standing` what a call has to be right for, and takes PyTorch's function

* always, if that is right in every order and composition, vmap included;
* in `FIRST_ORDER`, if it is in every order of reverse mode, with forward mode over it (not under it), and in one JVP,
  whose tangents may be differentiated in turn, for it is linear in them;
* in `REVERSED`, if it is in the former alone;
* for a ``VALUE``.

Where PyTorch's pullback is right and what it builds on top is not, `_watched` lets its node stay and has the op step
in; where there is no such node, `recorded` makes one of two native functions. Either leaves every further derivative to
the op.

What is not right in PyTorch, and so not claimed: ``layer_norm`` is silently wrong in third-order reverse mode; the
second order of ``gelu`` is NaN far from 0; ``silu``, ``mish``, ``huber_loss`` and ``group_norm`` have no forward mode
over backward, ``mse_loss`` raises there, and ``glu`` beyond the second order; the softmax family raises where a dual's
value and tangent are both differentiated. A mode, a compiler, autocast, or hooks on saved tensors see the op.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, strided

from .._process_state import Exchanged
from ..registration import DifferentiableOp
from ..registration import _torch_private as private
from ..registration.composite import are_formulas
from ..registration.fast_path import is_plain_backward
from ..registration.push import is_pushed_alone
from ._arithmetic import FLOATS
from ._devices import triton_devices

_Tensor, _Parameter = torch.Tensor, torch.nn.Parameter
_interpreter, _forward_ad = private.peek_interpreter_stack, private.forward_ad
_dispatch_modes, _function_modes = private.len_torch_dispatch_stack, private.len_torch_function_stack
_saved_hooks, _tracing = private.top_saved_tensors_hooks, private.get_tracing_state
_any_autocast, _grad_enabled = private.is_any_autocast_enabled, torch.is_grad_enabled
_is_compiling = torch.compiler.is_dynamo_compiling  # others who compile have a mode; this is one frame, not two
WIDE = frozenset((torch.float32, torch.float64))
_active = "cpu" not in triton_devices()  # in the interpreter, CPU tensors take the Triton kernels


OP, VALUE, RECORDED, PUSHED, NESTED, WRITTEN = range(6)
REVERSED, FIRST_ORDER = frozenset((VALUE, RECORDED, WRITTEN)), frozenset((VALUE, RECORDED, PUSHED, WRITTEN))
AS_IT_STANDS = frozenset((VALUE, WRITTEN))  # without a node of ours that watches over what follows


def standing(x: Any, *others: Any) -> int:
    """Whether PyTorch's function may stand for an op of these tensors, and what it has to be right for then.

    After a large tensor has gone through the caches, every frame and every name of Python costs microseconds: this is
    one function, all written out, and to be asked before anything else looks at the arguments.

    Args:
        x: The first argument, whatever it is.
        *others: Further tensors; None takes no part.

    Returns:
        ``OP``, which counts as false, where the op is asked for: under a compiler, a mode, autocast or hooks on saved
        tensors, and if these are not dense tensors on a CPU of one dtype, float32 or float64 if there are several. Else
        ``VALUE`` if nothing is differentiated, ``RECORDED`` if backward follows, which may be pushed forward itself,
        ``PUSHED`` if one JVP does, and what is linear in its tangents, and ``NESTED`` if it may be anything.
        ``WRITTEN``, on any device, where a function is recorded step by step, by who knows the derivatives of
        PyTorch's functions by itself.
    """
    if _is_compiling() or not _active:  # of the first: Dynamo shall trace nothing else of this
        return OP
    kind = type(x)
    if (kind is not _Tensor and kind is not _Parameter) or not x.is_cpu or x.layout is not strided or x.is_nested:
        return _written(x, others)
    dtype = x.dtype
    if dtype not in (WIDE if others else FLOATS):  # of several tensors PyTorch rounds between its own steps
        return OP
    requires_grad = x.requires_grad
    for t in others:
        if t is not None:
            kind = type(t)
            if (kind is not _Tensor and kind is not _Parameter) or t.dtype != dtype or not t.is_cpu:
                return _written(x, others)
            if t.layout is not strided or t.is_nested:
                return OP
            if t.requires_grad:
                requires_grad = True
    if _dispatch_modes() or _function_modes() or _tracing() is not None or _any_autocast():
        return _written(x, others)
    if _saved_hooks(True) is not None:  # whatever follows: a checkpoint must save the same tensors in backward
        return OP
    if _interpreter() is None and _forward_ad._current_level < 0:
        return RECORDED if requires_grad and _grad_enabled() else VALUE
    return PUSHED if is_pushed_alone((x, *others)) else NESTED


def _written(x: Any, others: tuple[Any, ...]) -> int:
    """Return ``WRITTEN`` if that is how a call counts, else ``OP``."""
    if not are_formulas() or _interpreter() is not None or _forward_ad._current_level >= 0 or _any_autocast():
        return OP
    tensors = [t for t in (x, *others) if t is not None]
    dense = all(isinstance(t, Tensor) and t.layout is strided and not t.is_nested for t in tensors)
    one_dtype = dense and all(t.dtype == x.dtype and t.device == x.device for t in tensors)
    return WRITTEN if one_dtype and x.dtype in (WIDE if others else FLOATS) else OP


def recorded(
    op: DifferentiableOp,
    forward: Callable[..., tuple[Tensor, ...]],
    backward: Callable[..., Sequence[Tensor | None]],
) -> Callable[..., Tensor]:
    """An autograd node of two native functions, whose backward is the op's where it is differentiated in turn.

    Args:
        op: The op, of one visible output, whose VJP rule takes no outputs.
        forward: From the arguments of the op to the value and what backward wants of it: the op's residuals, if it has
            some.
        backward: From the cotangent, the arguments, what forward kept, and for each argument whether its cotangent is
            wanted, to the cotangents of the differentiable arguments.

    Returns:
        A function of the op's arguments; for calls that are ``RECORDED``.
    """
    tensors, differentiable = op.signature.tensors, op.signature.differentiable
    count, total = len(tensors), len(op.signature.arguments)
    residuals = len(op.signature.results) - 1

    def run_forward(ctx: Any, *args: Any) -> Tensor:
        y, *kept = forward(*args)
        if y._is_view():  # of what forward made; nobody else's, so that it may be written into
            y = y.detach()
        ctx.save_for_backward(*[args[i] for i in tensors], *kept)
        ctx.options = args[count:]  # tensors come first
        ctx.set_materialize_grads(False)
        return y

    def run_backward(ctx: Any, y_bar: Tensor | None) -> tuple[Tensor | None, ...]:
        if y_bar is None:
            return (None,) * total
        saved, needs = ctx.saved_tensors, ctx.needs_input_grad
        args, kept = (*saved[:count], *ctx.options), saved[count:]
        if is_plain_backward(y_bar) and not _is_compiling():
            bars = backward(y_bar, args, kept, needs)
        else:
            pull = op.vjp.op
            bars = pull.unpacked(pull.overload(y_bar, *args, *kept[:residuals], [needs[i] for i in differentiable]))
        gradients: list[Tensor | None] = [None] * total
        for i, bar in zip(differentiable, bars, strict=True):
            if needs[i]:
                gradients[i] = bar
        return tuple(gradients)

    name = f"{op.qualname.replace('::', '_')}_native_node"
    body = {"forward": staticmethod(run_forward), "backward": staticmethod(run_backward), "of_dispatcher_op": True}
    return type(name, (private.SingleLevelFunction,), body).apply


def is_active() -> bool:
    """Whether functions of PyTorch's may stand for ops here.

    Returns:
        True unless CPU tensors take the Triton kernels, or inside of `without_native`.
    """
    return _active


def without_native() -> AbstractContextManager[None]:
    """Let no function of PyTorch stand for an op: for what judges the ops' own rules.

    Returns:
        The context manager; other threads see the ops as well meanwhile.
    """
    return _WITHOUT_NATIVE


def _leave_native() -> Callable[[], object]:
    global _active
    before, _active = _active, False
    return lambda: _activate(before)


def _activate(active: bool) -> None:  # noqa: FBT001
    global _active
    _active = active


_WITHOUT_NATIVE = Exchanged(_leave_native)
