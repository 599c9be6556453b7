"""What is pulled back through JVP and VJP of an elementwise loss of d = x − t alone.

With e′ = e_x = −e_t, e″ and the factor s of `ops`,

    ẏ = s Σ e′ ḋ,    x̄ = −t̄ = s ȳ e′
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...registration import DifferentiableOp
from .._arithmetic import cotangents_like, total, wide
from ..pointwise.rules import values_of
from .table import Loss


def declare_second_order(op: DifferentiableOp, loss: Loss, scale_of: Callable[[Tensor, str, int], float]) -> None:
    """Register the rules.

    Args:
        op: The op of the loss.
        loss: Its entry of the table, one with e″.
        scale_of: s by x, the reduction and the number of axes that it sums over.
    """
    bend = loss.bend
    assert bend is not None
    options = op.signature.inputs_type._fields[4:]  # after x, t, reduction, ndim

    @op.jvp.vjp
    def jvp_vjp(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
        """With a, b the cotangents of ẏ, y,  d̄ = s (e′ b + e″ ḋ a)  and  ḋ̄ = s e′ a."""
        x, t, values = *_wide(inputs, inputs.x, inputs.t), values_of(inputs, options)
        a, b = (_spread(v, inputs, scale_of) for v in _wide(inputs, cotangents.y_dot, cotangents.y))
        d_dot = _difference(*_wide(inputs, inputs.x_dot, inputs.t_dot))
        slope = loss.slope_x(x, t, *values)
        along = None if a is None else slope * a
        bent = None if a is None or d_dot is None else bend(x, t, *values) * d_dot * a
        # A cotangent of y is shared by all tangents and counts once; one of ẏ counts for each.
        shared = None if b is None else slope * b
        x_bar, t_bar = (
            total(*cotangents_like((of_y, of_y_dot), (wide(v, inputs.x),) * 2))
            for v, of_y, of_y_dot in ((inputs.x, shared, bent), (inputs.t, _negative(shared), _negative(bent)))
        )
        return cotangents_like(
            (x_bar, t_bar, along, _negative(along)), (inputs.x, inputs.t, inputs.x_dot, inputs.t_dot)
        )

    @op.vjp.jvp
    def vjp_jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        """x̄ = s ȳ e′ and its tangent s (ȳ′ e′ + ȳ e″ ḋ);  t̄ = −x̄."""
        x, t, values = *_wide(primals, primals.x, primals.t), values_of(primals, options)
        y_bar, y_bar_dot = (_spread(v, primals, scale_of) for v in _wide(primals, primals.y_bar, tangents.y_bar))
        d_dot = _difference(*_wide(primals, tangents.x, tangents.t))
        slope = loss.slope_x(x, t, *values)
        bent = None if d_dot is None else bend(x, t, *values) * d_dot * y_bar
        x_bar, x_bar_dot = slope * y_bar, total(None if y_bar_dot is None else slope * y_bar_dot, bent)

        def bars(of_x: Tensor | None) -> tuple[Tensor | None, ...]:
            wanted = of_x if primals.needs[0] else None, _negative(of_x) if primals.needs[1] else None
            return cotangents_like(wanted, (primals.x, primals.t))

        return bars(x_bar), bars(x_bar_dot)

    @op.vjp.vjp
    def vjp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """With w = u − v, u and v the cotangents of x̄ and t̄,  ȳ̄ = s Σ e′ w  and  d̄ = s ȳ e″ w."""
        x, t, values = *_wide(inputs, inputs.x, inputs.t), values_of(inputs, options)
        w = _difference(*_wide(inputs, cotangents.x_bar, cotangents.t_bar))
        if w is None:
            return None, None, None
        y_bar_bar = d_bar = None
        if needs[0]:
            terms = loss.slope_x(x, t, *values) * w
            summed = terms.sum(list(range(-inputs.ndim, 0))) if inputs.ndim else terms
            y_bar_bar = summed * scale_of(inputs.x, inputs.reduction, inputs.ndim)
        if needs[1] or needs[2]:
            (y_bar,) = _wide(inputs, inputs.y_bar)
            d_bar = bend(x, t, *values) * _spread(y_bar, inputs, scale_of) * w
        bars = y_bar_bar, d_bar if needs[1] else None, _negative(d_bar) if needs[2] else None
        return cotangents_like(bars, (inputs.y_bar, inputs.x, inputs.t))


def _wide(inputs: Any, *tensors: Tensor | None) -> list[Any]:
    return [wide(tensor, inputs.x) for tensor in tensors]


def _spread(y_bar: Tensor | None, inputs: Any, scale_of: Callable[[Tensor, str, int], float]) -> Any:
    """s ȳ, with the axes that were summed over."""
    if y_bar is None:
        return None
    spread = y_bar[(..., *(None,) * inputs.ndim)] if inputs.ndim else y_bar
    return spread if inputs.reduction in ("none", "sum") else spread * scale_of(inputs.x, inputs.reduction, inputs.ndim)


def _difference(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else -b if a is None else a - b


def _negative(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else -tensor
