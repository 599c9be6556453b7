"""Layer norm, plain and modulated: the facts particular to it (every property is checked in test_every_op)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from torch_jvpvjp import ops

# ---- facts particular to the op --------------------------------------------------------------------------------------


def test_rows_have_no_mean_and_unit_variance(device: str) -> None:
    y = ops.layer_norm(3 * torch.randn(5, 64, dtype=torch.float64, device=device) + 7, (64,), eps=1e-12)
    torch.testing.assert_close(y.mean(-1), torch.zeros(5, dtype=torch.float64, device=device), atol=1e-12, rtol=0)
    torch.testing.assert_close(y.var(-1, correction=0), torch.ones(5, dtype=torch.float64, device=device))


def test_the_jacobian_is_symmetric_and_forgets_shift_and_scale_of_x(device: str) -> None:
    x = torch.randn(6, dtype=torch.float64, device=device)
    jacobian = torch.func.jacfwd(lambda t: ops.layer_norm(t, (6,), eps=1e-12))(x)
    torch.testing.assert_close(jacobian, jacobian.mT)
    for direction in (x, torch.ones_like(x)):
        torch.testing.assert_close(jacobian @ direction, torch.zeros_like(x), atol=1e-9, rtol=0)


def formula(t: Tensor) -> Tensor:
    centred = t - t.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5)


def bent(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """Reverse over forward."""
    return torch.func.grad(lambda t: (torch.func.jvp(f, (t,), (v,))[1] * v).sum())(x)


def pushed_twice(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """Forward over forward."""
    return torch.func.jvp(lambda t: torch.func.jvp(f, (t,), (v,))[1], (x,), (v,))[1]


@pytest.mark.parametrize("second", [bent, pushed_twice], ids=lambda f: f.__name__)
def test_right_where_pytorch_is_silently_wrong(second: Callable[..., Tensor], device: str) -> None:
    """PyTorch's tangent of layer norm treats mean and rstd as constants when it is differentiated again."""
    x, v = (torch.randn(5, dtype=torch.float64, device=device) for _ in range(2))
    exact = second(formula, x, v)
    torch.testing.assert_close(second(lambda t: ops.layer_norm(t, (5,)), x, v), exact)
    theirs = second(lambda t: F.layer_norm(t, (5,)), x, v)
    if torch.allclose(theirs, exact, rtol=1e-6):
        pytest.skip(f"ours is right, and PyTorch {torch.__version__} mended its own: take the line out of the README")
    assert (theirs - exact).norm() > 1e-2 * exact.norm()


