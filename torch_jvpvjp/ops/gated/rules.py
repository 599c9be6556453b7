"""The op of a gated linear unit with its rules up to the second order, whatever the function and the form.

    y = f(g) u,    J(ġ, u̇) = f′ ġ u + f u̇,    Jᵀa = (f′ u a, f a)
    S(ġ, u̇; a) = ∂⟨a, J(ġ, u̇)⟩/∂(g, u) = (a (f″ ġ u + f′ u̇), a f′ ġ)

In the dispatcher any tensor may have more axes in front than another: that is where vmap puts a batch.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...registration import DifferentiableOp, broadcasting_rule, differentiable_op, expanding_rule
from .._arithmetic import empty_like, times, total, wide
from .._leading import leading_rule
from ..pointwise.rules import values_of
from ..pointwise.table import Pointwise
from .halves import Halves, Pair


def declare(name: str, function: Pointwise, halves: Halves) -> DifferentiableOp:
    """Declare a gated linear unit with its derivatives.

    Args:
        name: Of the op.
        function: What is applied to the gate.
        halves: The form of the arguments.

    Returns:
        The op ``torch_jvpvjp::<name>`` of (gate, up, *options) or (x, *options).
    """
    options = tuple(inspect.signature(function.value).parameters)[1:]

    def reference(*args: Any) -> Tensor:
        inputs = args[: len(halves.names)]
        gate, up = inputs if halves.packed is None else halves.split(inputs[0])
        value = function.value(wide(gate, gate), *args[len(halves.names) :])
        return (value * wide(up, gate)).to(gate.dtype)

    parameters = inspect.signature(function.value).parameters
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    tensors = [inspect.Parameter(n, kind, annotation=Tensor) for n in halves.names]
    reference.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
        [*tensors, *(parameters[o] for o in options)], return_annotation=Tensor
    )
    reference.__doc__ = f"The reference: y = {function.name}(gate) · up, computed in float32 or float64."
    op = differentiable_op(f"torch_jvpvjp::{name}", composite=True)(reference)
    _forward_rules(op, function, halves, options)
    _backward_rules(op, function, halves, options)
    _fakes(op, halves)
    _vmap_rules(op, len(options), halves)
    return op


class _Maps:
    """f, f′, f″ at the gate, and the linear maps that the rules are made of; None is zero."""

    def __init__(self, function: Pointwise, g: Tensor, u: Tensor, values: tuple[Any, ...]) -> None:
        self.function, self.g, self.u, self.values = function, g, u, values

    def f(self) -> Tensor:
        return self.function.value(self.g, *self.values)

    def f1(self) -> Tensor:
        return self.function.slope(self.g, *self.values)

    def push(self, g_dot: Tensor | None, u_dot: Tensor | None) -> Tensor | None:
        """J(ġ, u̇) = f′ ġ u + f u̇."""
        return total(None if g_dot is None else self.f1() * g_dot * self.u, None if u_dot is None else self.f() * u_dot)

    def pull(self, a: Tensor | None, needs: tuple[bool, bool]) -> Pair:
        """Jᵀa = (f′ u a, f a)."""
        if a is None:
            return None, None
        return self.f1() * self.u * a if needs[0] else None, self.f() * a if needs[1] else None

    def bend(self, g_dot: Tensor | None, u_dot: Tensor | None, a: Tensor | None, needs: tuple[bool, bool]) -> Pair:
        """S(ġ, u̇; a) = (a (f″ ġ u + f′ u̇), a f′ ġ)."""
        if a is None:
            return None, None
        curved = self.function.bend(self.g, *self.values) * g_dot * self.u if needs[0] and g_dot is not None else None
        crossed = self.f1() * u_dot if needs[0] and u_dot is not None else None
        return times(a, total(curved, crossed)), a * self.f1() * g_dot if needs[1] and g_dot is not None else None


def _plus(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Sums of cotangents, each already of its argument's shape; None is zero."""
    return tuple(total(s, t) for s, t in zip(one, other, strict=True))


def _forward_rules(op: DifferentiableOp, function: Pointwise, halves: Halves, options: tuple[str, ...]) -> None:
    """The JVP and what is pulled back through it."""
    count = len(halves.names)

    @op.jvp
    def jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor | None]:
        """y = f u,  ẏ = J(ġ, u̇)."""
        like = primals[0]
        maps = _Maps(function, *halves.wide_pair(primals, like), values_of(primals, options))
        y, y_dot = maps.f() * maps.u, maps.push(*halves.wide_pair(tangents, like))
        if y_dot is not None:  # f u̇ does not know of the batch axes of u; the tangent has them all the same
            y_dot = y_dot.expand(torch.broadcast_shapes(y.shape, y_dot.shape)).to(like.dtype)
        return y.to(like.dtype), y_dot

    @op.jvp.vjp
    def jvp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """Reverse over forward: with a, b the cotangents of ẏ, y,  Jᵀb + S(ġ, u̇; a)  and  Jᵀa."""
        like = inputs[0]
        maps = _Maps(function, *halves.wide_pair(inputs, like), values_of(inputs, options))
        a, b = wide(cotangents.y_dot, like), wide(cotangents.y, like)
        primal, tangent = halves.needs(needs[:count]), halves.needs(needs[count:])
        bent = maps.bend(*halves.wide_pair(inputs, like, "_dot"), a, primal)
        second = _plus(halves.cotangents(maps.pull(b, primal), inputs), halves.cotangents(bent, inputs))
        return *second, *halves.cotangents(maps.pull(a, tangent), inputs, "_dot")


