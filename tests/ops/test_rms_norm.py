"""RMS norm: the facts particular to it (every property is checked in test_every_op)."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from torch_jvpvjp import ops
from torch_jvpvjp.ops.rms_norm import op
from torch_jvpvjp.testing import check_op
from torch_jvpvjp.testing.cases import CASES

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# ---- facts particular to the op --------------------------------------------------------------------------------------


@pytest.mark.skipif(INTERPRETED, reason="on a CPU, where PyTorch's function may stand for the op")
@pytest.mark.parametrize("rows", [5, 5000])
def test_small_and_large_tensors_are_recorded_by_different_nodes_and_differentiated_alike(rows: int) -> None:
    x, w = torch.randn(rows, 16, requires_grad=True), torch.randn(16, requires_grad=True)
    y = ops.rms_norm(x, (16,), w, 1e-3)
    assert ("torch_jvpvjp" in type(y.grad_fn).__name__) == (rows == 5000)
    exact = [t.detach().double().requires_grad_() for t in (x, w)]
    inverse = torch.rsqrt(exact[0].square().mean(-1, keepdim=True) + 1e-3)
    found = [_twice(y, (x, w)), _twice(exact[0] * inverse * exact[1], exact)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def _twice(y: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a sum of powers, and those of the sum of their squares."""
    first = torch.autograd.grad(y.pow(3).sum(), tensors, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), tensors)
    return [g.detach() for g in (*first, *second)]


@pytest.mark.skipif(INTERPRETED, reason="on a CPU, where PyTorch's function may stand for the op")
def test_every_property_of_the_node_that_large_tensors_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[ops.rms_norm.__module__], "_SMALL", 0)
    case = CASES["rms_norm"]
    check_op(case.function, case.samples[:1], reference=case.reference, backends=())


def test_rows_have_unit_rms(device: str) -> None:
    y = ops.rms_norm(3 * torch.randn(5, 64, dtype=torch.float64, device=device), (64,), eps=1e-12)
    torch.testing.assert_close(y.square().mean(-1), torch.ones(5, dtype=torch.float64, device=device))


def test_the_jacobian_is_symmetric_and_forgets_the_scale_of_x(device: str) -> None:
    x = torch.randn(6, dtype=torch.float64, device=device)
    jacobian = torch.func.jacfwd(lambda t: ops.rms_norm(t, (6,), eps=1e-12))(x)
    torch.testing.assert_close(jacobian, jacobian.mT)
    torch.testing.assert_close(jacobian @ x, torch.zeros_like(x), atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_default_eps_is_that_of_pytorch(dtype: torch.dtype, device: str) -> None:
    x = (1e-4 * torch.randn(3, 32, device=device)).to(dtype)  # small enough for eps to decide
    torch.testing.assert_close(ops.rms_norm(x, (32,)), F.rms_norm(x, (32,)))


def test_order_of_rows_in_memory_is_kept(device: str) -> None:
    """As PyTorch's keeps it on a CPU; where other axes are innermost in memory, rows are written one after another."""
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64, device=device)
    f = lambda t: ops.rms_norm(t, (6,))  # noqa: E731
    for view in (x.transpose(0, 1), x.permute(2, 0, 1, 3), x.transpose(0, 2)[::2]):
        dense = view.contiguous()
        y, y_dot = torch.func.jvp(f, (view,), (view,))
        assert y.stride() == y_dot.stride() == torch.tanh(view).stride()
        torch.testing.assert_close((y, y_dot), torch.func.jvp(f, (dense,), (dense,)))
    last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(torch.func.jvp(f, (last,), (last,)), torch.func.jvp(f, (x,), (x,)))


@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("w_dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_weight_of_another_dtype(x_dtype: torch.dtype, w_dtype: torch.dtype, device: str) -> None:
    x = torch.randn(3, 8, device=device).to(x_dtype).requires_grad_()
    w = torch.randn(8, device=device).to(w_dtype).requires_grad_()
    y = ops.rms_norm(x, (8,), w, 1e-3)
    y.sum().backward()
    assert y.dtype == x_dtype
    assert x.grad is not None and x.grad.dtype == x_dtype
    assert w.grad is not None and w.grad.dtype == w_dtype
    exact = x.detach().double()
    exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + 1e-3)
    torch.testing.assert_close(y.detach().double(), exact * w.detach().double(), rtol=2e-2, atol=1e-2)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter computes in NumPy
def test_nan_and_infinity_propagate_as_in_pytorch(device: str) -> None:
    x = torch.randn(4, 8, device=device)
    x[0, 3], x[1, 2] = float("nan"), float("inf")
    torch.testing.assert_close(ops.rms_norm(x, (8,), eps=1e-3), F.rms_norm(x, (8,), eps=1e-3), equal_nan=True)