def pulled_twice(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """Reverse over reverse."""
    return torch.func.grad(lambda t: (torch.func.grad(lambda s: (f(s) * v).sum())(t) * v).sum())(x)


def turned(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """Forward over reverse."""
    return torch.func.jvp(torch.func.grad(lambda s: (f(s) * v).sum()), (x,), (v,))[1]


@pytest.mark.parametrize("shape", [(12,), (100,), (4, 7)], ids=str)
@pytest.mark.parametrize("second", [bent, pushed_twice, pulled_twice, turned], ids=lambda f: f.__name__)
def test_the_second_order_at_constant_rows_is_zero(
    second: Callable[..., Tensor], shape: tuple[int, ...], device: str
) -> None:
    """What a rounded mean would leave of such a row is multiplied by r³, 3e7."""
    weight = torch.randn(shape, device=device)
    x = torch.tensor([3.3, 0.1, -0.7, 1234.567], device=device).view(-1, *(1,) * len(shape)).expand(4, *shape)
    v = torch.randn(4, *shape, device=device)
    zero = torch.zeros_like(v)
    assert torch.equal(second(lambda t: ops.layer_norm(t, shape, weight), x.contiguous(), v), zero)


@pytest.mark.parametrize("n", [12, 100])
def test_constant_rows_are_zero_beside_a_tangent_too(n: int, device: str) -> None:
    x = torch.tensor([3.3, 0.1, -0.7], device=device).view(-1, 1).expand(3, n).contiguous()
    y, _ = torch.func.jvp(lambda t: ops.layer_norm(t, (n,)), (x,), (torch.randn_like(x),))
    assert torch.equal(y, torch.zeros_like(x))


@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("w_dtype", [torch.bfloat16, torch.float32], ids=str)
def test_weights_of_another_dtype(x_dtype: torch.dtype, w_dtype: torch.dtype, device: str) -> None:
    x = torch.randn(3, 8, device=device).to(x_dtype).requires_grad_()
    w, b = (torch.randn(8, device=device).to(w_dtype).requires_grad_() for _ in range(2))
    y = ops.layer_norm(x, (8,), w, b)
    y.backward(torch.ones_like(y))
    assert y.dtype == x_dtype
    for leaf in (x, w, b):
        assert leaf.grad is not None and leaf.grad.dtype == leaf.dtype
    exact = formula(x.detach().double()) * w.detach().double() + b.detach().double()
    torch.testing.assert_close(y.detach().double(), exact, rtol=2e-2, atol=1e-2)
    assert b.grad is not None
    torch.testing.assert_close(b.grad.double(), torch.full((8,), 3.0, dtype=torch.float64, device=device))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter computes in NumPy
def test_nan_and_infinity_stay_in_their_rows(device: str) -> None:
    x = torch.randn(4, 8, device=device)
    x[0, 3], x[1, 2] = float("nan"), float("inf")
    y = ops.layer_norm(x, (8,))
    assert y[:2].isnan().all()
    torch.testing.assert_close(y[2:], F.layer_norm(x[2:], (8,)))


def test_large_half_precision_inputs_do_not_overflow(device: str) -> None:
    x = torch.tensor([[6e4, -6e4] * 4], dtype=torch.float16, device=device)
    torch.testing.assert_close(ops.layer_norm(x, (8,)), x.sign())


def test_empty_rows(device: str) -> None:
    x, w = torch.empty(3, 0, device=device), torch.empty(0, device=device)
    assert ops.layer_norm(x, (0,), w, w).shape == (3, 0)
    assert torch.func.grad(lambda x, w: ops.layer_norm(x, (0,), w, w).sum(), argnums=1)(x, w).shape == (0,)


# ---- modulated -------------------------------------------------------------------------------------------------------

SHAPES = [  # of shift and of scale, for x of (2, 3, 4)
    ((2, 4), (2, 1, 4)),
    ((2, 3, 4), (1, 3, 4)),
    ((4,), (2, 4)),
    ((1, 1, 4), (2, 3, 4)),
]


@pytest.mark.parametrize(("shift", "scale"), SHAPES, ids=str)
@pytest.mark.parametrize("name", ["layer", "rms"])
def test_modulation_is_that_of_each_sample(
    name: str, shift: tuple[int, ...], scale: tuple[int, ...], device: str
) -> None:
    x, t, s = (torch.randn(*n, dtype=torch.float64, device=device) for n in ((2, 3, 4), shift, scale))
    t, s = (v[:, None] if v.dim() == 2 else v for v in (t, s))

    def theirs(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True) if name == "layer" else x
        return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-6) * (1 + s) + t

    def ours(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        norm = ops.modulated_layer_norm if name == "layer" else ops.modulated_rms_norm
        return norm(x, t.reshape(shift), s.reshape(scale))

    primals, tangents = (x, t, s), tuple(torch.randn_like(v) for v in (x, t, s))
    torch.testing.assert_close(torch.func.jvp(ours, primals, tangents), torch.func.jvp(theirs, primals, tangents))
    y_bar = torch.randn_like(x)
    bars, exact = (torch.func.vjp(f, *primals)[1](y_bar) for f in (ours, theirs))
    torch.testing.assert_close(bars, exact)


def test_modulation_without_shift(device: str) -> None:
    x, s = torch.randn(2, 3, 4, device=device), torch.randn(2, 4, device=device)
    torch.testing.assert_close(ops.modulated_rms_norm(x, None, s), ops.modulated_rms_norm(x, torch.zeros_like(s), s))


# ---- one launch ------------------------------------------------------------------------------------------------------


def launches(run: Callable[[], object]) -> int:
    from torch_jvpvjp.triton_kernels._launch import count_launches

    with count_launches() as count:
        run()
    return count.total


PLAIN = (lambda x, w, b: ops.layer_norm(x, (8,), w, b), ((3, 4, 8), (8,), (8,)))
MODULATED = (ops.modulated_layer_norm, ((3, 4, 8), (3, 8), (3, 1, 8)))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("f", "shapes"), [PLAIN, MODULATED], ids=["plain", "modulated"])
def test_launches(f: Callable[..., Tensor], shapes: tuple[tuple[int, ...], ...], device: str) -> None:
    primals = tuple(torch.randn(*s, device=device) for s in shapes)
    assert launches(lambda: f(*primals)) == 1
    assert launches(lambda: torch.func.jvp(f, primals, primals)) == 1
    tangents = torch.randn(5, *shapes[0], device=device)
    push = torch.func.vmap(lambda t: torch.func.jvp(lambda x: f(x, *primals[1:]), primals[:1], (t,)))
    assert launches(lambda: push(tangents)) == 1
    pull = torch.func.vjp(lambda x: f(x, *primals[1:]), primals[0])[1]
    assert launches(lambda: torch.func.vmap(pull)(tangents)) == 1
    leaves = [p.clone().requires_grad_() for p in primals]
    y = f(*leaves)
    assert launches(lambda: y.sum().backward()) <= 3  # one pass, and one sum for each weight
    gradient = torch.func.grad(lambda x: f(x, *primals[1:]).square().sum())
    # The dual primal, and the fused Jᵀȳ with its tangent.
    assert launches(lambda: torch.func.jvp(gradient, primals[:1], primals[:1])) == 2


@pytest.mark.usefixtures("interpreted")
def test_cotangents_of_many_weight_tangents_of_one_weight(device: str) -> None:
    """Differentiating a batch of tangents with respect to these gives a cotangent to each."""
    x, w, b = (torch.randn(*s, device=device, dtype=torch.float64) for s in ((2, 3), (3,), (3,)))
    dots = torch.randn(4, 3, device=device, dtype=torch.float64)

    def loss(norm: Callable[..., Tensor], w: Tensor, b: Tensor, dots: Tensor) -> Tensor:
        push = lambda t: torch.func.jvp(lambda w, b: norm(x, w, b), (w, b), (t, 2 * t))[1]  # noqa: E731
        return torch.func.vmap(push)(dots).pow(3).sum()

    ours, theirs = (
        torch.func.grad(lambda *args, f=f: loss(f, *args), argnums=(0, 1, 2))(w, b, dots)
        for f in (lambda x, w, b: ops.layer_norm(x, (3,), w, b), lambda x, w, b: formula(x) * w + b)
    )
    torch.testing.assert_close(ours, theirs)


# ---- bad input -------------------------------------------------------------------------------------------------------

X, W = torch.randn(3, 4), torch.randn(4)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((X, (5,)), ValueError, r"normalized_shape must be the last sizes of input's shape \(3, 4\), .* got \(5,\)"),
        ((X, 4), TypeError, r"normalized_shape must be a tuple or list of ints, such as \(4,\), got 4"),
        ((X, (4,), torch.randn(3)), ValueError, r"weight must have shape \(4,\), as normalized_shape says, got \(3,\)"),
        (
            (X, (4,), W, torch.randn(3)),
            ValueError,
            r"bias must have shape \(4,\), as normalized_shape says, got \(3,\)",
        ),
        ((X, (4,), W, W.long()), TypeError, r"bias must be float16, .* got torch.int64"),
        ((X, (4,), W, W.to("meta")), ValueError, r"bias must be on input's device cpu, got meta"),
        ((X, (4,), 1.0), TypeError, r"weight must be a Tensor or None, got float"),
        ((X.long(), (4,)), TypeError, r"input must be float16, bfloat16, float32 or float64, got torch.int64"),
        ((X, (4,), W, W, float("-inf")), ValueError, r"eps must be finite, got -inf"),
        ((X, (4,), W, W, None), TypeError, r"eps must be a number, got NoneType"),
    ],
)
def test_bad_input(args: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"layer_norm: .*{message}"):
        ops.layer_norm(*args)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((X, W, torch.randn(3)), ValueError, r"scale must have the last size of x, 4, .* \(3, 4\); got \(3,\)"),
        ((X, torch.randn(2, 4), W), ValueError, r"shift must have the last size of x, 4, .* \(3, 4\); got \(2, 4\)"),
        ((X, torch.randn(1, 3, 4), W), ValueError, r"shift must have .* got \(1, 3, 4\)"),
        ((X, torch.tensor(1.0), W), ValueError, r"shift must have .* got \(\)"),
        ((X, W, 1.0), TypeError, r"scale must be a Tensor, got float"),
        ((X, W, W.to("meta")), ValueError, r"scale must be on x's device cpu, got meta"),
        ((torch.tensor(1.0), W, W), ValueError, r"x must have at least one axis"),
        ((X, W, W, float("nan")), ValueError, r"eps must be finite, got nan"),
    ],
)
@pytest.mark.parametrize("norm", [ops.modulated_layer_norm, ops.modulated_rms_norm], ids=lambda f: f.__name__)
def test_bad_modulation(
    norm: Callable[..., Tensor], args: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=rf"{norm.__name__}: .*{message}"):
        norm(*args)
