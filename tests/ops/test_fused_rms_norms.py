"""RMS norm with a residual, and of queries and keys: the facts particular to them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so

from torch_jvpvjp import ops
from torch_jvpvjp.ops.add_rms_norm import rules


def launches(run: Callable[[], object]) -> int:
    from torch_jvpvjp.triton_kernels._launch import count_launches

    with count_launches() as count:
        run()
    return count.total


# ---- a residual ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_the_sum_is_pytorchs_and_its_norm_that_of_the_sum(dtype: torch.dtype, device: str) -> None:
    x, z, w = (torch.randn(*s, device=device).to(dtype) for s in ((4, 32), (4, 32), (32,)))
    y, total = ops.add_rms_norm(x, z, (32,), w)
    assert torch.equal(total, x + z)
    torch.testing.assert_close(y, ops.rms_norm(x + z, (32,), w))


def test_both_summands_have_one_gradient(device: str) -> None:
    x, z = (torch.randn(4, 8, device=device, dtype=torch.float64).requires_grad_() for _ in range(2))
    y, total = ops.add_rms_norm(x, z, (8,))
    x_bar, z_bar = torch.autograd.grad((y * y * y).sum() + total.sin().sum(), (x, z))
    assert torch.equal(x_bar, z_bar)
    s = (x + z).detach().requires_grad_()
    exact = torch.autograd.grad(F.rms_norm(s, (8,)).pow(3).sum() + s.sin().sum(), s)[0]
    torch.testing.assert_close(x_bar, exact)
    alone = torch.autograd.grad(ops.add_rms_norm(x, z.detach(), (8,))[1].sin().sum(), x)[0]  # nothing flows from y
    torch.testing.assert_close(alone, total.detach().cos())


def test_the_gradient_of_one_summand_is_pushed_forward(device: str) -> None:
    x, z, v = (torch.randn(4, 8, device=device, dtype=torch.float64) for _ in range(3))

    def loss(norm: Callable[..., Any]) -> Callable[[torch.Tensor], torch.Tensor]:
        return torch.func.grad(lambda x: norm(x).pow(3).sum())

    exact = torch.func.jvp(loss(lambda s: F.rms_norm(s, (8,))), (x + z,), (v,))[1]
    for norm in (lambda x: ops.add_rms_norm(x, z, (8,))[0], lambda x: ops.add_rms_norm(z, x, (8,))[0]):
        torch.testing.assert_close(torch.func.jvp(loss(norm), (x,), (v,))[1], exact)


def test_options_are_those_of_rms_norm(device: str) -> None:
    x, w = (torch.randn(*s, device=device, dtype=torch.bfloat16) for s in ((4, 32), (32,)))
    for casting, offset in (("llama", 0.0), ("gemma", 1.0)):
        options = {"weight_offset": offset, "casting": casting}
        expected = ops.rms_norm(x + x, (32,), w, 1e-6, **options)
        torch.testing.assert_close(ops.add_rms_norm(x, x, (32,), w, 1e-6, **options)[0], expected)
        for normalised in ops.qk_rms_norm(x + x, x + x, w, w, 1e-6, **options):
            torch.testing.assert_close(normalised, expected)


def test_autocast_adds_in_the_wider_dtype(device: str) -> None:
    """As PyTorch's sum does: a layer returns bfloat16 there, and the residual stays in float32."""
    x, z, w = torch.randn(4, 8, device=device, dtype=torch.bfloat16), torch.randn(4, 8, device=device), torch.ones(8)
    for one, other in ((x, z), (z, x)):
        with torch.autocast(device, torch.bfloat16):
            y, total = ops.add_rms_norm(one, other, (8,), w.to(device))
        assert y.dtype == total.dtype == torch.float32 and torch.equal(total, one + other)
        with pytest.raises(ValueError, match=r"residual must have the shape and dtype of input"):
            ops.add_rms_norm(one, other, (8,))


@pytest.mark.usefixtures("interpreted")
def test_launches_with_a_residual(device: str) -> None:
    x, w = torch.randn(3, 8, device=device), torch.randn(8, device=device)
    f = lambda x, z, w: ops.add_rms_norm(x, z, (8,), w)  # noqa: E731
    assert launches(lambda: f(x, x, w)) == 1
    assert launches(lambda: torch.func.jvp(f, (x, x, w), (x, x, w))) == 1
    assert launches(lambda: torch.func.jvp(lambda x: f(x, w.expand(3, 8), w), (x,), (x,))) == 1
    push = torch.func.vmap(lambda t: torch.func.jvp(lambda z: f(x, z, w), (x,), (t,)))
    assert launches(lambda: push(torch.randn(4, 3, 8, device=device))) == 1
    leaf = x.clone().requires_grad_()
    y, total = f(leaf, x, w)
    assert launches(lambda: torch.autograd.backward((y, total), (x, x))) == 1
    gradient = torch.func.grad(lambda x: sum(t.square().sum() for t in f(x, x, w)))
    assert launches(lambda: torch.func.jvp(gradient, (x,), (x,))) == 2


X, W = torch.randn(3, 4), torch.randn(4)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((X, X[:1], (4,)), ValueError, r"residual must have the shape and dtype of input, \(3, 4\) .* got \(1, 4\)"),
        ((X, X.double(), (4,)), ValueError, r"residual must have .* torch.float32, got \(3, 4\) and torch.float64"),
        ((X, X.to("meta"), (4,)), ValueError, r"residual must be on input's device cpu, got meta"),
        ((X, None, (4,)), TypeError, r"residual must be a Tensor, got NoneType"),
        ((X, X, (3,)), ValueError, r"normalized_shape must be the last sizes of input's shape \(3, 4\), .* got \(3,\)"),
        ((X, X, (4,), X), ValueError, r"weight must have shape \(4,\), as normalized_shape says, got \(3, 4\)"),
        ((X, X, (4,), W, float("nan")), ValueError, r"eps must be finite, got nan"),
    ],
)
def test_bad_residual(args: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"add_rms_norm: .*{message}"):
        ops.add_rms_norm(*args)


