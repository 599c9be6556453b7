"""What a formula does behind PyTorch's back is refused, not differentiated wrongly."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from example_ops import fresh_name
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jvp, vmap

from torch_jvpvjp import DifferentiableOp, differentiable_op


@pytest.fixture
def x() -> Tensor:
    return torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)


def test_each_option_is_watched_for_random_numbers(x: Tensor) -> None:
    @differentiable_op(fresh_name("dropped"))
    def dropped(x: Tensor, p: float = 0.0) -> Tensor:
        return torch.nn.functional.dropout(x, p) if p else x * 1

    dropped(x)
    with pytest.raises(ValueError, match=r"draws random numbers"):
        dropped(x.requires_grad_(), 0.5)


def test_a_formula_that_only_its_derivative_runs_is_watched_too(x: Tensor) -> None:
    @differentiable_op(fresh_name("dropped"))
    def dropped(x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(x, 0.5)

    dropped.kernel("cpu")(lambda x: x.detach() * 1)
    with pytest.raises(ValueError, match=r"draws random numbers"):
        grad(lambda t: dropped(t).sum())(x)


def reading(kind: str, weight: Any) -> DifferentiableOp:
    """x ↦ w x with a weight that is found in different ways."""
    held = [weight]
    scale = torch.nn.Module()
    scale.weight = weight

    def scaled(x: Tensor) -> Tensor:
        return x * scale.weight

    @differentiable_op(fresh_name("reading"))
    def op(x: Tensor) -> Tensor:
        return {"module": scaled, "list": lambda t: t * held[0]}[kind](x)

    return op


@pytest.mark.parametrize("kind", ["module", "list"])
@pytest.mark.parametrize("needs", [False, True])
def test_weights_that_are_no_arguments_are_refused_however_they_are_found(kind: str, needs: bool, x: Tensor) -> None:
    op = reading(kind, torch.nn.Parameter(torch.ones(3, dtype=torch.float64)))
    with pytest.raises(ValueError, match=r"reads a tensor of shape \(3,\) from its surroundings that requires grad"):
        op(x.requires_grad_(needs))


def test_a_weight_may_come_to_require_grad_later(x: Tensor) -> None:
    weight = torch.ones(3, dtype=torch.float64)
    op = reading("list", weight)
    torch.testing.assert_close(op(x), x)
    weight.requires_grad_()
    with pytest.raises(ValueError, match=r"that requires grad"):
        op(x)


def test_duals_that_are_no_arguments_are_refused(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"belongs to a transform of torch.func, whose derivative would be lost"):
        jvp(lambda w: reading("list", w)(x), (x,), (x,))
    with (
        forward_ad.dual_level(),
        pytest.raises(ValueError, match=r"that has a tangent, whose derivative would be lost"),
    ):
        reading("list", forward_ad.make_dual(x, x))(x)


def test_a_module_that_is_lent_duals_is_noticed_although_it_was_watched_before(x: Tensor) -> None:
    scale = torch.nn.Linear(3, 3).double().requires_grad_(False)

    @differentiable_op(fresh_name("affine"))
    def affine(x: Tensor) -> Tensor:
        return scale(x)

    class Lent(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = scale

        def forward(self, x: Tensor) -> Tensor:
            return affine(x)

    torch.testing.assert_close(affine(x), scale(x))
    module = Lent()
    with pytest.raises(ValueError, match=r"reads a tensor of shape \(3, 3\).*belongs to a transform"):
        grad(lambda p: functional_call(module, p, (x,)).sum())(dict(module.named_parameters()))


def test_constants_and_transforms_of_its_own_are_fine(x: Tensor) -> None:
    table = torch.arange(3.0, dtype=torch.float64)

    @differentiable_op(fresh_name("cubic"))
    def cubic(x: Tensor) -> Tensor:
        return grad(lambda t: (t**3).sum())(x) * table * torch.tensor(2.0, dtype=torch.float64)

    torch.testing.assert_close(cubic(x), 6 * x**2 * table)
    torch.testing.assert_close(grad(lambda t: cubic(t).sum())(x), 12 * x * table)
    with pytest.raises(NotImplementedError, match=r"calls a transform of torch.func, which PyTorch does not allow"):
        jvp(cubic, (x,), (x,))


def test_a_formula_that_writes_into_its_argument_is_refused(x: Tensor) -> None:
    @differentiable_op(fresh_name("doubled"))
    def doubled(x: Tensor) -> Tensor:
        return x.mul_(2).sin()

    before = x.clone()
    with pytest.raises(ValueError, match=r"writes into its argument \(aten.mul_.Tensor\)"):
        doubled(x)
    torch.testing.assert_close(x, before)
    kernel = differentiable_op(fresh_name("doubled"))(plain_sine)
    kernel.kernel("cpu")(lambda x: x.mul_(2).sin())
    with pytest.raises(ValueError, match=r"the kernel for cpu writes into an argument"):
        kernel(x.clone())


def plain_sine(x: Tensor) -> Tensor:
    return x.sin()


def in_numpy(detach: bool) -> DifferentiableOp:
    @differentiable_op(fresh_name("in_numpy"))
    def op(x: Tensor) -> Tensor:
        return torch.from_numpy(np.sin((x.detach() if detach else x).numpy()))

    return op


def in_dual_level(op: DifferentiableOp, x: Tensor) -> None:
    with forward_ad.dual_level():
        op(forward_ad.make_dual(x, x))


@pytest.mark.parametrize("seen", [False, True], ids=["at once", "seen before"])
@pytest.mark.parametrize("detach", [False, True], ids=["plain", "detached"])
def test_what_leaves_pytorch_has_the_derivatives_it_is_given_and_no_others(detach: bool, seen: bool, x: Tensor) -> None:
    derivatives: list[Callable[[DifferentiableOp], object]] = [
        lambda op: jvp(op, (x,), (x,)),
        lambda op: grad(lambda t: op(t).sum())(x),
        lambda op: jacfwd(op)(x),
        lambda op: vmap(op)(x),
        lambda op: in_dual_level(op, x),
    ]
    for derivative in derivatives:
        op = in_numpy(detach)
        if seen:
            torch.testing.assert_close(op(x), x.sin())
        with pytest.raises(NotImplementedError, match=r"leaves PyTorch \(Tensor.numpy\)"):
            derivative(op)


@torch.library.custom_op("examined::squared", mutates_args=())
def squared(x: Tensor) -> Tensor:
    return x * x


squared.register_fake(torch.empty_like)
squared.register_autograd(
    lambda ctx, y_bar: 2 * y_bar * ctx.saved_tensors[0],
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


@pytest.mark.parametrize("seen", [False, True], ids=["at once", "seen before"])
def test_an_op_of_pytorchs_library_in_a_formula_is_not_differentiated_as_zero(seen: bool, x: Tensor) -> None:
    derivatives: list[Callable[[DifferentiableOp], object]] = [
        lambda op: jvp(lambda t: op(t, x), (x,), (x,)),
        lambda op: grad(lambda t: op(t, x).sum())(x),
        lambda op: jacfwd(lambda t: op(t, x))(x),
        lambda op: op(x.clone().requires_grad_(), x).sum().backward(),
        lambda op: in_dual_level(lambda t: op(t, x), x),
    ]
    for derivative in derivatives:

        @differentiable_op(fresh_name("squares"))
        def op(x: Tensor, y: Tensor) -> Tensor:
            return 3 * squared(x) * y.sin()

        if seen:
            torch.testing.assert_close(op(x, x), 3 * x * x * x.sin())
            _, tangent = jvp(lambda t, op=op: op(x, t), (x,), (x,))  # what squares stands beside the way
            torch.testing.assert_close(tangent, 3 * x * x * x.cos() * x)
        torch.testing.assert_close(vmap(op)(x, x), 3 * x * x * x.sin())
        with pytest.raises(
            NotImplementedError, match=r"calls examined::squared, whose derivative .* @op.jvp or @op.vjp"
        ):
            derivative(op)


def test_an_op_of_pytorchs_library_in_a_formula_has_the_derivatives_that_the_op_is_given(x: Tensor) -> None:
    @differentiable_op(fresh_name("squares"))
    def op(x: Tensor) -> Tensor:
        return 3 * squared(x)

    op.jvp(lambda p, t: (op(p.x), 6 * p.x * t.x))
    op.vjp(lambda c, i: 6 * c.y * i.x)
    torch.testing.assert_close(jacfwd(op)(x), (6 * x).diag())
    torch.testing.assert_close(jacfwd(grad(lambda t: op(t).sum()))(x), 6 * torch.eye(len(x), dtype=x.dtype))


def test_a_black_box_with_rules_works(x: Tensor) -> None:
    op = in_numpy(detach=True)
    op.jvp(lambda p, t: (op(p.x), p.x.cos() * t.x))
    op.vjp(lambda c, i: c.y * i.x.cos())
    op.fake(torch.empty_like)
    torch.testing.assert_close(jacfwd(op)(x), x.cos().diag())
    torch.testing.assert_close(jacfwd(grad(lambda t: op(t).sum()))(x), -x.sin().diag())
    torch.testing.assert_close(jvp(lambda t: jvp(op, (t,), (x,))[1], (x,), (x,))[1], -x.sin() * x * x)
    assert op(x.to("meta")).is_meta  # by the fake, also where there is no dispatcher on the way
