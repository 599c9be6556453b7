"""First, second and third order, each composition one function."""

import torch
import torch.autograd.forward_ad as fwAD  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp

from .point import (
    Composition,
    Point,
    TensorFunction,
    Tensors,
    along,
    argnums,
    grad_all,
    leaves_at,
    loss_of,
    weighed_sum,
)

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
    return grad_all(loss_of(f, p), p)(*p.primals)


def func_linearize(f: TensorFunction, p: Point) -> object:  # noqa: D103
    y, push = linearize(f, *p.primals)
    return y, push(*p.tangents[0])


def func_jacrev(f: TensorFunction, p: Point) -> object:  # noqa: D103
    return jacrev(f, argnums=argnums(p))(*p.primals)


def func_jacfwd(f: TensorFunction, p: Point) -> object:  # noqa: D103
    return jacfwd(f, argnums=argnums(p))(*p.primals)


def backward(f: TensorFunction, p: Point) -> object:  # noqa: D103
    xs = leaves_at(p)
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
        xs = leaves_at(p)
        results.append(torch.autograd.grad(f(*xs)[j], xs, y_bar, allow_unused=True, materialize_grads=True))
    return results


def batched_backward(f: TensorFunction, p: Point) -> object:  # noqa: D103
    xs = leaves_at(p)
    y = f(*xs)
    rows = tuple(torch.stack([c, -2 * c, c * c]) for c in p.cotangents)
    return torch.autograd.grad(y, xs, rows, is_grads_batched=True)


# ---- second order ----------------------------------------------------------------------------------------------------


def func_hessian(f: TensorFunction, p: Point) -> object:  # noqa: D103
    return hessian(loss_of(f, p), argnums=argnums(p))(*p.primals)


def jacrev_of_jacrev(f: TensorFunction, p: Point) -> object:  # noqa: D103
    inner = jacrev(loss_of(f, p), argnums=argnums(p))
    return jacrev(inner, argnums=argnums(p))(*p.primals)


def jacrev_of_jacfwd(f: TensorFunction, p: Point) -> object:  # noqa: D103
    inner = jacfwd(loss_of(f, p), argnums=argnums(p))
    return jacrev(inner, argnums=argnums(p))(*p.primals)


def jvp_of_jvp(f: TensorFunction, p: Point) -> object:  # noqa: D103
    return jvp(along(f, p.tangents[0]), p.primals, p.tangents[1])


def jvp_of_grad(f: TensorFunction, p: Point) -> object:  # noqa: D103
    return jvp(grad_all(loss_of(f, p), p), p.primals, p.tangents[0])


def grad_of_jvp(f: TensorFunction, p: Point) -> object:  # noqa: D103
    """A loss of value and tangent, differentiated in the primals and in the tangents, as flow-map losses are."""

    def loss(xs: Tensors, x_dots: Tensors) -> Tensor:
        return weighed_sum(jvp(f, xs, x_dots))

    return grad(loss, argnums=(0, 1))(p.primals, p.tangents[0])


def grad_of_tangent_only(f: TensorFunction, p: Point) -> object:  # noqa: D103
    return grad_all(lambda *xs: weighed_sum(along(f, p.tangents[0])(*xs)), p)(*p.primals)


def grad_of_grad(f: TensorFunction, p: Point) -> object:  # noqa: D103
    return grad_all(lambda *xs: weighed_sum(grad_all(loss_of(f, p), p)(*xs)), p)(*p.primals)


def double_backward(f: TensorFunction, p: Point) -> object:  # noqa: D103
    xs = leaves_at(p)
    cotangents = tuple(c.clone().requires_grad_() for c in p.cotangents)
    first = torch.autograd.grad(f(*xs), xs, cotangents, create_graph=True)
    return first, torch.autograd.grad(weighed_sum(first), (*xs, *cotangents), allow_unused=True, materialize_grads=True)


def backward_through_dual(f: TensorFunction, p: Point) -> object:  # noqa: D103
    """Loss of value and tangent of an fwAD dual; backward after the level is closed."""
    xs, x_dots = leaves_at(p), tuple(t.clone().requires_grad_() for t in p.tangents[0])
    with fwAD.dual_level():
        duals = [fwAD.make_dual(x, t) for x, t in zip(xs, x_dots, strict=True)]
        loss = weighed_sum([tuple(fwAD.unpack_dual(y)) for y in f(*duals)])
    return torch.autograd.grad(loss, (*xs, *x_dots))


def backward_with_stopped_tangent(f: TensorFunction, p: Point) -> object:  # noqa: D103
    """MeanFlow, sCM and rCM stop the gradient of the tangent: its cotangent is None."""
    xs = leaves_at(p)
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
    hvp = along(grad_all(loss_of(f, p), p), p.tangents[0])
    return grad_all(lambda *xs: weighed_sum(hvp(*xs)), p)(*p.primals)


def jvp_of_grad_of_jvp(f: TensorFunction, p: Point) -> object:  # noqa: D103
    inner = grad_all(lambda *xs: weighed_sum(along(f, p.tangents[0])(*xs)), p)
    return jvp(inner, p.primals, p.tangents[1])


def grad_of_grad_of_grad(f: TensorFunction, p: Point) -> object:  # noqa: D103
    second = grad_all(lambda *xs: weighed_sum(grad_all(loss_of(f, p), p)(*xs)), p)
    return grad_all(lambda *xs: weighed_sum(second(*xs)), p)(*p.primals)


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
