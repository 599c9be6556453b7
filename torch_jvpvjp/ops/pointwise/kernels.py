"""The Triton kernel of the pointwise functions at every point of their towers: one launch each."""

from typing import Any

from torch import Tensor

from ...registration import DifferentiableOp
from .._arithmetic import total
from .._devices import triton_devices
from .._groups import Grouped, group
from .._shapes import broadcast
from .rules import saved_of, values_of
from .table import Pointwise

_DEVICES = triton_devices()
Named = tuple[str, float, float]


def register_kernels(op: DifferentiableOp, function: Pointwise) -> None:
    """Register the kernel at the points of a function's tower, where Triton can run.

    Args:
        op: The op.
        function: Its entry of the table.
    """
    if _DEVICES:
        _register_forward(op, function)
        _register_backward(op, function)


def _register_forward(op: DifferentiableOp, function: Pointwise) -> None:
    options = op.signature.inputs_type._fields[1:]

    @op.kernel(*_DEVICES)
    def primal(x: Tensor, *values: Any) -> Tensor:
        """One launch: y."""
        grouped, (y, *_) = _jet(function.kernel(*values), x, wants_y=True)
        assert y is not None
        return grouped.row_result(y)

    @op.jvp.kernel(*_DEVICES)
    def jvp(primals: Any, tangents: Any) -> tuple[Tensor | None, Tensor | None]:
        """One launch: y once, and ẏ for every tangent."""
        x, x_dot = primals.x, tangents.x
        named = function.kernel(*values_of(primals, options))
        grouped, (y, y_dot, *_) = _jet(named, x, x_dot, wants_y=True, wants_p=x_dot is not None)
        return _shared(grouped, y, x), None if y_dot is None else grouped.row_result(y_dot)

    @op.jvp.vjp.kernel(*_DEVICES)
    def jvp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """One launch for the cotangents of x and ẋ."""
        x, x_dot, a, b = inputs.x, inputs.x_dot, cotangents.y_dot, cotangents.y
        named = function.kernel(*values_of(inputs, options))
        if a is None or x_dot is None:
            return None if b is None else _product(named, x, b), None
        # A cotangent of y is shared by all tangents and counts once; one of ẏ counts for each.
        together = b is None or b.shape == a.shape
        grouped, (_, _, first, second) = _jet(
            named, x, x_dot, a, b if together else None, wants_q=needs[1], wants_bend=needs[0]
        )
        x_bar = None if second is None else grouped.row_result(second, x)
        if needs[0] and b is not None and not together:
            x_bar = total(x_bar, _product(named, x, b))
        return x_bar, None if first is None else grouped.row_result(first, x_dot)

    @op.jvp.jvp.kernel(*_DEVICES)
    def jvp_jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        """One launch: y, ẏ, y′ and ẏ′."""
        x, p, q, b = primals.x, primals.x_dot, tangents.x, tangents.x_dot
        has_bend = b is not None or (p is not None and q is not None)
        grouped, (y, y_dot, y_prime, y_dot_prime) = _jet(
            function.kernel(*values_of(primals, options)),
            x,
            p,
            q,
            b,
            wants_y=True,
            wants_p=p is not None,
            wants_q=q is not None,
            wants_bend=has_bend,
        )
        outputs = _shared(grouped, y, x), _shared(grouped, y_dot, x, p)
        return outputs, (_shared(grouped, y_prime, x, q), _shared(grouped, y_dot_prime, x, p, q, b))


def _register_backward(op: DifferentiableOp, function: Pointwise) -> None:
    options = op.signature.inputs_type._fields[1:]
    at_output = function.of_output is not None

    def named(inputs: Any) -> Named:
        if function.of_output is not None:
            return function.of_output.kernel, 0.0, 0.0
        return function.kernel(*values_of(inputs, options))

    if at_output:

        @op.vjp.kernel(*_DEVICES)
        def vjp_at_output(cotangents: Any, inputs: Any, outputs: Any) -> Tensor:
            """One launch: x̄ from y."""
            return _product(named(inputs), outputs[0], cotangents.y)

    else:

        @op.vjp.kernel(*_DEVICES)
        def vjp(cotangents: Any, inputs: Any) -> Tensor:
            """One launch: x̄."""
            return _product(named(inputs), inputs.x, cotangents.y)

    @op.vjp.jvp.kernel(*_DEVICES)
    def vjp_jvp(primals: Any, tangents: Any) -> tuple[Tensor | None, Tensor | None]:
        """One launch: x̄ and its tangent."""
        s, y_bar, b = saved_of(primals, function), primals.y_bar, tangents.y_bar
        s_dot = tangents.y if at_output else tangents.x
        grouped, (_, _, x_bar, x_bar_dot) = _jet(named(primals), s, s_dot, y_bar, b, wants_q=True, wants_bend=True)
        return _shared(grouped, x_bar, s, y_bar), _shared(grouped, x_bar_dot, s, s_dot, y_bar, b)

    @op.vjp.vjp.kernel(*_DEVICES)
    def vjp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """One launch for the cotangents of ȳ and of the saved point."""
        s, u, y_bar = saved_of(inputs, function), cotangents.x_bar, inputs.y_bar
        grouped, (_, y_bar_bar, _, bent) = _jet(named(inputs), s, u, y_bar, wants_p=needs[0], wants_bend=needs[-1])
        s_bar = None if bent is None else grouped.row_result(bent, s)
        first = None if y_bar_bar is None else grouped.row_result(y_bar_bar, y_bar)
        return (first, None, s_bar) if at_output else (first, s_bar)


def _jet(
    named: Named,
    x: Tensor,
    p: Tensor | None = None,
    q: Tensor | None = None,
    b: Tensor | None = None,
    **wants: bool,
) -> tuple[Grouped, tuple[Tensor | None, ...]]:
    """The launcher on tensors that broadcast from the right, and the way to shape its results."""
    from ...triton_kernels.pointwise import pointwise_jet

    grouped = group([x, p, q, b], [], 0)
    x_row, *others = grouped.rows
    return grouped, pointwise_jet(named, x_row, *others, **wants)


def _product(named: Named, x: Tensor, p: Tensor) -> Tensor:
    """f′(x) p, of the shape of x."""
    grouped, (_, product, *_) = _jet(named, x, p, wants_p=True)
    assert product is not None
    return grouped.row_result(product, x)


def _shared(grouped: Grouped, result: Tensor | None, *operands: Tensor | None) -> Tensor | None:
    """A result that depends on these operands, without the axes of the others."""
    if result is None:
        return None
    shape = broadcast(*(t.shape for t in operands if t is not None))
    return grouped.shared_result(result, shape)
