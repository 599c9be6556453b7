"""A linear layer on a GPU: products by cuBLAS, everything pointwise in one Triton launch at each point of the tower."""

from typing import Any

import torch
from torch import Tensor

from .._batched import batched
from .._devices import triton_devices
from .._groups import group
from .._shapes import broadcast
from .activations import ACTIVATIONS, IDENTITY
from .maps import Slopes, Terms, project, project_tangents
from .points import Points, check_tangents, terms_of
from .rules import op

_DEVICES = triton_devices()


def stacks(rows: int, tangents: int, n_out: int) -> bool:
    """Whether [x; ẋ] Wᵀ shall be one product: if copying x and ẋ moves no more bytes than reading W once more.

    The copies read and write (1 + tangents)·rows·n_in elements, a second product reads n_out·n_in again. A product
    with more rows than that is bound by arithmetic, which stacking does not change. One row is a product with a
    vector, which libraries have a kernel of its own for.

    Args:
        rows: Rows of x.
        tangents: How many x have each.
        n_out: Rows of W.

    Returns:
        Whether to stack.
    """
    return rows > 1 and 2 * (1 + tangents) * rows <= n_out


def whole(tensor: Any) -> Any:
    """The operand without leading axes along which it has no memory of its own, where vmap expanded it."""
    if isinstance(tensor, Tensor):
        while tensor.dim() > 2 and (tensor.stride(0) == 0 or tensor.shape[0] == 1) and tensor.shape[0]:
            tensor = tensor[0]
    return tensor


def project_both(at: Terms, dots: Terms) -> tuple[Tensor, Tensor | None, bool]:
    """z (without b, if stacked) and ż without ḃ, and whether they were stacked: x and ẋ in one product with W."""
    x, weight, x_dot = at.x, at.weight, dots.x
    if x_dot is not None and weight.dim() == 2 and x.dim() == 2 and x_dot.dim() <= 3:
        rows, tangents = x.shape[-2], x_dot.shape[0] if x_dot.dim() == 3 else 1
        if stacks(rows, tangents, weight.shape[-2]):
            p = project(torch.cat((x.unsqueeze(0), x_dot.reshape(tangents, *x.shape))), weight, None)
            p_dot = p[1:] if x_dot.dim() == 3 else p[1]
            if dots.weight is not None:
                p_dot = p_dot + project(x, dots.weight, None)
            return p[0], p_dot, True
    return project(*at), project_tangents(at, dots._replace(bias=None)), False


def _slopes(
    activation: str,
    z: Tensor,
    z_dot: Tensor | None = None,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    wants_y: bool = False,
    wants_moved: bool = False,
    wants_first: bool = False,
    wants_second: bool = False,
) -> Slopes:
    """One launch."""
    from ...triton_kernels.pointwise import pointwise_jet

    function, options = ACTIVATIONS[activation]
    grouped = group([z, z_dot, a, b], [], 0)
    rows = grouped.rows
    results = pointwise_jet(
        function.kernel(*options),
        *rows,
        wants_y=wants_y,
        wants_p=wants_moved and z_dot is not None,
        wants_q=wants_first and a is not None,
        wants_bend=wants_second and (b is not None or (z_dot is not None and a is not None)),
    )
    sources = ((z,), (z, z_dot), (z, a), (z, z_dot, a, b))
    return Slopes(
        *(
            None if r is None else grouped.shared_result(r, broadcast(*(t.shape for t in s if t is not None)))
            for r, s in zip(results, sources, strict=True)
        )
    )


_points = Points(_slopes, reads_z=True, whole=whole)


def _jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    """One product with W where few rows make it worth it, and one launch for b, f, f′ and the tangents of all."""
    from ...triton_kernels.linear import linear_epilogue

    check_tangents(primals, tangents)
    at, dots = terms_of(primals), Terms(*tangents)
    x, weight, bias, activation = primals
    p, p_dot, stacked = project_both(at, dots)
    if activation == IDENTITY and not stacked:
        z_dot = p_dot
        if dots.bias is not None:
            z_dot = dots.bias if p_dot is None else p_dot + dots.bias
        shape = p.shape if z_dot is None else broadcast(p.shape, z_dot.shape)
        return (p, x.new_empty(0)), None if z_dot is None else z_dot.expand(shape)
    if p_dot is None and dots.bias is None:
        return (_slopes(activation, p, wants_y=True).y, p), None
    late = bias if stacked else None
    if p_dot is None:
        p_dot = torch.zeros_like(p[..., :1, :]).expand(p.shape)
    function, options = ACTIVATIONS[activation] if activation != IDENTITY else (None, ())
    name = IDENTITY if function is None else function.kernel(*options)[0]
    grouped = batched([p, p_dot, late, dots.bias], 2)
    own, own_dot, gain, gain_dot = grouped.tensors
    wants_z = stacked and activation != IDENTITY
    y, y_dot, z = linear_epilogue(
        name,
        own,
        own_dot,
        None if gain is None else gain.squeeze(1),
        None if gain_dot is None else gain_dot.squeeze(1),
        wants_z=wants_z,
    )
    shape = broadcast(*(t.shape for t in (p, late) if t is not None))
    kept = x.new_empty(0) if activation == IDENTITY else p
    if z is not None:
        kept = grouped.shared_result(z, shape)
    shown = broadcast(*(t.shape for t in (p, p_dot, late, dots.bias) if t is not None))
    return (grouped.shared_result(y, shape), kept), grouped.result(y_dot).expand(shown)


if _DEVICES:
    op.kernel(*_DEVICES)(_points.primal)
    op.jvp.kernel(*_DEVICES)(_jvp)
    op.vjp.kernel(*_DEVICES)(_points.vjp)
    op.jvp.vjp.kernel(*_DEVICES)(_points.jvp_vjp)
    op.vjp.jvp.kernel(*_DEVICES)(_points.vjp_jvp)
    op.vjp.vjp.kernel(*_DEVICES)(_points.vjp_vjp)
