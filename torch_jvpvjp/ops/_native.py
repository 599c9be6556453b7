"""PyTorch's own function in the place of an op, on CPU tensors, where PyTorch differentiates it rightly.

There an op of ours gains nothing over PyTorch's and costs a node in Python. How far PyTorch's derivatives are right
differs by function, and each predicate here is one claim, which the face of an op makes for its function:

* `everywhere`: every order and composition, vmap included;
* `reversed_only`: every order of reverse mode, with forward mode over it (not under it);
* `pushed_only`: one JVP, whose tangents may be differentiated in turn, for it is linear in them;
* `undifferentiated`: the value.

Where PyTorch's pullback is right and what it builds on top is not, `_watched` lets its node stay and has the op step
in; where there is no such node, `recorded` makes one of two native functions. Either leaves every further derivative to
the op.

What is not right in PyTorch, and so not claimed: ``layer_norm`` is silently wrong in third-order reverse mode; the
second order of ``gelu`` is NaN far from 0; ``silu``, ``mish``, ``huber_loss`` and ``group_norm`` have no forward mode
over backward, ``mse_loss`` raises there, and ``glu`` beyond the second order; the softmax family raises where a dual's
value and tangent are both differentiated. A mode, a compiler, autocast, or hooks on saved tensors see the op.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, strided

from ..registration import DifferentiableOp
from ..registration._torch_private import SingleLevelFunction, top_saved_tensors_hooks
from ..registration.fast_path import is_plain, is_plain_backward, is_unmoded
from ..registration.push import is_pushed_alone
from ._arithmetic import FLOATS
from ._devices import triton_devices

_Tensor, _Parameter = torch.Tensor, torch.nn.Parameter
_grad_enabled, _is_compiling = torch.is_grad_enabled, torch.compiler.is_compiling
_saved_hooks = top_saved_tensors_hooks
WIDE = frozenset((torch.float32, torch.float64))
_active = "cpu" not in triton_devices()  # in the interpreter, CPU tensors take the Triton kernels


def everywhere(x: Any, *others: Any) -> bool:
    """Whether PyTorch's function may stand for an op that it differentiates rightly in every composition.

    Args:
        x: The first argument; whatever it is, it is looked at first.
        *others: Further tensors, each of the dtype of the first, float32 or float64 then; None takes no part.

    Returns:
        True for tensors on a CPU in eager code.
    """
    # Of the first: Dynamo shall trace nothing else of this. Of the last: a checkpoint must save the same tensors in
    # backward, transforms open or not.
    return not _is_compiling() and _fit(x, others) and is_unmoded() and _saved_hooks(True) is None


def _fit(x: Any, others: tuple[Any, ...]) -> bool:
    """Whether these are plain tensors on a CPU, of dtypes in which PyTorch computes as the ops do."""
    kind = type(x)
    if not _active or (kind is not _Tensor and kind is not _Parameter) or not x.is_cpu:
        return False
    dtype = x.dtype
    if not others:  # functions of more tensors have looked whether theirs are dense
        return dtype in FLOATS and x.layout is strided and not x.is_nested
    if dtype not in WIDE:  # PyTorch rounds between its own steps
        return False
    for t in others:
        if t is not None:
            kind = type(t)
            if (kind is not _Tensor and kind is not _Parameter) or t.dtype != dtype or not t.is_cpu:
                return False
    return True


def reversed_only(x: Any, *others: Any) -> bool:
    """Whether, besides, no transform and no dual level is open.

    Args:
        x: As for `everywhere`.
        *others: As for `everywhere`.

    Returns:
        True if backward is the only derivative that can follow, be it pushed forward itself.
    """
    return not _is_compiling() and _fit(x, others) and is_plain()


def pushed_only(x: Any, *others: Any) -> bool:
    """Whether one forward-mode level is open, and no primal requires grad.

    Args:
        x: As for `everywhere`.
        *others: As for `everywhere`.

    Returns:
        True if one JVP, and what is linear in its tangents, is all that can follow.
    """
    return everywhere(x, *others) and is_pushed_alone((x, *others))


def undifferentiated(x: Any, *others: Any) -> bool:
    """Whether, besides, nothing is differentiated at all.

    Args:
        x: As for `everywhere`.
        *others: As for `everywhere`.

    Returns:
        True if only the value is asked for.
    """
    return reversed_only(x, *others) and not records(x, *others)


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
        A function of the op's arguments; call it where `reversed_only` holds.
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
    return type(name, (SingleLevelFunction,), body).apply


def records(*tensors: Tensor | None) -> bool:
    """Whether backward may be asked of a function of these tensors.

    Args:
        *tensors: The tensors, or None.

    Returns:
        True if so.
    """
    if _grad_enabled():
        for t in tensors:  # any() of a generator takes several times as long
            if t is not None and t.requires_grad:
                return True
    return False


def is_active() -> bool:
    """Whether functions of PyTorch's may stand for ops here.

    Returns:
        True unless CPU tensors take the Triton kernels, or inside of `without_native`.
    """
    return _active


@contextmanager
def without_native() -> Iterator[None]:
    """Let no function of PyTorch stand for an op: for what judges the ops' own rules.

    Yields:
        Nothing.
    """
    global _active
    before, _active = _active, False
    try:
        yield
    finally:
        _active = before
