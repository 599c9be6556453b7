"""Dynamic tanh: the facts particular to it (every property is checked in test_every_op)."""

from typing import Any

import pytest
import torch

from torch_jvpvjp import ops


def test_it_is_odd_bounded_and_linear_at_zero(device: str) -> None:
    x, alpha, w = (torch.randn(s, dtype=torch.float64, device=device) for s in ((5, 4), (), (4,)))
    torch.testing.assert_close(ops.dyt(-x, alpha, w), -ops.dyt(x, alpha, w))
    assert (ops.dyt(1e3 * x, alpha, w).abs() <= w.abs()).all()
    slope = torch.func.jvp(lambda x: ops.dyt(x, alpha, w), (torch.zeros_like(x),), (x,))[1]
    torch.testing.assert_close(slope, alpha * x * w)


def test_alpha_and_x_share_one_derivative(device: str) -> None:
    # y depends on α x alone:  α ∂y/∂α = Σ x ∂y/∂x.
    x, alpha, w, b = (torch.randn(s, dtype=torch.float64, device=device) for s in ((5, 4), (1,), (4,), (4,)))
    x_bar, alpha_bar = torch.func.grad(lambda x, a: ops.dyt(x, a, w, b).square().sum(), argnums=(0, 1))(x, alpha)
    torch.testing.assert_close(alpha * alpha_bar, (x * x_bar).sum().reshape(1))


def test_saturated_gradients_are_exact_zeros_and_no_nan(device: str) -> None:
    x = torch.tensor([[-1e4, 1e4, float("inf")]], device=device)
    slope = torch.func.grad(lambda x: ops.dyt(x, torch.ones((), device=device)).sum())(x)
    assert torch.equal(slope, torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_parameters_keep_their_dtype(dtype: torch.dtype, device: str) -> None:
    x = torch.randn(3, 4, device=device).to(dtype).requires_grad_()
    alpha, w = (torch.randn(s, dtype=torch.float64, device=device, requires_grad=True) for s in ((), (4,)))
    y = ops.dyt(x, alpha, w)
    y.sum().backward()
    assert y.dtype == dtype
    for t in (x, alpha, w):
        assert t.grad is not None and t.grad.dtype == t.dtype


def test_a_jacobian_of_no_rows_has_no_rows(device: str) -> None:
    x, alpha, w = torch.randn(0, 4, device=device), torch.randn((), device=device), torch.randn(4, device=device)
    assert torch.func.jacrev(ops.dyt, argnums=2)(x, alpha, w).shape == (0, 4, 4)


def test_vectors_of_a_batch_have_their_own_parameters(device: str) -> None:
    """A vector is one row: batches that vmap puts in front of x, α, w and b are not its rows."""
    x, w, b = (torch.randn(3, 4, dtype=torch.float64, device=device) for _ in range(3))
    primals = x, torch.randn(3, dtype=torch.float64, device=device), w, b
    tangents = tuple(torch.randn_like(t) for t in primals)

    def push(x: Any, alpha: Any, w: Any, b: Any, *dots: Any) -> Any:
        return torch.func.jvp(ops.dyt, (x, alpha, w, b), dots)

    def pull(x: Any, alpha: Any, w: Any, b: Any) -> Any:
        return torch.func.grad(lambda *args: ops.dyt(*args).sin().sum(), argnums=(0, 1, 2, 3))(x, alpha, w, b)

    for function, args in ((ops.dyt, primals), (push, (*primals, *tangents)), (pull, primals)):
        results = torch.func.vmap(function)(*args)
        single = [function(*(t[i] for t in args)) for i in range(3)]
        if function is ops.dyt:
            results, single = (results,), [(y,) for y in single]
        for result, *parts in zip(results, *single, strict=True):
            torch.testing.assert_close(result, torch.stack(parts))
    y, y_dot = push(*(t[0] for t in (*primals, *tangents)))
    assert y.shape == y_dot.shape == (4,)
    t = torch.tanh(primals[1][0] * x[0])
    moved = (1 - t * t) * (tangents[1][0] * x[0] + primals[1][0] * tangents[0][0])
    torch.testing.assert_close(y_dot, moved * w[0] + t * tangents[2][0] + tangents[3][0])


@pytest.mark.usefixtures("interpreted")
def test_launches(device: str) -> None:
    from torch_jvpvjp.triton_kernels._launch import count_launches

    x, alpha, w = torch.randn(3, 4, device=device), torch.randn((), device=device), torch.randn(4, device=device)
    primals, rows = (x, alpha, w, w), torch.randn(5, 3, 4, device=device)
    pull, pull_x = torch.func.vjp(ops.dyt, *primals)[1], torch.func.vjp(lambda x: ops.dyt(x, alpha, w, w), x)[1]
    push = torch.func.vmap(lambda t: torch.func.jvp(lambda x: ops.dyt(x, alpha, w, w), (x,), (t,)))
    for run, most in (
        (lambda: ops.dyt(*primals), 1),
        (lambda: torch.func.jvp(ops.dyt, primals, primals), 1),
        (lambda: push(rows), 1),
        (lambda: pull_x(x), 1),
        (lambda: torch.func.vmap(pull_x)(rows), 1),
        (lambda: pull(x), 4),  # and the sums of ᾱ, w̄ and b̄, where several programs share them
    ):
        with count_launches() as count:
            run()
        assert 1 <= count.total <= most


X, A, W = torch.randn(3, 4), torch.randn(()), torch.randn(4)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (([1.0], A), TypeError, r"x must be a Tensor, got list"),
        ((X, 0.5), TypeError, r"alpha must be a Tensor, got float"),
        ((X, A, 1.0), TypeError, r"weight must be a Tensor or None, got float"),
        ((X.long(), A), TypeError, r"x must be float16, .* got torch.int64"),
        ((X, A.to("meta")), ValueError, r"alpha must be on x's device cpu, got meta"),
        ((A, A), ValueError, r"x must have shape \(..., C\), got \(\)"),
        ((X, W), ValueError, r"alpha must be one number, .* got \(4,\)"),
        ((X, A, torch.randn(3)), ValueError, r"weight must have shape \(4,\) to match .* \(3, 4\), got \(3,\)"),
        ((X, A, W, torch.randn(1, 4)), ValueError, r"bias must have shape \(4,\) .* got \(1, 4\)"),
    ],
)
def test_bad_input(args: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"dyt: .*{message}"):
        ops.dyt(*args)