def test_autocast_leaves_it_alone_under_every_transform() -> None:
    x, w = torch.randn(3, 4), torch.randn(4)

    def derivatives(norm: Callable[..., Tensor]) -> list[Tensor]:
        f = lambda t: norm(t, (4,), w, 1e-3)  # noqa: E731
        gradient = torch.func.grad(lambda t: f(t).square().sum())
        return [f(x), torch.func.vmap(f)(x), *torch.func.jvp(f, (x,), (x,)), *torch.func.jvp(gradient, (x,), (x,))]

    with torch.autocast("cpu", torch.bfloat16):
        for ours, theirs in zip(derivatives(ops.rms_norm), derivatives(F.rms_norm), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_large_half_precision_inputs_do_not_overflow(device: str) -> None:
    y = ops.rms_norm(torch.full((2, 8), 6e4, dtype=torch.float16, device=device), (8,))
    torch.testing.assert_close(y, torch.ones_like(y))


# ---- one launch ------------------------------------------------------------------------------------------------------


@pytest.fixture
def xw(device: str) -> tuple[Tensor, Tensor]:
    return torch.randn(3, 4, 8, device=device), torch.randn(8, device=device)


def f(x: Tensor, w: Tensor) -> Tensor:
    return ops.rms_norm(x, (8,), w, 1e-3)


def launches(run: Callable[[], object]) -> int:
    from torch_jvpvjp.triton_kernels._launch import count_launches

    with count_launches() as count:
        run()
    return count.total


@pytest.mark.usefixtures("interpreted")
class TestLaunches:
    """How many kernels each derivative takes."""

    def test_func_jvp(self, xw: tuple[Tensor, Tensor]) -> None:
        assert launches(lambda: torch.func.jvp(f, xw, xw)) == 1

    def test_forward_ad(self, xw: tuple[Tensor, Tensor]) -> None:
        import torch.autograd.forward_ad as fwAD  # noqa: N812

        def run() -> None:
            with fwAD.dual_level():
                f(fwAD.make_dual(xw[0], xw[0]), xw[1])

        assert launches(run) == 1

    def test_tangents_of_one_primal(self, xw: tuple[Tensor, Tensor]) -> None:
        tangents = torch.randn(5, *xw[0].shape, device=xw[0].device)
        push = torch.func.vmap(lambda t: torch.func.jvp(lambda x: f(x, xw[1]), (xw[0],), (t,)))
        assert launches(lambda: push(tangents)) == 1

    def test_jacfwd(self, xw: tuple[Tensor, Tensor]) -> None:
        assert launches(lambda: torch.func.jacfwd(f)(xw[0][0, 0], xw[1])) == 1

    def test_vmapped_pairs(self, xw: tuple[Tensor, Tensor]) -> None:
        assert (
            launches(lambda: torch.func.vmap(lambda x: torch.func.jvp(lambda t: f(t, xw[1]), (x,), (x,)))(xw[0])) == 1
        )

    def test_compiled(self, xw: tuple[Tensor, Tensor]) -> None:
        torch.compiler.reset()
        push = torch.compile(lambda p, t: torch.func.jvp(f, p, t), fullgraph=True, backend="aot_eager")
        push(xw, xw)
        assert launches(lambda: push(xw, xw)) == 1
        torch.compiler.reset()

    def test_cotangents_of_one_primal(self, xw: tuple[Tensor, Tensor]) -> None:
        pull = torch.func.vjp(lambda x: f(x, xw[1]), xw[0])[1]
        rows = torch.randn(5, *xw[0].shape, device=xw[0].device)
        assert launches(lambda: torch.func.vmap(pull)(rows)) == 1

    def test_gradient_with_weight_is_one_pass_and_one_sum(self, xw: tuple[Tensor, Tensor]) -> None:
        x, w = (t.clone().requires_grad_() for t in xw)
        y = f(x, w)
        assert launches(lambda: y.sum().backward()) <= 2

    def test_second_order(self, xw: tuple[Tensor, Tensor]) -> None:
        gradient = torch.func.grad(lambda x: f(x, xw[1]).square().sum())
        # The dual primal, and the fused Jᵀȳ with its tangent.
        assert launches(lambda: torch.func.jvp(gradient, xw[:1], xw[:1])) == 2


# ---- bad input -------------------------------------------------------------------------------------------------------

X, W = torch.randn(3, 4), torch.randn(4)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((X, (5,)), ValueError, r"normalized_shape must be the last sizes of input's shape \(3, 4\), .* got \(5,\)"),
        ((X, (4, 3)), ValueError, r"normalized_shape must be .* \(3, 4\), .* got \(4, 3\)"),
        ((X, ()), ValueError, r"normalized_shape must be .* at least one, got \(\)"),
        ((X, (1, 3, 4)), ValueError, r"got \(1, 3, 4\)"),
        ((torch.tensor(1.0), (1,)), ValueError, r"input's shape \(\)"),
        ((X, 4), TypeError, r"normalized_shape must be a tuple or list of ints, such as \(4,\), got 4"),
        ((X, (4,), torch.randn(3)), ValueError, r"weight must have shape \(4,\), as normalized_shape says, got \(3,\)"),
        ((X, (4,), torch.randn(1, 4)), ValueError, r"weight must have shape \(4,\), .* got \(1, 4\)"),
        ((X, (4,), W.long()), TypeError, r"weight must be float16, .* got torch.int64"),
        ((X, (4,), 1.0), TypeError, r"weight must be a Tensor or None, got float"),
        ((X, (4,), W.to("meta")), ValueError, r"weight must be on input's device cpu, got meta"),
        ((X.long(), (4,)), TypeError, r"input must be float16, bfloat16, float32 or float64, got torch.int64"),
        ((X.cfloat(), (4,)), TypeError, r"got torch.complex64"),
        (([1.0, 2.0], (2,)), TypeError, r"input must be a Tensor, got list"),
        ((X, (4,), W, float("-inf")), ValueError, r"eps must be finite, got -inf"),
        ((X, (4,), W, float("nan")), ValueError, r"eps must be finite, got nan"),
        ((X, (4,), W, "1e-5"), TypeError, r"eps must be a number or None, got str"),
        ((X, (4,), W, True), TypeError, r"eps must be a number or None, got bool"),
    ],
)
def test_bad_input(args: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"rms_norm: .*{message}"):
        ops.rms_norm(*args)


