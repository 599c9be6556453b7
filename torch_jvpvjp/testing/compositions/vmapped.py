"""``vmap`` in every nesting with the derivatives, each composition one function."""

from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from .point import (
    Composition,
    Point,
    TensorFunction,
    batch,
    batched,
    every_in_dims,
    grad_all,
    loss_of,
    weighed_sum,
)


def func_vmap(f: TensorFunction, p: Point) -> object:  # noqa: D103
    return [vmap(f, in_dims=d)(*batch(p.primals, d)) for d in every_in_dims(p)]


def vmap_out_dim(f: TensorFunction, p: Point) -> object:  # noqa: D103
    dims = (0,) * len(p.primals)
    return vmap(f, in_dims=dims, out_dims=-1)(*batch(p.primals, dims))


def vmap_of_vmap(f: TensorFunction, p: Point) -> object:  # noqa: D103
    """Outer and inner axes on different inputs, then both on all."""
    results = []
    for inner in every_in_dims(p)[:-1]:
        outer = tuple(None if d == 0 and any(e is None for e in inner) else 0 for d in inner)
        xs = batch(batch(p.primals, inner), outer)
        results.append(vmap(vmap(f, in_dims=inner), in_dims=outer)(*xs))
    return results


def vmap_of_jvp(f: TensorFunction, p: Point) -> object:  # noqa: D103
    """K tangents of one primal, K primals with one tangent, K of both, and each primal alone batched."""
    push = lambda xs, x_dots: jvp(f, xs, x_dots)  # noqa: E731
    every = (0,) * len(p.primals)
    many, many_dots = batch(p.primals, every), batch(p.tangents[0], every)
    results = [
        vmap(push, in_dims=(None, 0))(p.primals, many_dots),
        vmap(push, in_dims=(0, None))(many, p.tangents[0]),
        vmap(push, in_dims=(0, 0))(many, many_dots),
    ]
    for dims in every_in_dims(p)[:-1]:
        results.append(vmap(push, in_dims=(dims, every))(batch(p.primals, dims), many_dots))
        results.append(vmap(push, in_dims=(every, dims))(many, batch(p.tangents[0], dims)))
    return results


def vmap_of_jvp_one_tangent(f: TensorFunction, p: Point) -> object:  # noqa: D103
    """Each input alone has a tangent, under every subset of the primals batched."""
    results = []
    for i, x_dot in enumerate(p.tangents[0]):

        def push(*xs: Tensor, i: int = i, x_dot: Tensor = x_dot) -> object:
            return jvp(lambda xi: f(*xs[:i], xi, *xs[i + 1 :]), (xs[i],), (x_dot,))

        for dims in every_in_dims(p)[:-1]:
            results.append(vmap(push, in_dims=dims)(*batch(p.primals, dims)))
    return results


def jvp_of_vmap(f: TensorFunction, p: Point) -> object:  # noqa: D103
    results = []
    for dims in every_in_dims(p):
        results.append(jvp(vmap(f, in_dims=dims), batch(p.primals, dims), batch(p.tangents[0], dims)))
    return results


def vmap_of_vjp(f: TensorFunction, p: Point) -> object:  # noqa: D103
    """K cotangents of one primal; K of both; each primal alone batched."""
    pull = lambda xs, y_bars: vjp(f, *xs)[1](y_bars)  # noqa: E731
    y_bars = tuple(batched(c) for c in p.cotangents)
    every = (0,) * len(p.primals)
    results = [vmap(pull, in_dims=(None, 0))(p.primals, y_bars)]
    for dims in [every, *every_in_dims(p)[:-1]]:
        results.append(vmap(pull, in_dims=(dims, 0))(batch(p.primals, dims), y_bars))
        results.append(vmap(pull, in_dims=(dims, None))(batch(p.primals, dims), p.cotangents))
    return results


def vmap_of_grad(f: TensorFunction, p: Point) -> object:  # noqa: D103
    return [vmap(grad_all(loss_of(f, p), p), in_dims=d)(*batch(p.primals, d)) for d in every_in_dims(p)]


def grad_of_vmap(f: TensorFunction, p: Point) -> object:  # noqa: D103
    results = []
    for dims in every_in_dims(p):
        mapped = vmap(f, in_dims=dims)
        results.append(grad_all(lambda *xs, mapped=mapped: weighed_sum(mapped(*xs)), p)(*batch(p.primals, dims)))
    return results


def vmap_of_hvp(f: TensorFunction, p: Point) -> object:  # noqa: D103
    """K directions of one Hessian-vector product, forward over reverse."""
    every = (0,) * len(p.primals)
    hvp = lambda xs, x_dots: jvp(grad_all(loss_of(f, p), p), xs, x_dots)[1]  # noqa: E731
    return [
        vmap(hvp, in_dims=(None, 0))(p.primals, batch(p.tangents[0], every)),
        vmap(hvp, in_dims=(0, 0))(batch(p.primals, every), batch(p.tangents[0], every)),
    ]


def vmap_of_grad_of_jvp(f: TensorFunction, p: Point) -> object:  # noqa: D103
    every = (0,) * len(p.primals)
    pulled = lambda xs, x_dots: grad(lambda a, b: weighed_sum(jvp(f, a, b)), argnums=(0, 1))(xs, x_dots)  # noqa: E731
    return [
        vmap(pulled, in_dims=(None, 0))(p.primals, batch(p.tangents[0], every)),
        vmap(pulled, in_dims=(0, 0))(batch(p.primals, every), batch(p.tangents[0], every)),
    ]


def vmap_of_grad_of_grad(f: TensorFunction, p: Point) -> object:  # noqa: D103
    second = grad_all(lambda *xs: weighed_sum(grad_all(loss_of(f, p), p)(*xs)), p)
    dims = (0,) * len(p.primals)
    return vmap(second, in_dims=dims)(*batch(p.primals, dims))


VMAP: dict[str, Composition] = {
    "vmap": func_vmap,
    "vmap, out_dims=-1": vmap_out_dim,
    "vmap∘vmap": vmap_of_vmap,
    "vmap∘jvp": vmap_of_jvp,
    "vmap∘jvp, one tangent": vmap_of_jvp_one_tangent,
    "jvp∘vmap": jvp_of_vmap,
    "vmap∘vjp": vmap_of_vjp,
    "vmap∘grad": vmap_of_grad,
    "grad∘vmap": grad_of_vmap,
    "vmap∘hvp": vmap_of_hvp,
    "vmap∘grad∘jvp": vmap_of_grad_of_jvp,
    "vmap∘grad∘grad": vmap_of_grad_of_grad,
}
