"""The linear layer: the facts particular to it (every property is checked in test_every_op)."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor
from torch.func import grad, hessian, jvp, vmap
from torch.profiler import ProfilerActivity, profile

from torch_jvpvjp import ops
from torch_jvpvjp.ops.linear import op
from torch_jvpvjp.ops.linear.kernels import stacks

ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda z: z,
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": lambda z: z * torch.sigmoid(z),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "mish": lambda z: z * torch.tanh(F.softplus(z)),
}
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def layer(
    m: int, n_in: int, n_out: int, device: str, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64).to(device=device, dtype=dtype)  # noqa: E731
    return draw(m, n_in), draw(n_out, n_in), draw(n_out)


# ---- facts particular to the op --------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("rows", [2, 5])
def test_every_activation_to_the_second_order(activation: str | None, rows: int, device: str) -> None:
    args, dots = layer(rows, 2, 12, device), layer(rows, 2, 12, device)
    theirs = lambda *t: ACTIVATIONS[activation](F.linear(*t))  # noqa: E731
    ours = lambda *t: ops.linear(*t, activation)  # noqa: E731
    y_bar = torch.randn(rows, 12, dtype=torch.float64, device=device)

    def derivatives(f: Callable[..., Tensor]) -> Iterator[Any]:
        yield torch.func.jvp(f, args, dots)
        yield torch.func.vjp(f, *args)[1](y_bar)
        gradient = torch.func.grad(lambda *t: (f(*t) * y_bar).square().sum(), argnums=(0, 1, 2))
        yield torch.func.jvp(gradient, args, dots)
        yield torch.func.grad(lambda t: (torch.func.jvp(f, t, dots)[1] * y_bar).sum())(args)
        yield torch.func.grad(lambda t: sum(g.square().sum() for g in gradient(*t)))(args)

    for one, other in zip(derivatives(ours), derivatives(theirs), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [None, "gelu", "tanh"])
def test_values_are_those_of_two_modules(dtype: torch.dtype, activation: str | None, device: str) -> None:
    x, w, b = layer(7, 16, 8, device, dtype)
    y = ops.linear(x, w, b, activation)
    exact = ACTIVATIONS[activation](F.linear(x.double(), w.double(), b.double()))
    error = (ACTIVATIONS[activation](F.linear(x, w, b)).double() - exact).abs().max()
    assert y.dtype == dtype
    assert (y.double() - exact).abs().max() <= 2 * (error + torch.finfo(dtype).eps * exact.abs().max())


def test_shapes_are_those_of_pytorch(device: str) -> None:
    _, w, b = layer(1, 3, 2, device)
    for shape in ((3,), (4, 3), (2, 4, 3), (0, 3), (2, 0, 3), (2, 1, 2, 3)):
        x = torch.randn(shape, dtype=torch.float64, device=device)
        torch.testing.assert_close(ops.linear(x, w, b), F.linear(x, w, b))
        # Of a weight of one axis, PyTorch takes no bias where input has more than one.
        torch.testing.assert_close(ops.linear(x, w[0], b[0]), F.linear(x, w[:1], b[:1]).squeeze(-1))
        torch.testing.assert_close(ops.linear(x, w[0]), F.linear(x, w[0]))
    for m, n_in, n_out in ((2, 0, 3), (2, 3, 0), (0, 0, 0)):
        args = tuple(t.requires_grad_() for t in layer(m, n_in, n_out, device))
        y = ops.linear(*args, "silu")
        torch.testing.assert_close(y, F.silu(F.linear(*args)))
        for ours, theirs in zip(
            torch.autograd.grad(y.sum(), args), torch.autograd.grad(F.silu(F.linear(*args)).sum(), args), strict=True
        ):
            torch.testing.assert_close(ours, theirs)
        assert torch.func.jvp(lambda *t: ops.linear(*t, "silu"), args, args)[1].shape == (m, n_out)


def test_a_batch_without_adjacent_columns(device: str) -> None:
    x, w, b = layer(6, 4, 3, device)
    x = x.reshape(2, 3, 4)
    for view in (x.transpose(0, 1), x.mT.contiguous().mT, x[:, ::2], x[:1].expand(2, 3, 4)):
        torch.testing.assert_close(ops.linear(view, w, b, "gelu"), F.gelu(F.linear(view, w, b)))


def test_autocast_casts_as_pytorch_does() -> None:
    x, w, b = (t.float() for t in layer(2, 3, 4, "cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        for activation in (None, "gelu"):
            ours, theirs = ops.linear(x, w, b, activation), ACTIVATIONS[activation](F.linear(x, w, b))
            assert ours.dtype == theirs.dtype == torch.bfloat16
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
        assert ops.linear(x, w.bfloat16(), b).dtype == torch.bfloat16
        y_dot = torch.func.jvp(lambda t: ops.linear(t, w, b, "tanh"), (x,), (x,))[1]
        expected = torch.func.jvp(lambda t: F.linear(t, w, b).tanh(), (x,), (x,))[1]
        torch.testing.assert_close(y_dot, expected, rtol=2e-2, atol=2e-2)
    weight = w.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.linear(x, weight, b, "gelu")
    y.sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter computes in NumPy
def test_nan_and_infinity_propagate_as_in_pytorch(device: str) -> None:
    x, w, b = layer(3, 2, 2, device)
    x[0, 0], x[1, 1] = float("nan"), float("inf")
    for activation in (None, "relu", "tanh"):
        expected = ACTIVATIONS[activation](F.linear(x, w, b))
        torch.testing.assert_close(ops.linear(x, w, b, activation), expected, equal_nan=True)


# ---- products and launches -------------------------------------------------------------------------------------------


def products(run: Callable[[], object]) -> int:
    """How many matrix products PyTorch runs."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as trace:
        run()
    return sum(event.count for event in trace.key_averages() if event.key in PRODUCTS)


