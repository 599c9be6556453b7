"""The op of a pointwise function with its rules up to the second order, whatever the function.

Jacobians are diagonal, so a pushforward and a pullback are the same product:

    y = f(x),    ẏ = f′(x) ẋ,    x̄ = f′(x) ȳ,    ∂(f′(x) p)/∂x · q = f″(x) p q

In the dispatcher, tangents and cotangents may have more axes in front than x, or x than they: that is where vmap puts
a batch. A pullback that reads y in place of x uses g(y) = f′(x); below, s is x or y, whichever is saved.
"""

import inspect
from typing import Any

from torch import Tensor

from ...registration import DifferentiableOp, broadcasting_rule, differentiable_op, expanding_rule
from .._arithmetic import broadcast_empty, cotangents_like, empty_like, times, total, wide
from .table import Pointwise


def declare(function: Pointwise) -> DifferentiableOp:
    """Declare a pointwise function with its derivatives.

    Args:
        function: Its entry of the table.

    Returns:
        The op ``torch_jvpvjp::<name>`` of (x, *options).
    """
    options = tuple(inspect.signature(function.value).parameters)[1:]

    def reference(*args: Any) -> Tensor:
        x, *values = args
        return function.value(wide(x, x), *values).to(x.dtype)

    reference.__signature__ = inspect.signature(function.value)  # pyright: ignore[reportFunctionMemberAccess]
    reference.__doc__ = f"The reference: y = {function.name}(x), computed in float32 or float64."
    op = differentiable_op(f"torch_jvpvjp::{function.name}", composite=True)(reference)
    _forward_rules(op, function, options)
    _backward_rules(op, function, options)
    _vmap_rules(op, len(options), function.of_output is not None)
    return op


def values_of(inputs: Any, options: tuple[str, ...]) -> tuple[Any, ...]:
    """The options among the arguments of a point of the tower.

    Args:
        inputs: What a rule receives.
        options: Their names.

    Returns:
        Their values.
    """
    return tuple(getattr(inputs, name) for name in options)


def saved_of(inputs: Any, function: Pointwise) -> Tensor:
    """The point at which a pullback takes its slope.

    Args:
        inputs: The arguments of the VJP op or, as primals, those of a derivative of it.
        function: The entry.

    Returns:
        x or y.
    """
    return inputs.x if function.of_output is None else inputs.y


