"""The vmap before functorch, which `is_grads_batched=True` uses, over ops for which it has no rule."""

from typing import Any

import pytest
import torch
from example_ops import fresh_name
from torch import Tensor

from torch_jvpvjp import DifferentiableOp, differentiable_op
from torch_jvpvjp.testing import check_op


def bilinear(*, rules: bool) -> DifferentiableOp:
    """x W by `einsum`, of which a batched tensor can be no operand."""

    @differentiable_op(fresh_name("bilinear"))
    def op(x: Tensor, w: Tensor, by: float = 1.0) -> Tensor:
        return by * torch.einsum("bi,ij->bj", x, w)

    if rules:

        @op.vjp
        def pull(cotangents: Any, inputs: Any) -> tuple[Tensor, Tensor]:
            y_bar = inputs.by * cotangents.y
            return torch.einsum("bj,ij->bi", y_bar, inputs.w), torch.einsum("bi,bj->ij", inputs.x, y_bar)

        @op.jvp
        def push(primals: Any, tangents: Any) -> tuple[Tensor, Tensor | None]:
            y = op.formula(*primals)
            of_x = None if tangents.x is None else op.formula(tangents.x, primals.w, primals.by)
            of_w = None if tangents.w is None else op.formula(primals.x, tangents.w, primals.by)
            return y, of_x if of_w is None else of_w if of_x is None else of_x + of_w

    return op


@pytest.mark.parametrize("rules", [False, True])
def test_batched_cotangents_of_rules_by_einsum(rules: bool) -> None:
    op = bilinear(rules=rules)
    x, w = (t.requires_grad_() for t in (torch.randn(3, 4).double(), torch.randn(4, 5).double()))
    cotangents = torch.randn(7, 3, 5).double().requires_grad_()
    found, expected = (
        torch.autograd.grad(f(x, w, 0.5), (x, w), cotangents, is_grads_batched=True) for f in (op, op.reference)
    )
    torch.testing.assert_close(found, expected)
    for first in (found, expected):
        assert first[0].shape == (7, 3, 4)
    jacobian = torch.autograd.functional.jacobian
    torch.testing.assert_close(jacobian(op, (x, w), vectorize=True), jacobian(op.reference, (x, w)))


def test_batched_cotangents_in_two_levels_and_differentiated_again() -> None:
    op = bilinear(rules=True)
    x, w = (t.requires_grad_() for t in (torch.randn(3, 4).double(), torch.randn(4, 5).double()))
    hessian = torch.autograd.functional.hessian
    for f in (lambda x, w: op(x, w).pow(3).sum(), lambda x, w: op(x.sin(), w).square().sum()):
        torch.testing.assert_close(hessian(f, (x, w), vectorize=True), hessian(f, (x, w)))
    inner, outer = torch.randn(2, 3, 5).double(), torch.randn(6, 3, 4).double()

    def first(f: Any, y_bars: Tensor) -> Tensor:
        return torch.autograd.grad(f(x, w), x, y_bars, is_grads_batched=True, create_graph=True)[0]

    for f in (op, op.reference):
        assert first(f, inner).shape == (2, 3, 4)
    found, expected = (
        torch.autograd.grad(first(f, inner), w, outer[:, None].expand(6, 2, 3, 4), is_grads_batched=True)
        for f in (op, op.reference)
    )
    torch.testing.assert_close(found, expected)


def test_an_error_of_the_formula_comes_through() -> None:
    @differentiable_op(fresh_name("unsound"))
    def unsound(x: Tensor) -> Tensor:
        return x.sin()

    @unsound.vjp
    def pull(cotangents: Any, inputs: Any) -> tuple[Tensor]:
        raise RuntimeError("no such pullback")

    x = torch.randn(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="no such pullback"):
        torch.autograd.grad(unsound(x), x, torch.randn(2, 3), is_grads_batched=True)


@pytest.mark.slow
def test_check_op_passes_rules_by_einsum() -> None:
    check_op(bilinear(rules=True), [(torch.randn(3, 4), torch.randn(4, 5))], backends=())