def kept_elements(call: Callable[[], object]) -> int:
    """How many elements of memory backward keeps of what a call computes."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call()
    return sum(kept.values())


def test_a_weight_that_is_not_trained_keeps_no_input(device: str) -> None:
    x, x_dot = (torch.randn(50, 3, device=device, requires_grad=True) for _ in range(2))
    weight, weight_dot, bias = (torch.randn(*s, device=device) for s in ((2, 3), (2, 3), (2,)))
    small = 2 * weight.numel() + bias.numel() + 8  # the empty z and what stands for x take a few
    assert kept_elements(lambda: ops.linear(x, weight, bias)) <= small
    assert kept_elements(lambda: ops.linear(x, weight.clone().requires_grad_(), bias)) >= x.numel()
    assert kept_elements(lambda: ops.linear(x, weight, bias, "gelu")) >= x.numel()

    def moved(*dots: Tensor) -> Tensor:
        return jvp(lambda *a: ops.linear(a[0], a[1], bias), (x, weight), dots)[1]

    assert kept_elements(lambda: moved(x_dot, weight_dot)) <= small
    assert x.numel() <= kept_elements(lambda: moved(x_dot, weight_dot.requires_grad_())) <= x.numel() + small
    trained = weight.clone().requires_grad_()
    assert kept_elements(lambda: jvp(lambda t: ops.linear(t, trained), (x,), (x_dot,))) >= 2 * x.numel()


def test_no_derivative_misses_the_input_that_is_not_kept(device: str) -> None:
    """With respect to x alone, at first and second order and in every nesting, as F.linear of the same arguments."""
    x, v, weight, weight_dot = (
        torch.randn(*s, dtype=torch.float64, device=device) for s in ((4, 3), (4, 3), (2, 3), (2, 3))
    )

    def results(linear: Callable[..., Tensor]) -> list[Any]:
        def pulled(x: Tensor, weight: Tensor) -> Tensor:
            return grad(lambda t: linear(t, weight).pow(3).sum())(x)

        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(linear(leaf, weight).pow(3).sum(), leaf, create_graph=True)
        return [
            torch.autograd.grad(first.sin().sum(), leaf),
            jvp(pulled, (x, weight), (v, weight_dot)),
            grad(lambda w: pulled(x, w).sin().sum())(weight),
            vmap(pulled, in_dims=(None, 0))(x, torch.stack((weight, weight_dot))),
            vmap(pulled, in_dims=(1, None))(torch.stack((x, v), 1), weight),
            grad(lambda t: jvp(lambda p: linear(t, p), (weight,), (weight_dot,))[1].pow(3).sum())(x),
            grad(lambda t: jvp(lambda p: linear(p, weight), (x,), (t,))[1].pow(3).sum())(v),
            hessian(lambda t: linear(t, weight).pow(3).sum())(x),
        ]

    torch.testing.assert_close(results(ops.linear), results(F.linear))


def test_the_rule_for_stacking() -> None:
    assert stacks(2, 1, 8) and not stacks(2, 1, 7) and not stacks(1, 1, 1000)
    assert stacks(16, 3, 128) and not stacks(16, 4, 128)


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_few_rows_stack_primal_and_tangents_into_one_product(activation: str | None, device: str) -> None:
    for rows, wanted in ((2, 1), (9, 2)):
        x, w, b = layer(rows, 3, 16, device)
        f = lambda t: ops.linear(t, w, b, activation)  # noqa: B023, E731
        assert products(lambda: torch.func.jvp(f, (x,), (x,))) == wanted  # noqa: B023
        tangents = torch.randn(2, rows, 3, dtype=torch.float64, device=device)
        push = torch.func.vmap(lambda t: torch.func.jvp(f, (x,), (t,)))  # noqa: B023
        assert products(lambda: push(tangents)) == wanted  # noqa: B023


def test_cotangents_of_one_primal_are_one_product_with_the_weight(device: str) -> None:
    x, w, b = layer(4, 3, 2, device)
    pull = torch.func.vjp(lambda t: ops.linear(t, w, b, "gelu"), x)[1]
    rows = torch.randn(5, 4, 2, dtype=torch.float64, device=device)
    assert products(lambda: torch.func.vmap(pull)(rows)) == 1
    torch.testing.assert_close(torch.func.vmap(pull)(rows)[0], torch.stack([pull(row)[0] for row in rows]))


def launches(run: Callable[[], object]) -> int:
    from torch_jvpvjp.triton_kernels._launch import count_launches

    with count_launches() as count:
        run()
    return count.total


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("rows", [2, 5])
def test_one_launch_beside_the_products(rows: int, device: str) -> None:
    args = layer(rows, 2, 8, device)
    f = lambda *t: ops.linear(*t, "silu")  # noqa: E731
    assert launches(lambda: f(*args)) == 1
    assert launches(lambda: torch.func.jvp(f, args, args)) == 1
    y, pull = torch.func.vjp(f, *args)
    assert launches(lambda: pull(y)) == 1
    gradient = torch.func.grad(lambda *t: f(*t).square().sum(), argnums=(0, 1, 2))
    assert launches(lambda: torch.func.jvp(gradient, args, args)) == 2
    push = torch.func.vmap(lambda *t: torch.func.jvp(f, args, t))
    assert launches(lambda: push(*(torch.stack((t, 2 * t)) for t in args))) == 1
    assert launches(lambda: ops.linear(*args)) == 0


# ---- bad input -------------------------------------------------------------------------------------------------------

X, W, B = torch.randn(3, 4), torch.randn(2, 4), torch.randn(2)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (([1.0], W), TypeError, r"input must be a Tensor, got list"),
        ((X, None), TypeError, r"weight must be a Tensor, got NoneType"),
        ((X, W, 1.0), TypeError, r"bias must be a Tensor or None, got float"),
        ((X.long(), W), TypeError, r"input must be float16, .* got torch.int64"),
        ((X, W.cfloat()), TypeError, r"weight must be float16, .* got torch.complex64"),
        ((X, W.half()), TypeError, r"weight must have input's dtype torch.float32, got torch.float16"),
        ((X, W, B.double()), TypeError, r"bias must have input's dtype torch.float32, got torch.float64"),
        ((X, W.to("meta")), ValueError, r"weight must be on input's device cpu, got meta"),
        ((X, W[:, :3]), ValueError, r"weight must have shape \(out_features, 4\) or \(4,\) .* \(3, 4\), got \(2, 3\)"),
        ((X, W[None]), ValueError, r"weight must have shape .* got \(1, 2, 4\)"),
        ((X[0, 0], W), ValueError, r"weight must have shape .* input of shape \(\)"),
        ((X, W, B[:1]), ValueError, r"bias must have shape \(2,\), as weight's \(2, 4\) says, got \(1,\)"),
        ((X, W[0], B[:1]), ValueError, r"bias must have shape \(\), as weight's \(4,\) says, got \(1,\)"),
        ((X, W, B, torch.relu), TypeError, r"activation must be a str or None, got builtin_function_or_method"),
        ((X, W, B, "swish"), ValueError, r"activation must be None or one of \['gelu', .*\], got 'swish'"),
    ],
)
def test_bad_input(args: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"linear: .*{message}"):
        ops.linear(*args)


def test_tangents_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"linear: the tangent of input must have shape \(3, 4\), .* got \(3, 5\)"):
        op.jvp.op(X, W, None, "identity", torch.randn(3, 5), None, None)
    with pytest.raises(ValueError, match=r"linear: the tangent of bias must be absent, as bias is"):
        op.jvp.op(X, W, None, "identity", X, None, B[None])
