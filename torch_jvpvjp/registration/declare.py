"""The declaration: one decorator that turns a function into an op with every derivative."""

import re
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

from .conventions import PrimalConvention
from .op import DifferentiableOp
from .signature import infer_signature

_NAME = re.compile(r"[A-Za-z_]\w*::[A-Za-z_]\w*")


def differentiable_op(
    name: str,
    *,
    residuals: Sequence[str] = (),
    non_differentiable: Sequence[str] = (),
    non_differentiable_outputs: Sequence[int] = (),
    mutates_args: Sequence[str] = (),
    composite: bool = False,
) -> Callable[[Callable[..., Any]], DifferentiableOp]:
    """Declare an op by its reference: a few lines of plain PyTorch from which every derivative of every order follows.

    The decorated function *defines* the op f. From it alone the op has

        f(x),   ẏ = J ẋ,   x̄ = Jᵀ ȳ,   and all derivatives of these,

    under autograd, forward-mode AD, ``torch.func``, ``vmap`` and ``torch.compile``, on every device. Kernels and rules
    accelerate single points of that tower::

        @differentiable_op("mylib::soft_clip")
        def soft_clip(x: Tensor, limit: float = 1.0) -> Tensor:
            return limit * torch.tanh(x / limit)

        @soft_clip.kernel("cuda")                      # the primal on a device
        @soft_clip.jvp                                 # (primals, tangents) -> (outputs, output tangents)
        @soft_clip.jvp.kernel("cuda")                  # ... in one launch; a missing tangent arrives as None
        @soft_clip.vjp                                 # (cotangents, inputs[, outputs]) -> input cotangents
        @soft_clip.jvp.vjp                             # reverse over forward, and so on at any order
        @soft_clip.vmap                                # (info, in_dims, *args) -> (outputs, out_dims)
        @soft_clip.fake                                # shapes, if the formula cannot tell them
        soft_clip.autocast(torch.float32)

    A rule is a formula in plain PyTorch, a pure function of what it is given: it writes into no argument. It receives
    ``primals``, ``tangents``, ``cotangents`` and ``inputs`` as named tuples, under the names of the arguments; an
    output is called ``y``, several are ``y0``, ``y1``, ..., and one of these gets a 2 behind it if an argument has that
    name. A tangent or cotangent that is absent is None, and None returned for one means zero. A reference must return
    fresh tensors. Integer tensors are simply not differentiated.

    Args:
        name: ``namespace::name`` of the op in PyTorch's dispatcher.
        residuals: Names of trailing outputs that are hidden from the user and kept for the kernels of pullbacks. A
            formula never reads a residual: it recomputes it from the inputs.
        non_differentiable: Names of tensor arguments through which no derivative may flow; a tangent or
            ``requires_grad`` that arrives there raises instead of being silently dropped.
        non_differentiable_outputs: Positions of outputs without derivative, such as indices.
        mutates_args: Refused unless empty; an op is a pure function.
        composite: Whether `tj.jacobian` sees the steps of the formula, and so the structure of its Jacobian, where it
            would know the derivatives of the op alone. An op without rules, kernels and `fake` is seen so in any case.
            Not for a formula whose steps hold far more than the kernels do, nor for rules that differ from it.

    Returns:
        The decorator, which returns the :class:`DifferentiableOp`.

    Raises:
        ValueError: If the name is not ``namespace::name``, is taken, or an option names what does not exist, or
            ``mutates_args`` is not empty.
        TypeError: If it decorates something else than a function, or an annotation is missing or not representable.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        way = f"; write @differentiable_op('mylib::{name.__name__}')" if isinstance(name, FunctionType) else ""
        raise ValueError(f"differentiable_op: the name must look like 'namespace::name', got {name!r}{way}.")
    if tuple(mutates_args):
        raise ValueError(
            f"differentiable_op {name!r}: mutates_args={tuple(mutates_args)!r} was asked for, but an in-place op has "
            "no place in the tower of derivatives; return a new tensor and let the caller copy_ it."
        )

    for option, value in (("residuals", residuals), ("non_differentiable", non_differentiable)):
        if isinstance(value, str):
            raise TypeError(
                f"differentiable_op {name!r}: {option} must be a sequence of names, got {value!r}; write ({value!r},)."
            )
    if isinstance(non_differentiable_outputs, int):
        raise TypeError(
            f"differentiable_op {name!r}: non_differentiable_outputs must be a sequence of positions, got "
            f"{non_differentiable_outputs}; write ({non_differentiable_outputs},)."
        )

    def declare(reference: Callable[..., Any]) -> DifferentiableOp:
        if not hasattr(reference, "__globals__") or isinstance(reference, type | DifferentiableOp):
            raise TypeError(
                f"differentiable_op {name!r}: decorate a plain function with annotations, got {reference!r}."
            )
        signature = infer_signature(
            name,
            reference,
            residuals=tuple(residuals),
            non_differentiable=tuple(non_differentiable),
            non_differentiable_outputs=tuple(non_differentiable_outputs),
        )
        return DifferentiableOp(PrimalConvention(name, signature), reference, composite=composite)

    return declare
