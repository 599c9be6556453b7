"""Gated residual: the facts particular to it (every property is checked in test_every_op)."""

from typing import Any

import pytest
import torch

from torch_jvpvjp import ops


@pytest.mark.parametrize(
    ("x_shape", "gate_shape", "as_if"),
    [
        ((2, 3, 4), (2, 4), (2, 1, 4)),
        ((2, 3, 5, 4), (2, 4), (2, 1, 1, 4)),
        ((2, 3, 4), (4,), (1, 1, 4)),
        ((2, 3, 4), (), (1, 1, 1)),
        ((2, 4), (2, 4), (2, 4)),
        ((2, 3, 4), (2, 3, 1), (2, 3, 1)),
        ((2, 3, 4), (2, 1, 1), (2, 1, 1)),
        ((2, 2, 2), (2, 2), (2, 1, 2)),
        ((2, 3, 4), (1, 3, 4), (1, 3, 4)),
        ((3,), (3,), (3,)),
        ((), (), ()),
    ],
    ids=str,
)
def test_what_the_axes_of_a_gate_mean(
    x_shape: tuple[int, ...], gate_shape: tuple[int, ...], as_if: tuple[int, ...], device: str
) -> None:
    x, h, gate = (torch.randn(s, dtype=torch.float64, device=device) for s in (x_shape, x_shape, gate_shape))
    ours, theirs = ([t.clone().requires_grad_() for t in (x, gate, h)] for _ in range(2))
    y = ops.gated_residual(*ours)
    expected = theirs[0] + theirs[1].reshape(as_if) * theirs[2]
    torch.testing.assert_close(y, expected)
    cotangent = torch.randn_like(x)
    for mine, other in zip(
        torch.autograd.grad(y, ours, cotangent), torch.autograd.grad(expected, theirs, cotangent), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_it_is_linear_in_the_branch_and_in_the_gate(device: str) -> None:
    x, h, gate = (torch.randn(s, dtype=torch.float64, device=device) for s in ((2, 3, 4), (2, 3, 4), (2, 4)))
    once = ops.gated_residual(x, gate, h) - x
    torch.testing.assert_close(ops.gated_residual(x, 2 * gate, h) - x, 2 * once)
    torch.testing.assert_close(ops.gated_residual(x, gate, 2 * h) - x, 2 * once)
    assert torch.equal(ops.gated_residual(x, torch.zeros_like(gate), h), x)


def test_x_keeps_its_dtype_whatever_the_gate_has(device: str) -> None:
    x = torch.randn(2, 3, 4, device=device).bfloat16()
    gate = torch.randn(2, 4, device=device, requires_grad=True)
    y = ops.gated_residual(x, gate, x)
    assert y.dtype == torch.bfloat16
    (gate_bar,) = torch.autograd.grad(y.float().sum(), gate)
    assert gate_bar.dtype == torch.float32
    torch.testing.assert_close(gate_bar, x.float().sum(1))


@pytest.mark.usefixtures("interpreted")
def test_launches(device: str) -> None:
    from torch_jvpvjp.triton_kernels._launch import count_launches

    x, gate = torch.randn(2, 3, 4, device=device), torch.randn(2, 4, device=device)
    primals, tangents = (x, gate, x), torch.randn(5, 2, 3, 4, device=device)
    push = torch.func.vmap(lambda t: torch.func.jvp(lambda x: ops.gated_residual(x, gate, x), (x,), (t,)))
    for run in (
        lambda: ops.gated_residual(*primals),
        lambda: torch.func.jvp(ops.gated_residual, primals, primals),
        lambda: push(tangents),
        lambda: torch.func.vjp(ops.gated_residual, *primals)[1](x) and None,
    ):
        with count_launches() as count:
            run()
        assert count.by_name["_push_kernel"] == 1 and count.total <= 3  # the pullback and the sum of its parts


X, GATE = torch.randn(2, 3, 4), torch.randn(2, 4)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((1.0, GATE, X), TypeError, r"x must be a Tensor, got float"),
        ((X, GATE, X.long()), TypeError, r"h must be float16, .* got torch.int64"),
        ((X, GATE.to("meta"), X), ValueError, r"gate must be on x's device cpu, got meta"),
        ((X, GATE, X[:1]), ValueError, r"h must have x's shape \(2, 3, 4\), got \(1, 3, 4\)"),
        ((X, torch.randn(3, 4), X), ValueError, r"gate must have shape .* x's shape \(2, 3, 4\), got \(3, 4\)"),
        ((X, torch.randn(3), X), ValueError, r"gate must have shape .* or \(4,\), .* got \(3,\)"),
        ((X, torch.randn(1, 2, 3, 4), X), ValueError, r"got \(1, 2, 3, 4\)"),
        (
            (X, torch.randn(1, 3, 1), X),
            ValueError,
            r"size 1 must be neighbours, got gate \(1, 3, 1\) for x \(2, 3, 4\)",
        ),
    ],
)
def test_bad_input(args: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"gated_residual: .*{message}"):
        ops.gated_residual(*args)