def _forward_rules(op: DifferentiableOp, function: Pointwise, options: tuple[str, ...]) -> None:
    """The JVP, what is pulled back through it, and the JVP of it."""
    value, slope, bend = function.value, function.slope, function.bend

    @op.jvp
    def jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor | None]:
        """y = f(x),  ẏ = f′(x) ẋ."""
        x, values = wide(primals.x, primals.x), values_of(primals, options)
        x_dot = wide(tangents.x, primals.x)
        y_dot = None if x_dot is None else (slope(x, *values) * x_dot).to(primals.x.dtype)
        return value(x, *values).to(primals.x.dtype), y_dot

    @op.jvp.vjp
    def jvp_vjp(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
        """Reverse over forward: with a, b the cotangents of ẏ, y,  x̄ = f′b + f″ẋ a  and  ẋ̄ = f′a."""
        primal, values = inputs.x, values_of(inputs, options)
        x, x_dot = wide(primal, primal), wide(inputs.x_dot, primal)
        a, b = wide(cotangents.y_dot, primal), wide(cotangents.y, primal)
        first = None if a is None or x_dot is None else slope(x, *values) * a
        shared = cotangents_like((None if b is None else slope(x, *values) * b,), (x,))[0]
        bent = None if a is None or x_dot is None else bend(x, *values) * x_dot * a
        second = total(shared, *cotangents_like((bent,), (x,)))
        return cotangents_like((second, first), (primal, inputs.x_dot))

    @op.jvp.jvp
    def jvp_jvp(
        primals: Any, tangents: Any
    ) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor | None, Tensor | None]]:
        """Forward over forward: with x′, ẋ′ the tangents of x, ẋ,  y′ = f′x′  and  ẏ′ = f″ẋ x′ + f′ẋ′."""
        primal, values = primals.x, values_of(primals, options)
        x, x_dot = wide(primal, primal), wide(primals.x_dot, primal)
        x_prime, x_dot_prime = wide(tangents.x, primal), wide(tangents.x_dot, primal)
        f1 = slope(x, *values)
        y_dot, y_prime = times(f1, x_dot), times(f1, x_prime)
        bent = None if x_dot is None or x_prime is None else bend(x, *values) * x_dot * x_prime
        y_dot_prime = total(bent, times(f1, x_dot_prime))
        y, *dots = (None if t is None else t.to(primal.dtype) for t in (value(x, *values), y_dot, y_prime, y_dot_prime))
        assert y is not None
        return (y, dots[0]), (dots[1], dots[2])

    @op.fake
    def fake(*args: Any) -> Tensor:
        return args[0].new_empty(args[0].shape)

    @op.jvp.fake
    def jvp_fake(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
        return fake(primals.x), broadcast_empty(primals.x, primals.x, tangents.x)

    @op.jvp.vjp.fake
    def jvp_vjp_fake(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
        return empty_like(inputs.x, inputs.x_dot)


def _backward_rules(op: DifferentiableOp, function: Pointwise, options: tuple[str, ...]) -> None:
    """The VJP, its tangents and what is pulled back through it."""
    at_output = function.of_output is not None

    def slope(saved: Tensor, values: tuple[Any, ...]) -> Tensor:
        point = wide(saved, saved)
        if function.of_output is not None:
            return function.of_output.slope(point)
        return function.slope(point, *values)

    def bend(saved: Tensor, values: tuple[Any, ...]) -> Tensor:
        point = wide(saved, saved)
        if function.of_output is not None:
            return function.of_output.bend(point)
        return function.bend(point, *values)

    def pull(y_bar: Tensor, saved: Tensor, values: tuple[Any, ...]) -> Tensor:
        return (slope(saved, values) * wide(y_bar, saved)).to(saved.dtype)

    if at_output:

        @op.vjp(unsaved=("x",))
        def vjp_at_output(cotangents: Any, inputs: Any, outputs: Any) -> Tensor:
            """x̄ = g(y) ȳ."""
            return pull(cotangents.y, outputs[0], values_of(inputs, options))

        @op.vjp.fake
        def vjp_at_output_fake(cotangents: Any, inputs: Any, outputs: Any) -> Tensor:
            return outputs[0].new_empty(outputs[0].shape)

    else:

        @op.vjp
        def vjp(cotangents: Any, inputs: Any) -> Tensor:
            """x̄ = f′(x) ȳ."""
            return pull(cotangents.y, inputs.x, values_of(inputs, options))

        @op.vjp.fake
        def vjp_fake(cotangents: Any, inputs: Any) -> Tensor:
            return inputs.x.new_empty(inputs.x.shape)

    def in_place(s: Any) -> tuple[Any, ...]:
        """Cotangents of (x, y) or of x, where s is that of the point."""
        return (None, s) if at_output else (s,)

    @op.vjp.jvp
    def vjp_jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor | None]:
        """Forward over reverse: x̄ = f′ȳ, and its tangent f′ȳ′ + f″s′ȳ."""
        saved, values = saved_of(primals, function), values_of(primals, options)
        y_bar = wide(primals.y_bar, saved)
        s_dot = wide(tangents.y if at_output else tangents.x, saved)
        y_bar_dot = wide(tangents.y_bar, saved)
        f1 = slope(saved, values)
        bent = None if s_dot is None else bend(saved, values) * s_dot * y_bar
        x_bar_dot = total(bent, times(f1, y_bar_dot))
        dtype = saved.dtype
        return (f1 * y_bar).to(dtype), None if x_bar_dot is None else x_bar_dot.to(dtype)

    @op.vjp.vjp
    def vjp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """Reverse over reverse: with u the cotangent of x̄,  ȳ̄ = f′u  and  s̄ = f″ȳ u."""
        saved, values = saved_of(inputs, function), values_of(inputs, options)
        u, y_bar = wide(cotangents.x_bar, saved), wide(inputs.y_bar, saved)
        y_bar_bar = slope(saved, values) * u if needs[0] else None
        bent = bend(saved, values) * y_bar * u if needs[-1] else None
        return cotangents_like((y_bar_bar, *in_place(bent)), (inputs.y_bar, *in_place(saved)))

    @op.vjp.jvp.fake
    def vjp_jvp_fake(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
        point = saved_of(primals, function)
        return point.new_empty(point.shape), point.new_empty(point.shape)

    @op.vjp.vjp.fake
    def vjp_vjp_fake(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
        return empty_like(inputs.y_bar, *in_place(saved_of(inputs, function)))


def _vmap_rules(op: DifferentiableOp, options: int, at_output: bool) -> None:
    """A batch axis goes in front of axes that broadcast from the right; the numbers are positions of flat arguments.

    In a JVP an unbatched primal stays unbatched, so K tangents are one launch.
    """
    x_dot, x_dot2, x_dot_dot = 1 + options, 2 + options, 3 + options
    op.vmap(broadcasting_rule(op, results_of=[(0,)]))  # x, *options
    op.jvp.vmap(broadcasting_rule(op.jvp.op, results_of=[(0,), (0, x_dot)]))  # x, *options, x_dot
    op.jvp.jvp.vmap(
        broadcasting_rule(op.jvp.jvp.op, results_of=[(0,), (0, x_dot), (0, x_dot2), (0, x_dot, x_dot2, x_dot_dot)])
    )
    op.jvp.vjp.vmap(
        expanding_rule(op.jvp.vjp.op, results_like=(2, 3 + options))
    )  # y_bar, y_dot_bar, x, *options, x_dot
    saved = 2 + options if at_output else 1  # y_bar, x, *options, [y,] needs
    op.vjp.vmap(expanding_rule(op.vjp.op, results_like=(saved,)))
    op.vjp.jvp.vmap(expanding_rule(op.vjp.jvp.op, results_like=(saved, saved)))
    # x_bar_bar, y_bar, x, *options, [y,] needs
    op.vjp.vjp.vmap(expanding_rule(op.vjp.vjp.op, results_like=(1, 2, 3 + options) if at_output else (1, 2)))
