"""The kernels of the RMS norm of queries and keys: a launch for both up to the first order, one each at the second."""

from typing import Any

from torch import Tensor

from .._devices import triton_devices
from .._groups import Grouped, group
from .._norms import kernels as norm_kernels
from .._norms.cpu import pull as cpu_pull
from .._norms.cpu import push as cpu_push
from .._norms.cpu import value as cpu_value
from .._norms.rules import check_tangents
from .._shapes import broadcast
from .rules import around_jvp_vjp, around_vjp_jvp, around_vjp_vjp, op, pull_both, sides, tangents_of

_DEVICES = triton_devices()


def _primal(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    offset: float,
    rounded: bool,
) -> tuple[Tensor, Tensor]:
    """One launch for both."""
    from ...triton_kernels.norms import Norm, Side, pair_forward

    (q_rows, k_rows) = group([q], [q_weight], 1), group([k], [k_weight], 1)
    first, second = (Side(g.rows[0], g.weights[0]) for g in (q_rows, k_rows))
    y0, y1 = pair_forward(first, second, Norm(eps, False, offset, rounded))
    return q_rows.row_result(y0), k_rows.row_result(y1)


def _jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor, Tensor], tuple[Tensor | None, Tensor | None]]:
    """One launch for both, values and tangents."""
    from ...triton_kernels.norms import Norm, Side, pair_jvp

    grouped: list[Grouped] = []
    for side, dots in zip(sides(primals), tangents_of(tangents), strict=True):
        check_tangents(side, dots)
        grouped.append(group([side.input, dots.input], [side.weight, dots.weight], 1))
    first, second = (Side(g.rows[0], g.weights[0], g.rows[1], g.weights[1]) for g in grouped)
    both = pair_jvp(first, second, Norm(primals.eps, False, primals.offset, primals.rounded))
    values, dots = [], []
    for g, side, (y, y_dot) in zip(grouped, sides(primals), both, strict=True):
        shapes = [t.shape for t in (side.input, side.weight) if t is not None]
        values.append(g.shared_result(y, broadcast(*shapes)))
        dots.append(g.row_result(y_dot))
    return (values[0], values[1]), (dots[0], dots[1])


def _vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """One launch for both, and one for each weight that adds up partial sums in a fixed order."""
    from ...triton_kernels.norms import Norm, Side, pair_vjp

    if cotangents.y0 is None or cotangents.y1 is None:
        return pull_both(norm_kernels.vjp, cotangents, inputs, needs)
    both = sides(inputs)
    grouped = [group([s.input, bar], [s.weight], 1) for s, bar in zip(both, cotangents, strict=True)]
    first, second = (
        Side(g.rows[0], g.weights[0], y_bar=g.rows[1], needs_x=needs[i], needs_weight=needs[2 + i])
        for i, g in enumerate(grouped)
    )
    pulled = pair_vjp(first, second, Norm(inputs.eps, False, inputs.offset, inputs.rounded))
    x_bars, w_bars = [], []
    for g, side, (x_bar, w_bar) in zip(grouped, both, pulled, strict=True):
        x_bars.append(None if x_bar is None else g.row_result(x_bar, side.input))
        w_bars.append(None if w_bar is None else g.weight_result(w_bar, side.weight))
    return (*x_bars, *w_bars)


def _jvp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """One launch each, besides the sums of weight gradients."""
    return around_jvp_vjp(norm_kernels.jvp_vjp, norm_kernels.vjp, cotangents, inputs, needs)


def _vjp_jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """One launch each, besides the sums of weight gradients."""
    return around_vjp_jvp(norm_kernels.vjp_jvp, norm_kernels.vjp, primals, tangents)


def _vjp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """One launch each, besides the sums of weight gradients."""
    return around_vjp_vjp(norm_kernels.vjp_vjp, cotangents, inputs, needs)


def _cpu_primal(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    offset: float,
    rounded: bool,
) -> tuple[Tensor, Tensor]:
    """PyTorch's own norm of each."""
    options = None, 1, eps, False, offset, rounded
    return cpu_value(q, q_weight, *options), cpu_value(k, k_weight, *options)


def _cpu_jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor, Tensor], tuple[Tensor | None, Tensor | None]]:
    """The norm's JVP in as few ops as it takes, of each."""
    (y0, y0_dot), (y1, y1_dot) = (
        (cpu_value(*side), None) if dots.input is None and dots.weight is None else cpu_push(side, dots)
        for side, dots in zip(sides(primals), tangents_of(tangents), strict=True)
    )
    return (y0, y1), (y0_dot, y1_dot)


def _cpu_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """The norm's pullback in as few ops as it takes, of each."""
    return pull_both(lambda bars, side, needs: cpu_pull(bars.y, side, needs), cotangents, inputs, needs)


if _DEVICES:
    op.kernel(*_DEVICES)(_primal)
    op.jvp.kernel(*_DEVICES)(_jvp)
    op.vjp.kernel(*_DEVICES)(_vjp)
    op.jvp.vjp.kernel(*_DEVICES)(_jvp_vjp)
    op.vjp.jvp.kernel(*_DEVICES)(_vjp_jvp)
    op.vjp.vjp.kernel(*_DEVICES)(_vjp_vjp)
if "cpu" not in _DEVICES:  # in the interpreter, CPU tensors take the Triton kernels
    op.kernel("cpu")(_cpu_primal)
    op.jvp.kernel("cpu")(_cpu_jvp)
    op.vjp.kernel("cpu")(_cpu_vjp)
