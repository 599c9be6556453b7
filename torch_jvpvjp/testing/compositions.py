"""Every way of composing derivatives that an op must survive, each as one function.

A composition takes a function f of tensors with a tuple of tensors out, a point and directions, and returns tensors.
The checks run it once on the op and once on its reference, whose derivatives PyTorch takes itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as fwAD  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

from ..registration import _torch_private as private

TensorFunction = Callable[..., tuple[Tensor, ...]]
Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Point:
    """Where a function is differentiated, and along what.

    Attributes:
        primals: The point x.
        tangents: A direction ẋ at x, and a second and a third one.
        cotangents: Cotangents ȳ of the outputs.
    """

    primals: Tensors
    tangents: tuple[Tensors, Tensors, Tensors]
    cotangents: Tensors


Composition = Callable[[TensorFunction, Point], object]


def loss_of(f: TensorFunction, point: Point) -> Callable[..., Tensor]:
    """A scalar function with a second derivative of its own: Σ ⟨ȳ, y⟩ + ⟨ȳ, y²⟩ / 4.

    Args:
        f: The function.
        point: Its cotangents are the weights.

    Returns:
        The scalar function of the primals.
    """

    def loss(*xs: Tensor) -> Tensor:
        terms = [(c * y).sum() + 0.25 * (c * y * y).sum() for c, y in zip(point.cotangents, f(*xs), strict=True)]
        return torch.stack(terms).sum()

    return loss


def along(f: Callable[..., object], tangents: Sequence[Tensor]) -> Callable[..., object]:
    """The directional derivative x ↦ J(x) ẋ as a function of the point.

    Args:
        f: The function.
        tangents: The direction.

    Returns:
        The function whose value is the tangent of f.
    """
    return lambda *xs: jvp(f, xs, tuple(tangents))[1]


def _argnums(point: Point) -> tuple[int, ...]:
    return tuple(range(len(point.primals)))


def _grad(loss: Callable[..., Tensor], point: Point) -> Callable[..., object]:
    return grad(loss, argnums=_argnums(point))


def _leaves(point: Point) -> Tensors:
    return tuple(x.detach().clone().requires_grad_() for x in point.primals)


def _sum(value: object, weight: float = 1.0) -> Tensor:
    """A scalar that weighs every entry of a nest of tensors differently."""
    leaves = [t for t in private.tree_leaves(value) if isinstance(t, Tensor)]
    parts = [
        (t * (1 + weight * torch.arange(t.numel(), dtype=t.dtype, device=t.device).reshape(t.shape).cos())).sum()
        for t in leaves
    ]
    return torch.stack(parts).sum()


# ---- first order -----------------------------------------------------------------------------------------------------


def primal(f: TensorFunction, p: Point) -> object:  # noqa: D103 -- the name is the composition, here and below
    return f(*p.primals)


def func_jvp(f: TensorFunction, p: Point) -> object:  # noqa: D103
    return jvp(f, p.primals, p.tangents[0])


def func_jvp_one_tangent(f: TensorFunction, p: Point) -> object:  # noqa: D103
    """Each input alone has a tangent: the others are absent, not zero."""
    results = []
    for i, (x, x_dot) in enumerate(zip(p.primals, p.tangents[0], strict=True)):
        alone = lambda xi, i=i: f(*p.primals[:i], xi, *p.primals[i + 1 :])  # noqa: E731
        results.append(jvp(alone, (x,), (x_dot,)))
    return results


def forward_ad(f: TensorFunction, p: Point) -> object:  # noqa: D103
    with fwAD.dual_level():
        duals = [fwAD.make_dual(x, x_dot) for x, x_dot in zip(p.primals, p.tangents[0], strict=True)]
        return [tuple(fwAD.unpack_dual(y)) for y in f(*duals)]


def func_vjp(f: TensorFunction, p: Point) -> object:  # noqa: D103
    y, pull, *_ = vjp(f, *p.primals)
    return y, pull(p.cotangents)


def func_grad(f: TensorFunction, p: Point) -> object:  # noqa: D103
    return _grad(loss_of(f, p), p)(*p.primals)


def func_linearize(f: TensorFunction, p: Point) -> object:  # noqa: D103
    y, push = linearize(f, *p.primals)
    return y, push(*p.tangents[0])


def func_jacrev(f: TensorFunction, p: Point) -> object:  # noqa: D103
    return jacrev(f, argnums=_argnums(p))(*p.primals)


def func_jacfwd(f: TensorFunction, p: Point) -> object:  # noqa: D103
    return jacfwd(f, argnums=_argnums(p))(*p.primals)


def backward(f: TensorFunction, p: Point) -> object:  # noqa: D103
    xs = _leaves(p)
    torch.autograd.backward(f(*xs), p.cotangents)
    return [x.grad for x in xs]


def backward_one_input(f: TensorFunction, p: Point) -> object:  # noqa: D103
    """Each input alone requires grad."""
    results = []
    for i, x in enumerate(p.primals):
        leaf = x.detach().clone().requires_grad_()
        y = f(*p.primals[:i], leaf, *p.primals[i + 1 :])
        results.append(torch.autograd.grad(y, leaf, p.cotangents))
    return results


def backward_one_output(f: TensorFunction, p: Point) -> object:  # noqa: D103
    """Each output alone has a cotangent: the others are absent, not zero."""
    results = []
    for j, y_bar in enumerate(p.cotangents):
        xs = _leaves(p)
        results.append(torch.autograd.grad(f(*xs)[j], xs, y_bar, allow_unused=True, materialize_grads=True))
    return results


def batched_backward(f: TensorFunction, p: Point) -> object:  # noqa: D103
    xs = _leaves(p)
    y = f(*xs)
    rows = tuple(torch.stack([c, -2 * c, c * c]) for c in p.cotangents)
    return torch.autograd.grad(y, xs, rows, is_grads_batched=True)


# ---- second order ----------------------------------------------------------------------------------------------------


def func_hessian(f: TensorFunction, p: Point) -> object:  # noqa: D103
    return hessian(loss_of(f, p), argnums=_argnums(p))(*p.primals)


def jacrev_of_jacrev(f: TensorFunction, p: Point) -> object:  # noqa: D103
    inner = jacrev(loss_of(f, p), argnums=_argnums(p))
    return jacrev(inner, argnums=_argnums(p))(*p.primals)


def jacrev_of_jacfwd(f: TensorFunction, p: Point) -> object:  # noqa: D103
    inner = jacfwd(loss_of(f, p), argnums=_argnums(p))
    return jacrev(inner, argnums=_argnums(p))(*p.primals)


def jvp_of_jvp(f: TensorFunction, p: Point) -> object:  # noqa: D103
    return jvp(along(f, p.tangents[0]), p.primals, p.tangents[1])


def jvp_of_grad(f: TensorFunction, p: Point) -> object:  # noqa: D103
    return jvp(_grad(loss_of(f, p), p), p.primals, p.tangents[0])


def grad_of_jvp(f: TensorFunction, p: Point) -> object:  # noqa: D103
    """A loss of value and tangent, differentiated in the primals and in the tangents, as flow-map losses are."""

    def loss(xs: Tensors, x_dots: Tensors) -> Tensor:
        return _sum(jvp(f, xs, x_dots))

    return grad(loss, argnums=(0, 1))(p.primals, p.tangents[0])


def grad_of_tangent_only(f: TensorFunction, p: Point) -> object:  # noqa: D103
    return _grad(lambda *xs: _sum(along(f, p.tangents[0])(*xs)), p)(*p.primals)


def grad_of_grad(f: TensorFunction, p: Point) -> object:  # noqa: D103
    return _grad(lambda *xs: _sum(_grad(loss_of(f, p), p)(*xs)), p)(*p.primals)


def double_backward(f: TensorFunction, p: Point) -> object:  # noqa: D103
    xs = _leaves(p)
    cotangents = tuple(c.clone().requires_grad_() for c in p.cotangents)
    first = torch.autograd.grad(f(*xs), xs, cotangents, create_graph=True)
    return first, torch.autograd.grad(_sum(first), (*xs, *cotangents), allow_unused=True, materialize_grads=True)


def backward_through_dual(f: TensorFunction, p: Point) -> object:  # noqa: D103
    """Loss of value and tangent of an fwAD dual; backward after the level is closed."""
    xs, x_dots = _leaves(p), tuple(t.clone().requires_grad_() for t in p.tangents[0])
    with fwAD.dual_level():
        duals = [fwAD.make_dual(x, t) for x, t in zip(xs, x_dots, strict=True)]
        loss = _sum([tuple(fwAD.unpack_dual(y)) for y in f(*duals)])
    return torch.autograd.grad(loss, (*xs, *x_dots))


def backward_with_stopped_tangent(f: TensorFunction, p: Point) -> object:  # noqa: D103
    """MeanFlow, sCM and rCM stop the gradient of the tangent: its cotangent is None."""
    xs = _leaves(p)
    with fwAD.dual_level():
        duals = [fwAD.make_dual(x, t) for x, t in zip(xs, p.tangents[0], strict=True)]
        loss = torch.zeros((), dtype=xs[0].dtype, device=xs[0].device)
        for y in f(*duals):
            value, tangent = fwAD.unpack_dual(y)
            assert tangent is not None
            loss = loss + ((value + tangent.detach()) ** 2).sum()
    return torch.autograd.grad(loss, xs)


# ---- third order -----------------------------------------------------------------------------------------------------


def jvp_of_jvp_of_jvp(f: TensorFunction, p: Point) -> object:  # noqa: D103
    second = along(along(f, p.tangents[0]), p.tangents[1])
    return jvp(second, p.primals, p.tangents[2])


def grad_of_jvp_of_grad(f: TensorFunction, p: Point) -> object:  # noqa: D103
    hvp = along(_grad(loss_of(f, p), p), p.tangents[0])
    return _grad(lambda *xs: _sum(hvp(*xs)), p)(*p.primals)


def jvp_of_grad_of_jvp(f: TensorFunction, p: Point) -> object:  # noqa: D103
    inner = _grad(lambda *xs: _sum(along(f, p.tangents[0])(*xs)), p)
    return jvp(inner, p.primals, p.tangents[1])


def grad_of_grad_of_grad(f: TensorFunction, p: Point) -> object:  # noqa: D103
    second = _grad(lambda *xs: _sum(_grad(loss_of(f, p), p)(*xs)), p)
    return _grad(lambda *xs: _sum(second(*xs)), p)(*p.primals)


# ---- vmap in every nesting -------------------------------------------------------------------------------------------

BATCH = 3


def batched(tensor: Tensor, dim: int = 0) -> Tensor:
    """Three different copies of a tensor along a new axis.

    Args:
        tensor: Any tensor.
        dim: Where the new axis stands.

    Returns:
        The stack.
    """
    return torch.stack([tensor, 0.5 * tensor.flip(0) if tensor.dim() else 0.5 * tensor, tensor + 0.1], dim)


def _in_dims(p: Point) -> list[tuple[int | None, ...]]:
    """Every nonempty subset of the inputs batched, in front; and all of them batched at the back."""
    count = len(p.primals)
    subsets = [tuple(0 if mask >> i & 1 else None for i in range(count)) for mask in range(1, 2**count)]
    return [*subsets, (-1,) * count]


def _batch(tensors: Tensors, dims: tuple[int | None, ...]) -> Tensors:
    return tuple(t if d is None else batched(t, d) for t, d in zip(tensors, dims, strict=True))


def func_vmap(f: TensorFunction, p: Point) -> object:  # noqa: D103
    return [vmap(f, in_dims=d)(*_batch(p.primals, d)) for d in _in_dims(p)]


def vmap_out_dim(f: TensorFunction, p: Point) -> object:  # noqa: D103
    dims = (0,) * len(p.primals)
    return vmap(f, in_dims=dims, out_dims=-1)(*_batch(p.primals, dims))


def vmap_of_vmap(f: TensorFunction, p: Point) -> object:  # noqa: D103
    """Outer and inner axes on different inputs, then both on all."""
    results = []
    for inner in _in_dims(p)[:-1]:
        outer = tuple(None if d == 0 and any(e is None for e in inner) else 0 for d in inner)
        xs = _batch(_batch(p.primals, inner), outer)
        results.append(vmap(vmap(f, in_dims=inner), in_dims=outer)(*xs))
    return results


def vmap_of_jvp(f: TensorFunction, p: Point) -> object:  # noqa: D103
    """K tangents of one primal, K primals with one tangent, K of both, and each primal alone batched."""
    push = lambda xs, x_dots: jvp(f, xs, x_dots)  # noqa: E731
    every = (0,) * len(p.primals)
    many, many_dots = _batch(p.primals, every), _batch(p.tangents[0], every)
    results = [
        vmap(push, in_dims=(None, 0))(p.primals, many_dots),
        vmap(push, in_dims=(0, None))(many, p.tangents[0]),
        vmap(push, in_dims=(0, 0))(many, many_dots),
    ]
    for dims in _in_dims(p)[:-1]:
        results.append(vmap(push, in_dims=(dims, every))(_batch(p.primals, dims), many_dots))
        results.append(vmap(push, in_dims=(every, dims))(many, _batch(p.tangents[0], dims)))
    return results


def vmap_of_jvp_one_tangent(f: TensorFunction, p: Point) -> object:  # noqa: D103
    """Each input alone has a tangent, under every subset of the primals batched."""
    results = []
    for i, x_dot in enumerate(p.tangents[0]):

        def push(*xs: Tensor, i: int = i, x_dot: Tensor = x_dot) -> object:
            return jvp(lambda xi: f(*xs[:i], xi, *xs[i + 1 :]), (xs[i],), (x_dot,))

        for dims in _in_dims(p)[:-1]:
            results.append(vmap(push, in_dims=dims)(*_batch(p.primals, dims)))
    return results


def jvp_of_vmap(f: TensorFunction, p: Point) -> object:  # noqa: D103
    results = []
    for dims in _in_dims(p):
        results.append(jvp(vmap(f, in_dims=dims), _batch(p.primals, dims), _batch(p.tangents[0], dims)))
    return results


def vmap_of_vjp(f: TensorFunction, p: Point) -> object:  # noqa: D103
    """K cotangents of one primal; K of both; each primal alone batched."""
    pull = lambda xs, y_bars: vjp(f, *xs)[1](y_bars)  # noqa: E731
    y_bars = tuple(batched(c) for c in p.cotangents)
    every = (0,) * len(p.primals)
    results = [vmap(pull, in_dims=(None, 0))(p.primals, y_bars)]
    for dims in [every, *_in_dims(p)[:-1]]:
        results.append(vmap(pull, in_dims=(dims, 0))(_batch(p.primals, dims), y_bars))
        results.append(vmap(pull, in_dims=(dims, None))(_batch(p.primals, dims), p.cotangents))
    return results


def vmap_of_grad(f: TensorFunction, p: Point) -> object:  # noqa: D103
    return [vmap(_grad(loss_of(f, p), p), in_dims=d)(*_batch(p.primals, d)) for d in _in_dims(p)]


def grad_of_vmap(f: TensorFunction, p: Point) -> object:  # noqa: D103
    results = []
    for dims in _in_dims(p):
        mapped = vmap(f, in_dims=dims)
        results.append(_grad(lambda *xs, mapped=mapped: _sum(mapped(*xs)), p)(*_batch(p.primals, dims)))
    return results


def vmap_of_hvp(f: TensorFunction, p: Point) -> object:  # noqa: D103
    """K directions of one Hessian-vector product, forward over reverse."""
    every = (0,) * len(p.primals)
    hvp = lambda xs, x_dots: jvp(_grad(loss_of(f, p), p), xs, x_dots)[1]  # noqa: E731
    return [
        vmap(hvp, in_dims=(None, 0))(p.primals, _batch(p.tangents[0], every)),
        vmap(hvp, in_dims=(0, 0))(_batch(p.primals, every), _batch(p.tangents[0], every)),
    ]


def vmap_of_grad_of_jvp(f: TensorFunction, p: Point) -> object:  # noqa: D103
    every = (0,) * len(p.primals)
    pulled = lambda xs, x_dots: grad(lambda a, b: _sum(jvp(f, a, b)), argnums=(0, 1))(xs, x_dots)  # noqa: E731
    return [
        vmap(pulled, in_dims=(None, 0))(p.primals, _batch(p.tangents[0], every)),
        vmap(pulled, in_dims=(0, 0))(_batch(p.primals, every), _batch(p.tangents[0], every)),
    ]


def vmap_of_grad_of_grad(f: TensorFunction, p: Point) -> object:  # noqa: D103
    second = _grad(lambda *xs: _sum(_grad(loss_of(f, p), p)(*xs)), p)
    dims = (0,) * len(p.primals)
    return vmap(second, in_dims=dims)(*_batch(p.primals, dims))


FIRST_ORDER: dict[str, Composition] = {
    "primal": primal,
    "func.jvp": func_jvp,
    "func.jvp, one tangent": func_jvp_one_tangent,
    "fwAD": forward_ad,
    "vjp": func_vjp,
    "grad": func_grad,
    "linearize": func_linearize,
    "jacrev": func_jacrev,
    "jacfwd": func_jacfwd,
    "backward": backward,
    "backward, one input": backward_one_input,
    "backward, one output": backward_one_output,
    "backward, batched cotangents": batched_backward,
}
SECOND_ORDER: dict[str, Composition] = {
    "hessian": func_hessian,
    "jacrev∘jacrev": jacrev_of_jacrev,
    "jacrev∘jacfwd": jacrev_of_jacfwd,
    "jvp∘jvp": jvp_of_jvp,
    "jvp∘grad": jvp_of_grad,
    "grad∘jvp": grad_of_jvp,
    "grad∘tangent": grad_of_tangent_only,
    "grad∘grad": grad_of_grad,
    "double backward": double_backward,
    "backward through a dual": backward_through_dual,
    "backward, tangent stopped": backward_with_stopped_tangent,
}
THIRD_ORDER: dict[str, Composition] = {
    "jvp∘jvp∘jvp": jvp_of_jvp_of_jvp,
    "grad∘jvp∘grad": grad_of_jvp_of_grad,
    "jvp∘grad∘jvp": jvp_of_grad_of_jvp,
    "grad∘grad∘grad": grad_of_grad_of_grad,
}
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
EAGER: dict[str, Composition] = {**FIRST_ORDER, **SECOND_ORDER, **THIRD_ORDER, **VMAP}

# What one compiles is a transform of a function. A backward pass runs outside of the compiled region (its row compiles
# the function alone), and PyTorch has no double backward through a compiled function: compile(grad∘grad) is that.
OUTSIDE_OF_COMPILE = (
    "backward",
    "backward, one input",
    "backward, one output",
    "backward through a dual",
    "backward, tangent stopped",
)
NOT_COMPILED = ("double backward", "backward, batched cotangents")