def test_tangents_of_another_shape() -> None:
    options = (1, 1e-3, False, 0.0, False)
    for tangent in (torch.randn(4, 4), torch.randn(3, 5)):
        with pytest.raises(ValueError, match=r"norm: the tangent of input must have shape \(3, 4\), .* got \(\d, \d\)"):
            op.jvp.op(X, W, None, *options, tangent, None, None)
    with pytest.raises(ValueError, match=r"norm: the tangent of weight must have shape \(4,\), .* got \(3,\)"):
        op.jvp.op(X, W, None, *options, None, torch.randn(3), None)
    with pytest.raises(ValueError, match=r"norm: the tangent of weight must be absent, as weight is"):
        op.jvp.op(X, None, None, *options, X, W, None)
    with pytest.raises(RuntimeError, match=r"size"):  # PyTorch's own, before ours
        torch.func.jvp(lambda t: ops.rms_norm(t, (4,)), (X,), (torch.randn(4, 4),))


# ---- weight offset and casting ---------------------------------------------------------------------------------------


def llama_rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """What LlamaRMSNorm of transformers computes."""
    wide = x.to(torch.float32)
    return w * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def gemma_rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """What GemmaRMSNorm of transformers computes."""
    wide = x.float()
    unit = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (unit * (1.0 + w.float())).type_as(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_values_of_llama_and_gemma(dtype: torch.dtype, device: str) -> None:
    x, w = torch.randn(16, 64, device=device).to(dtype), (1 + 0.3 * torch.randn(64, device=device)).to(dtype)
    llama, gemma = llama_rms_norm(x, w, 1e-6), gemma_rms_norm(x, w - 1, 1e-6)
    rtol = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(ops.rms_norm(x, (64,), w, 1e-6, casting="llama"), llama, rtol=rtol, atol=0.0)
    torch.testing.assert_close(
        ops.rms_norm(x, (64,), w - 1, 1e-6, weight_offset=1.0, casting="gemma"), gemma, rtol=rtol, atol=0.0
    )
    if dtype == torch.float16:  # the interpreter truncates to bfloat16
        same = (ops.rms_norm(x, (64,), w, 1e-6, casting="llama") == llama).double().mean()
        assert same > 0.99 > (ops.rms_norm(x, (64,), w, 1e-6) == llama).double().mean()


def test_casting_leaves_derivatives_alone(device: str) -> None:
    x, w = (torch.randn(*s, device=device, dtype=torch.bfloat16) for s in ((3, 8), (8,)))
    dual = [
        torch.func.jvp(lambda x, w, c=c: ops.rms_norm(x, (8,), w, 1e-3, casting=c), (x, w), (x, w))[1]
        for c in ("torch", "llama")
    ]
    assert torch.equal(*dual)


def test_an_offset_is_a_weight_that_is_added_to(device: str) -> None:
    x, w = (torch.randn(*s, device=device, dtype=torch.float64) for s in ((3, 8), (8,)))
    ours = torch.func.jvp(lambda x, w: ops.rms_norm(x, (8,), w, weight_offset=1), (x, w), (x, w))
    theirs = torch.func.jvp(lambda x, w: F.rms_norm(x, (8,), 1 + w), (x, w), (x, w))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ops.rms_norm(x, (8,), weight_offset=1.0), F.rms_norm(x, (8,)))  # no weight: ones


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weight_offset": "1"}, TypeError, r"weight_offset must be a number, got str"),
        ({"weight_offset": W}, TypeError, r"weight_offset must be a number, got Tensor"),
        ({"casting": "qwen"}, ValueError, r"casting must be one of \('torch', 'llama', 'gemma'\), got 'qwen'"),
        ({"casting": "llama"}, ValueError, r"weight must have dtype torch.bfloat16, got torch.float32"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"rms_norm: .*{message}"):
        ops.rms_norm(X.bfloat16(), (4,), W, **options)
