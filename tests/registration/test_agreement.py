"""What kernels and rules return has the shape, dtype and device of the formula, by every way to call an op."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.registration.example_ops import fresh_name
from torch_jvpvjp import differentiable_op

X = torch.tensor([0.5, 1.0, 2.0])
WRONG: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "shape": (lambda y: y[None] + 0, r"shape \(1, (2, )?3\)"),
    "dtype": (lambda y: y.double(), "torch.float64"),
    "device": (lambda y: y.to("meta"), "on meta"),
}
WAYS: dict[str, Callable[[Any], Any]] = {
    "eager": lambda op: op(X),
    "recorded": lambda op: op(X.clone().requires_grad_()),
    "dispatched": lambda op: op.overload(X),
    "func.grad": lambda op: torch.func.grad(lambda x: op(x).sum())(X),
    "vmap": lambda op: torch.func.vmap(op)(X.expand(2, 3)),
    "compiled": lambda op: torch.compile(lambda x: op(x), backend="aot_eager")(X),
}


def square(x: Tensor) -> Tensor:
    return x * x


def expanding(op: Any) -> Any:
    return lambda info, in_dims, *args: (op.overload(*args), 0)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("way", WAYS)
def test_a_kernel_that_returns_something_else_is_refused(way: str, wrong: str) -> None:
    spoil, got = WRONG[wrong]
    op = differentiable_op(fresh_name("kernel"))(square)
    op.vmap(expanding(op))
    op.kernel("cpu")(lambda x: spoil(x * x))
    with pytest.raises(ValueError, match=rf"kernel.*must return y .*got .*{got}"):
        WAYS[way](op)
    with pytest.raises(ValueError, match="must return y"):  # not only the first time
        WAYS[way](op)


def test_a_kernel_is_compared_in_every_kind_of_call() -> None:
    op = differentiable_op(fresh_name("kinds"))(square)
    op.kernel("cpu")(lambda x: x * x if len(x) < 4 else x[:3] * 1)
    assert torch.equal(op(X), X * X)
    assert torch.equal(op(X[:2]), X[:2] ** 2)
    with pytest.raises(ValueError, match=r"shape \(5,\) and dtype torch.float32.*got shape \(3,\)"):
        op(torch.rand(5))


@pytest.mark.parametrize("wrong", ["shape", "dtype"])
@pytest.mark.parametrize("by", ["rule", "kernel"])
def test_a_jvp_whose_output_is_not_the_primals_is_refused(by: str, wrong: str) -> None:
    spoil, got = WRONG[wrong]

    def rule(primals: Any, tangents: Any) -> Any:
        return spoil(primals.x**2), spoil(2 * primals.x * tangents.x)

    op = differentiable_op(fresh_name("jvp"))(square)
    if by == "rule":
        op.jvp(rule)
    else:
        op.jvp(lambda primals, tangents: (primals.x**2, 2 * primals.x * tangents.x))
        op.jvp.kernel("cpu")(rule)
    ways: list[Callable[[Tensor], Any]] = [
        lambda x: torch.func.jvp(op, (x,), (x,)),
        *([torch.func.jacfwd(op)] if by == "rule" else []),  # which batches the formula
        torch.compile(lambda x: torch.func.jvp(op, (x,), (x,))[1], backend="aot_eager"),
    ]
    for way in ways:
        with pytest.raises((ValueError, RuntimeError), match=rf"must return y .*got .*{got}"):
            way(X)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("by", ["rule", "kernel"])
def test_a_cotangent_that_is_not_like_its_argument_is_refused(by: str, wrong: str) -> None:
    spoil, got = WRONG[wrong]

    def rule(cotangents: Any, inputs: Any) -> Any:
        return spoil(2 * inputs.x * cotangents.y)

    op = differentiable_op(fresh_name("vjp"))(square)
    if by == "rule":
        op.vjp(rule)
    else:
        op.vjp(lambda cotangents, inputs: 2 * inputs.x * cotangents.y)
        op.vjp.kernel("cpu")(rule)

    def loss(x: Tensor) -> Tensor:
        return op(x).sum()

    def backward(x: Tensor) -> Any:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(loss(x), x)

    compiled = torch.compile(loss, backend="aot_eager")
    ways: list[Callable[[Tensor], Any]] = [
        backward,
        torch.func.grad(loss),
        *([torch.func.hessian(loss)] if by == "rule" else []),  # which differentiates the formula
        lambda x: torch.autograd.grad(compiled(t := x.clone().requires_grad_()), t),
    ]
    for way in ways:
        with pytest.raises((ValueError, RuntimeError), match=f"for x a cotangent.*got.*{got}"):
            way(X)


def test_a_vmap_rule_may_ask_for_many_tangents_of_one_primal() -> None:
    op = differentiable_op(fresh_name("tangents"))(square)
    op.jvp(lambda primals, tangents: (primals.x**2, 2 * primals.x * tangents.x))
    op.jvp.vmap(lambda info, in_dims, x, x_dot: (op.jvp.op.overload(x, x_dot), (None, 0)))
    assert torch.equal(torch.func.jacfwd(op)(X), (2 * X).diag())


def test_a_formula_that_looks_at_data_says_nothing() -> None:
    @differentiable_op(fresh_name("data"))
    def op(x: Tensor) -> Tensor:
        return x * (2 if bool(x[0] > 0) else 3)

    op.kernel("cpu")(lambda x: x * 2)
    assert torch.equal(op(X), 2 * X)


def test_a_formula_is_compared_with_its_fake() -> None:
    op = differentiable_op(fresh_name("fake"))(square)
    op.fake(lambda x: x.new_empty(4))
    with pytest.raises(ValueError, match=r"must return y of shape \(4,\)"):
        op(X)


def test_what_the_formula_returns_may_go_by_the_default_dtype() -> None:
    def half(x: Tensor) -> Tensor:
        return x * 0.5

    op = differentiable_op("agreement::half")(half)
    op.kernel("cpu")(half)
    before = torch.get_default_dtype()
    assert op(torch.arange(3)).dtype == before
    torch.set_default_dtype(torch.float64 if before == torch.float32 else torch.float32)
    try:
        assert op(torch.arange(3)).dtype == torch.get_default_dtype() != before
    finally:
        torch.set_default_dtype(before)