# ---- queries and keys ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q_shape", "k_shape"), [((2, 5, 4, 8), (2, 5, 1, 8)), ((2, 4, 5, 8), (2, 2, 7, 8)), ((8,), (3, 8))], ids=str
)
def test_heads_and_positions_may_differ(q_shape: tuple[int, ...], k_shape: tuple[int, ...], device: str) -> None:
    q, k, w, v = (torch.randn(*s, device=device) for s in (q_shape, k_shape, (8,), (8,)))
    q_hat, k_hat = ops.qk_rms_norm(q, k, w, v, 1e-6)
    torch.testing.assert_close(q_hat, F.rms_norm(q, (8,), w, 1e-6))
    torch.testing.assert_close(k_hat, F.rms_norm(k, (8,), v, 1e-6))


def test_views_of_one_projection(device: str) -> None:
    qkv = torch.randn(2, 5, 6, 8, device=device, dtype=torch.float64)
    q, k = qkv[:, :, :3], qkv[:, :, 3:5].transpose(1, 2)
    f = lambda q, k: ops.qk_rms_norm(q, k)  # noqa: E731
    g = lambda q, k: (F.rms_norm(q, (8,)), F.rms_norm(k, (8,)))  # noqa: E731
    torch.testing.assert_close(
        torch.func.jvp(f, (q, k), (k.new_ones(q.shape), k)), torch.func.jvp(g, (q, k), (k.new_ones(q.shape), k))
    )


@pytest.mark.usefixtures("interpreted")
def test_launches_of_queries_and_keys(device: str) -> None:
    q, k, w = (torch.randn(*s, device=device) for s in ((3, 4, 8), (3, 2, 8), (8,)))
    f = lambda q, k: ops.qk_rms_norm(q, k, w, w)  # noqa: E731
    assert launches(lambda: f(q, k)) == 1
    assert launches(lambda: torch.func.jvp(f, (q, k), (q, k))) == 1
    assert launches(lambda: torch.func.jvp(lambda q: f(q, k), (q,), (q,))) == 1
    leaves = [t.clone().requires_grad_() for t in (q, k)]
    y, z = f(*leaves)
    assert launches(lambda: torch.autograd.backward((y, z), (q, k))) == 1
    gradient = torch.func.grad(lambda q, k: sum(t.square().sum() for t in f(q, k)), argnums=(0, 1))
    assert launches(lambda: torch.func.jvp(gradient, (q, k), (q, k))) == 3  # the duals, and one for each


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((X, torch.randn(3, 5)), ValueError, r"k must have the last size and dtype of q, .* \(3, 5\) and \(3, 4\)"),
        ((X, X.double()), ValueError, r"k must have .* torch.float64 and torch.float32"),
        ((X, torch.tensor(1.0)), ValueError, r"k must have .* \(\) and \(3, 4\)"),
        ((X, X.to("meta")), ValueError, r"k must be on q's device cpu, got meta"),
        ((X, X.tolist()), TypeError, r"k must be a Tensor, got list"),
        (
            (X, X, torch.randn(3)),
            ValueError,
            r"q_weight must have shape \(4,\), as the last size of q says, got \(3,\)",
        ),
        ((X, X, None, W.to("meta")), ValueError, r"k_weight must be on q's device cpu, got meta"),
        ((X, X, None, None, float("-inf")), ValueError, r"eps must be finite, got -inf"),
    ],
)
def test_bad_heads(args: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"qk_rms_norm: .*{message}"):
        ops.qk_rms_norm(*args)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("in_dims", [(0, None, None), (None, 0, None), (None, None, 0), (None, 0, 0)])
def test_forward_mode_over_vmap_of_some_arguments(in_dims: tuple[int | None, ...], which: int, device: str) -> None:
    """The tangent of s has the axis of a batch that its own argument lacks."""
    shapes = [(2, 8) if i < 2 else (8,) for i in range(3)]
    sizes = [shape if dim is None else (3, *shape) for dim, shape in zip(in_dims, shapes, strict=True)]
    args = [torch.randn(size, device=device) for size in sizes]
    dot = torch.randn_like(args[which])
    f = lambda x, z, w: ops.add_rms_norm(x, z, (8,), w)  # noqa: E731

    def push(h: Callable[..., Any]) -> Any:
        return torch.func.jvp(lambda t: h(*args[:which], t, *args[which + 1 :]), (args[which],), (dot,))

    def one_by_one(*some: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = [f(*(t if dim is None else t[i] for t, dim in zip(some, in_dims, strict=True))) for i in range(3)]
        y, total = zip(*rows, strict=True)
        return torch.stack(y), torch.stack(total)

    (y, total), (y_dot, total_dot) = push(torch.vmap(f, in_dims))
    (y_one, total_one), (y_dot_one, total_dot_one) = push(one_by_one)
    for found, expected in ((y, y_one), (y_dot, y_dot_one)):
        torch.testing.assert_close(found, expected)
    for found, expected in ((total, total_one), (total_dot, total_dot_one)):
        torch.testing.assert_close(found.expand_as(expected), expected)


def test_the_formula_gives_the_tangent_of_s_its_axes() -> None:
    x, z = torch.randn(2, 8), torch.randn(3, 2, 8)
    primals = rules.op.signature.inputs_type(x, z, None, 1, 1e-6, 0.0, False)
    (_, total), (_, total_dot) = rules.op.jvp.op.formula(primals, rules.op.signature.tangents_type(x, None, None))
    assert total_dot.shape == total.shape