def _backward_rules(op: DifferentiableOp, function: Pointwise, halves: Halves, options: tuple[str, ...]) -> None:
    """The VJP, its tangents and what is pulled back through it."""

    @op.vjp
    def vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """ḡ, ū = Jᵀȳ."""
        like = inputs[0]
        maps = _Maps(function, *halves.wide_pair(inputs, like), values_of(inputs, options))
        return halves.cotangents(maps.pull(wide(cotangents.y, like), halves.needs(needs)), inputs)

    @op.vjp.jvp
    def vjp_jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        """Forward over reverse: the tangent of Jᵀȳ is Jᵀȳ′ + S(g′, u′; ȳ)."""
        like = getattr(primals, halves.names[0])
        maps = _Maps(function, *halves.wide_pair(primals, like), values_of(primals, options))
        needs = halves.needs(tuple(primals.needs))
        a, b = wide(primals.y_bar, like), wide(tangents.y_bar, like)
        bent = maps.bend(*halves.wide_pair(tangents, like), a, needs)
        second = _plus(halves.cotangents(maps.pull(b, needs), primals), halves.cotangents(bent, primals))
        return halves.cotangents(maps.pull(a, needs), primals), second

    @op.vjp.vjp
    def vjp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """Reverse over reverse: with p, r the cotangents of ḡ, ū,  ȳ̄ = J(p, r)  and  g, u get S(p, r; ȳ)."""
        like = getattr(inputs, halves.names[0])
        maps = _Maps(function, *halves.wide_pair(inputs, like), values_of(inputs, options))
        p, r = halves.wide_pair(cotangents, like, "_bar")
        y_bar_bar = maps.push(p, r) if needs[0] else None
        if y_bar_bar is not None:
            y_bar_bar = y_bar_bar.to(inputs.y_bar.dtype)
        bent = maps.bend(p, r, wide(inputs.y_bar, like), halves.needs(needs[1:]))
        return y_bar_bar, *halves.cotangents(bent, inputs)


def _fakes(op: DifferentiableOp, halves: Halves) -> None:
    """Shapes: what tracing sees instead of the formulas."""

    def y_like(*values: Any) -> Tensor:
        pairs = [t for v in values for t in halves.pair(v) if t is not None]
        return pairs[0].new_empty(torch.broadcast_shapes(*(t.shape for t in pairs)))

    def arguments(values: Any, suffix: str = "") -> tuple[Tensor | None, ...]:
        return empty_like(*(getattr(values, name + suffix) for name in halves.names))

    inputs_type: Callable[..., Any] = op.signature.inputs_type
    op.fake(lambda *args: y_like(inputs_type(*args)))
    op.jvp.fake(lambda primals, tangents: (y_like(primals), y_like(primals, tangents)))
    op.vjp.fake(lambda cotangents, inputs: arguments(inputs))
    op.jvp.vjp.fake(lambda cotangents, inputs: (*arguments(inputs), *arguments(inputs, "_dot")))
    op.vjp.jvp.fake(lambda primals, tangents: (arguments(primals), arguments(primals)))
    op.vjp.vjp.fake(lambda cotangents, inputs: (*empty_like(inputs.y_bar), *arguments(inputs)))


def _vmap_rules(op: DifferentiableOp, options: int, halves: Halves) -> None:
    """A batch axis goes in front; the numbers are positions of flat arguments.

    In a JVP an unbatched primal stays unbatched, so K tangents are one launch.
    """
    n = len(halves.names)
    xs = tuple(range(n))
    dots = tuple(n + options + i for i in range(n))
    if halves.packed is None:
        op.vmap(broadcasting_rule(op, results_of=[xs]))  # *xs, *options
        op.jvp.vmap(broadcasting_rule(op.jvp.op, results_of=[xs, xs + dots]))  # *xs, *options, *dots
    else:
        op.vmap(leading_rule(op, [xs], _half))
        op.jvp.vmap(leading_rule(op.jvp.op, [xs, xs + dots], _half))
    after = tuple(1 + i for i in xs)  # y_bar, *xs, *options, needs
    op.vjp.vmap(expanding_rule(op.vjp.op, results_like=after))
    op.vjp.jvp.vmap(expanding_rule(op.vjp.jvp.op, results_like=after + after))
    both = tuple(2 + i for i in (*xs, *dots))  # y_bar, y_dot_bar, *xs, *options, *dots, needs
    op.jvp.vjp.vmap(expanding_rule(op.jvp.vjp.op, results_like=both))
    # cotangents of the results, y_bar, *xs, *options, needs, needs
    op.vjp.vjp.vmap(expanding_rule(op.vjp.vjp.op, results_like=(n, *(n + 1 + i for i in xs))))


def _half(shape: tuple[int, ...], _: Sequence[Any]) -> tuple[int, ...]:
    """Shape of y from that of packed tensors."""
    return (*shape[:-1], shape[-1] // 2)
