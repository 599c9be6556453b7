"""The Triton kernels of the norms over last axes at the points of their tower that have one."""

from typing import Any

from torch import Tensor

from .._arithmetic import total
from .._batched import as_many
from .._devices import triton_devices
from .._groups import Grouped, group
from .._shapes import broadcast
from .rules import check_tangents, op

_DEVICES = triton_devices()


def _primal(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    normalized_ndim: int,
    eps: float,
    centred: bool,
    offset: float,
    rounded: bool,
) -> Tensor:
    """One program per block of rows: y."""
    from ...triton_kernels.norms import Norm, norm_forward

    grouped = group([x], [weight, bias], normalized_ndim)
    norm = Norm(eps, centred, offset, rounded)
    w, b = grouped.weights
    return grouped.row_result(norm_forward(grouped.rows[0], w, b, norm)[0])


def _jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    """One launch: y once, and ẏ for every tangent."""
    from ...triton_kernels.norms import norm_jvp

    check_tangents(primals, tangents)
    x, weight, bias = primals.input, primals.weight, primals.bias
    grouped = group([x, tangents.input], [weight, bias, tangents.weight, tangents.bias], primals.normalized_ndim)
    (row, row_dot), (w, b, w_dot, b_dot) = grouped.rows, grouped.weights
    y, y_dot, _, _ = norm_jvp(row, w, b, row_dot, w_dot, b_dot, norm_of(primals))
    plain = weight is None and bias is None
    shape = x.shape if plain else broadcast(*(t.shape for t in (x, weight, bias) if t is not None))
    return grouped.shared_result(y, shape), grouped.row_result(y_dot)


def vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """One launch for x̄ and partial sums of w̄ and b̄, and one each that adds those up in a fixed order."""
    return pull(inputs, cotangents.y, needs)


def pull(
    inputs: Any, y_bar: Any, needs: Any, carry: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Jᵀȳ, plus a carry of input's and y's shape in x̄."""
    from ...triton_kernels.norms import norm_vjp

    x, weight, bias = inputs.input, inputs.weight, inputs.bias
    grouped = group([x, y_bar, carry], [weight, bias], inputs.normalized_ndim)
    row, y_bar, carry = grouped.rows
    w, b = grouped.weights
    wanted = (needs[0], needs[1] and weight is not None, needs[2] and bias is not None)
    return _shaped(grouped, norm_vjp(y_bar, row, w, b, norm_of(inputs), wanted, carry=carry), (x, weight, bias))


def jvp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """One launch (and the sums of weight gradients) for the cotangents of primals and tangents."""
    a, b = cotangents.y_dot, cotangents.y
    if a is None:
        return (*pull(inputs, b, needs[:3]), None, None, None)
    # A cotangent of y is shared by all tangents and counts once; a cotangent of ẏ counts for each.
    together = b is None or b.shape == a.shape
    tangents = inputs.input_dot, inputs.weight_dot, inputs.bias_dot
    first, second, _ = second_order(inputs, tangents, a, b if together else None, (*needs[3:], *needs[:3], False))
    if not together:
        second = tuple(total(s, t) for s, t in zip(pull(inputs, b, needs[:3]), second, strict=True))
    return (*second, *(None if t is None else f for f, t in zip(first, tangents, strict=True)))


def vjp_jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """One launch (and the sums of weight gradients) for Jᵀȳ and its tangent."""
    needs = tuple(primals.needs)
    if tangents.input is None and tangents.weight is None:
        return pull(primals, primals.y_bar, needs), _pull_or_zero(primals, tangents.y_bar, needs)
    first, second, _ = second_order(
        primals,
        (tangents.input, tangents.weight, None),  # Jᵀȳ does not depend on b
        primals.y_bar,
        tangents.y_bar,
        (*needs, *needs, False),
        like_primals=True,
    )
    return first, second


def _pull_or_zero(inputs: Any, y_bar: Tensor | None, needs: Any) -> tuple[Tensor | None, ...]:
    return (None, None, None) if y_bar is None else pull(inputs, y_bar, needs)


def vjp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """One launch (and the sum of the weight gradient) for the cotangents of ȳ, x and w."""
    wants = (False, False, False, needs[1], needs[2], False, needs[0])  # nothing depends on b
    _, (x_second, w_second, _), y_dot = second_order(inputs, tuple(cotangents), inputs.y_bar, None, wants)
    return y_dot, x_second, w_second, None


def second_order(
    inputs: Any,
    tangents: tuple[Tensor | None, ...],
    a: Tensor,
    b: Tensor | None,
    wants: tuple[bool, ...],
    *,
    like_primals: bool = False,
) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...], Tensor | None]:
    """The second-order launcher on tensors that broadcast from the right: Jᵀa, Jᵀb + S and ẏ.

    Args:
        inputs: Primals and options.
        tangents: ẋ, ẇ and ḃ, each may be None.
        a: Cotangent of ẏ.
        b: Cotangent of y.
        wants: Whether three cotangents of tangents, three of primals, and ẏ are wanted.
        like_primals: Whether Jᵀa belongs to primals, not to tangents.

    Returns:
        Three cotangents shaped like the tangents (or the primals), three like the primals, and ẏ shaped like a.
    """
    from ...triton_kernels.norms import Second, norm_second_order

    primals = inputs.input, inputs.weight, inputs.bias
    x_dot, w_dot, b_dot = tangents
    grouped = group([primals[0], x_dot, a, b], [*primals[1:], w_dot, b_dot], inputs.normalized_ndim)
    (row, row_dot, a_row, b_row), (w, bias, w_dot, b_dot) = grouped.rows, grouped.weights
    if wants[1] or wants[2]:  # the cotangent of a tangent in groups is one for each group
        w, bias = as_many(w, w_dot), as_many(bias, b_dot)
    got = norm_second_order(row, w, bias, row_dot, w_dot, b_dot, a_row, b_row, norm_of(inputs), Second(*wants))
    likes = primals if like_primals else [p if t is None else t for t, p in zip(tangents, primals, strict=True)]
    y_dot = None if got.y_dot is None else grouped.row_result(got.y_dot, a)
    return _shaped(grouped, got[:3], likes), _shaped(grouped, got[3:6], primals), y_dot


def norm_of(inputs: Any) -> Any:
    """What the launchers want to know of a point's inputs."""
    from ...triton_kernels.norms import Norm

    return Norm(inputs.eps, inputs.centred, inputs.offset, inputs.rounded)


def _shaped(grouped: Grouped, bars: Any, likes: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x_bar, w_bar, b_bar = bars
    x, weight, bias = likes
    return (
        None if x_bar is None else grouped.row_result(x_bar, x),
        None if w_bar is None else grouped.weight_result(w_bar, weight),
        None if b_bar is None else grouped.weight_result(b_bar, bias),
    )


if _DEVICES:
    op.kernel(*_DEVICES)(_primal)
    op.jvp.kernel(*_DEVICES)(_jvp)
    op.vjp.kernel(*_DEVICES)(vjp)
    op.jvp.vjp.kernel(*_DEVICES)(jvp_vjp)
    op.vjp.jvp.kernel(*_DEVICES)(vjp_jvp)
    op.vjp.vjp.kernel(*_DEVICES)(vjp_vjp)
