"""Checkpoints of functions that refer to tensors: by objects, methods, partial functions and closures."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor

import torch_jvpvjp as tj

F64 = torch.float64


class Scaling:
    """What scales by a tensor that it holds; a cell of its method may not be assigned."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        return self.scaled(x)

    def scaled(self, x: Tensor) -> Tensor:
        return (x * self.weight).sin()


def not_assigned(weight: Tensor) -> Callable[[Tensor], Tensor]:
    def scaled(x: Tensor) -> Tensor:
        return (x * weight).sin() if x.dim() else later

    if weight.dim() > 1:
        later = weight
    return scaled


REFERRING = {
    "an object": Scaling,
    "a method": lambda weight: Scaling(weight).scaled,
    "a partial method": lambda weight: partial(Scaling(weight).scaled),
    "a partial function": lambda weight: partial(torch.addcmul, weight, weight),
    "a cell": not_assigned,
}


@pytest.mark.parametrize("of", REFERRING.values(), ids=REFERRING)
def test_tangents_of_what_a_function_refers_to_are_seen(of: Callable[[Tensor], Callable[[Tensor], Tensor]]) -> None:
    x, x_dot, weight, weight_dot = torch.randn(4, 3, dtype=F64)

    def gradients(*, kept: bool) -> tuple[Tensor, ...]:
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        with fwd.dual_level():
            x_dual, weight_dual = fwd.make_dual(leaves[0], x_dot), fwd.make_dual(leaves[1], weight_dot)
            function = of(weight_dual)
            y, y_dot = fwd.unpack_dual(function(x_dual) if kept else tj.checkpoint(function, x_dual))
        assert y_dot is not None
        return torch.autograd.grad((y.square() + y_dot.sin()).sum(), leaves)

    for found, expected in zip(gradients(kept=False), gradients(kept=True), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_an_attribute_that_is_gone_before_backward_stays_gone() -> None:
    x = torch.ones(3, requires_grad=True)
    with fwd.dual_level():
        scaling = Scaling(fwd.make_dual(torch.full((3,), 2.0), torch.ones(3)))
        y = tj.checkpoint(scaling, fwd.make_dual(x, torch.ones(3)))
        del scaling.weight
        (x_bar,) = torch.autograd.grad(fwd.unpack_dual(y)[0].sum(), x)
    torch.testing.assert_close(x_bar, 2 * (2 * x).cos())
    assert not vars(scaling)
