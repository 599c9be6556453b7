"""Elementwise losses: what is particular to them (every property is checked in test_every_op)."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad

from torch_jvpvjp.ops._native import without_native
from torch_jvpvjp.ops.huber_loss import huber_loss
from torch_jvpvjp.ops.js_div import js_div
from torch_jvpvjp.ops.kl_div import kl_div
from torch_jvpvjp.ops.mse_loss import mse_loss


def gradients(loss: Callable[..., Tensor], *xs: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in xs]
    y = loss(*leaves)
    return [y.detach(), *torch.autograd.grad(y.sum(), leaves)]


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_of_a_difference_are_those_of_pytorch(reduction: str, weighted: bool, device: str) -> None:
    x, t, w = torch.randn(3, 4, 5, dtype=torch.float64, device=device)
    operands = (x, t, w.exp()) if weighted else (x, t)
    for ours, theirs, options in ((mse_loss, F.mse_loss, {}), (huber_loss, F.huber_loss, {"delta": 0.7})):

        def call(f: Any, x: Tensor, t: Tensor, w: Tensor | None = None, options: dict[str, Any] = options) -> Tensor:
            return f(x, t, reduction=reduction, weight=w, **options)

        torch.testing.assert_close(
            gradients(lambda *a, f=ours: call(f, *a), *operands), gradients(lambda *a, f=theirs: call(f, *a), *operands)
        )


@pytest.mark.filterwarnings("ignore:reduction:UserWarning")  # PyTorch recommends batchmean
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
def test_kl_div_is_that_of_pytorch_where_the_target_is_zero_too(reduction: str, device: str) -> None:
    x = torch.randn(3, 4, dtype=torch.float64, device=device).log_softmax(-1)
    t = torch.tensor([[0, 1, 0, 0], [0.5, 0, 0.25, 0.25], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64, device=device)
    ours = gradients(lambda a, b: kl_div(a, b, reduction), x, t)
    theirs = gradients(lambda a, b: F.kl_div(a, b, reduction=reduction), x, t)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert ours[0].isfinite().all() and ours[1].isfinite().all()


@pytest.mark.parametrize("log_target", [False, True])
def test_the_batchmean_of_scalars_is_pytorch_s(log_target: bool, device: str) -> None:
    x, t = torch.tensor(-0.3, device=device), torch.tensor(0.4, device=device)
    ours = lambda a, b: kl_div(a, b, "batchmean", log_target)  # noqa: E731
    theirs = lambda a, b: F.kl_div(a, b, reduction="batchmean", log_target=log_target)  # noqa: E731
    torch.testing.assert_close(ours(x, t), theirs(x, t))
    torch.testing.assert_close(torch.func.jvp(ours, (x, t), (t, x)), torch.func.jvp(theirs, (x, t), (t, x)))
    torch.testing.assert_close(js_div(x, x.exp()), torch.zeros_like(x))


@pytest.mark.parametrize("loss", [mse_loss, huber_loss, kl_div, js_div])
def test_losses_lie_in_memory_as_their_input_does(loss: Callable[..., Tensor], device: str) -> None:
    x, t = torch.rand(2, 2, 3, 4, 5, device=device) + 0.1
    with without_native():
        for view in (x.to(memory_format=torch.channels_last), x.permute(3, 1, 0, 2)):
            other = t.reshape(view.shape)
            y, y_dot = torch.func.jvp(lambda x, t: loss(x, t, reduction="none"), (view, other), (other, view))
            assert y.stride() == y_dot.stride() == (view - other).stride()
            dense = view.contiguous()
            expected = torch.func.jvp(lambda x, t: loss(x, t, reduction="none"), (dense, other), (other, dense))
            torch.testing.assert_close((y, y_dot), expected)
            for reduction in ("sum", "mean"):
                torch.testing.assert_close(loss(view, other, reduction), loss(dense, other, reduction))
            if loss in (kl_div, js_div):
                torch.testing.assert_close(loss(view, other, "batchmean"), loss(dense, other, "batchmean"))


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_js_div_is_symmetric_bounded_and_zero_between_equals(device: str) -> None:
    x, t = torch.randn(2, 3, 7, dtype=torch.float64, device=device).log_softmax(-1)
    torch.testing.assert_close(js_div(x, t, log_target=True), js_div(t, x, log_target=True))
    torch.testing.assert_close(js_div(x, t.exp()), js_div(x, t, log_target=True))
    torch.testing.assert_close(js_div(x, x, log_target=True), torch.zeros((), dtype=torch.float64, device=device))
    apart = torch.eye(2, 4, dtype=torch.float64, device=device)
    assert float(js_div((apart + 1e-300).log(), apart.flip(0))) == pytest.approx(math.log(2))
    value, slope, _ = gradients(js_div, x, torch.eye(3, 7, dtype=torch.float64, device=device))
    assert value.isfinite().all() and slope.isfinite().all()


def test_js_div_is_the_mean_of_two_divergences_from_the_middle(device: str) -> None:
    x, t = torch.randn(2, 3, 7, dtype=torch.float64, device=device).log_softmax(-1)
    middle = (0.5 * (x.exp() + t.exp())).log()
    expected = 0.5 * sum(F.kl_div(middle, p, reduction="batchmean", log_target=True) for p in (x, t))
    torch.testing.assert_close(js_div(x, t, log_target=True), expected)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("loss", [mse_loss, huber_loss], ids=lambda f: f.__name__)
def test_what_is_pulled_back_through_derivatives_is_that_of_the_formula(
    loss: Callable[..., Tensor], reduction: str, device: str
) -> None:
    """Of losses of x − t alone there are rules; cotangents and tangents that are missing are zero."""
    tensors = torch.randn(4, 3, 5, dtype=torch.float64, device=device).unbind()

    def formula(x: Tensor, t: Tensor) -> Tensor:
        size = (x - t).abs()
        terms = size * size if loss is mse_loss else torch.where(size <= 1, 0.5 * size * size, size - 0.5)
        return terms if reduction == "none" else getattr(terms, reduction)()

    found = []
    for f in (lambda x, t: loss(x, t, reduction), formula):
        x, t, x_dot, t_dot = (one.clone().requires_grad_() for one in tensors)
        for wanted in ((x,), (t,), (x, t)):
            bars = torch.autograd.grad(f(x, t).square().sum(), wanted, create_graph=True)
            second = torch.autograd.grad(sum(bar.pow(3).sum() for bar in bars), (x, t), create_graph=True)
            found += [*bars, *second, *torch.autograd.grad((second[0] * second[1]).sum(), (x, t))]
        for dots in ((x_dot,), (x_dot, t_dot)):
            y, y_dot = torch.func.jvp(lambda *a, f=f, t=t: f(*a) if len(a) > 1 else f(*a, t), (x, t)[: len(dots)], dots)
            for scalar in (y.square().sum(), y_dot.square().sum(), (y * y_dot).sum()):
                found += torch.autograd.grad(scalar, (x, t, *dots), retain_graph=True, materialize_grads=True)
    half = len(found) // 2
    torch.testing.assert_close(found[:half], found[half:])


@pytest.mark.parametrize("loss", [mse_loss, huber_loss, kl_div, js_div], ids=lambda f: f.__name__)
def test_batches_by_vmap_and_nothing_to_sum(loss: Callable[..., Tensor], device: str) -> None:
    x, t = torch.rand(2, 5, 3, 2, dtype=torch.float64, device=device)
    each = torch.stack([loss(a, b) for a, b in zip(x, t, strict=True)])
    torch.testing.assert_close(torch.vmap(loss)(x, t), each)
    torch.testing.assert_close(
        torch.vmap(torch.vmap(loss, (None, 0)), (0, None))(x, t)[:, 1], torch.vmap(loss, (0, None))(x, t[1])
    )
    nothing = torch.empty(0, 3, dtype=torch.float64, device=device)
    assert float(loss(nothing, nothing, reduction="sum")) == 0
    assert loss(nothing, nothing, reduction="mean").isnan() and loss(nothing, nothing, reduction="none").shape == (0, 3)
    scalar = torch.tensor(0.5, dtype=torch.float64, device=device)
    torch.testing.assert_close(
        loss(scalar, 0.5 * scalar, reduction="mean"), loss(scalar, 0.5 * scalar, reduction="none")
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_long_half_precision_sums_are_accumulated_in_float32(dtype: torch.dtype, device: str) -> None:
    x = torch.full((20_000,), 3.0, device=device, dtype=dtype)
    assert float(kl_div(torch.zeros_like(x), x.log(), log_target=True)) == pytest.approx(3 * math.log(3), rel=2e-2)
    assert float(mse_loss(x, torch.zeros_like(x))) == pytest.approx(9.0, rel=1e-2)


def test_autocast_returns_float32_as_pytorch_does() -> None:
    x, t = torch.rand(2, 3, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        for ours, theirs in ((mse_loss, F.mse_loss), (huber_loss, F.huber_loss)):
            assert ours(x, t).dtype == theirs(x, t).dtype == torch.float32
            torch.testing.assert_close(ours(x, t), theirs(x, t))


@pytest.mark.parametrize("region", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("of_x", "of_t"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float16), (torch.float64, torch.float32)],
    ids=str,
)
def test_two_dtypes_are_widened_as_pytorch_widens_them(
    of_x: torch.dtype, of_t: torch.dtype, region: torch.dtype | None, device: str
) -> None:
    """As where a network under autocast meets a float32 target; each cotangent has the dtype of its tensor."""
    x, t, w = torch.rand(3, 4, 5, dtype=torch.float64, device=device).to(of_t).add(0.5)
    x = x.to(of_x)
    pairs: list[tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]] = [
        (mse_loss, F.mse_loss, (x, t)),
        (huber_loss, F.huber_loss, (x, t)),
        (lambda x, t: kl_div(x, t, "sum"), lambda x, t: F.kl_div(x, t, reduction="sum"), (x, t)),
        (lambda *a: mse_loss(a[0], a[1], weight=a[2]), lambda *a: F.mse_loss(a[0], a[1], weight=a[2]), (x, t, w)),
        (lambda *a: huber_loss(a[0], a[1], weight=a[2]), lambda *a: F.huber_loss(a[0], a[1], weight=a[2]), (x, t, w)),
    ]
    with torch.autocast(device, region or torch.bfloat16, enabled=region is not None):
        for ours, theirs, operands in pairs:
            expected = theirs(*operands)
            value, *bars = gradients(ours, *operands)
            assert value.dtype == expected.dtype and [b.dtype for b in bars] == [o.dtype for o in operands]
            torch.testing.assert_close(value, expected, rtol=2e-2, atol=1e-3)
            exact = gradients(ours, *(o.double() for o in operands))[1:]
            for bar, wanted in zip(bars, exact, strict=True):
                torch.testing.assert_close(bar.double(), wanted, rtol=2e-2, atol=2e-3)
            y, y_dot = torch.func.jvp(ours, operands, operands)
            assert y.dtype == y_dot.dtype == expected.dtype


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("loss", [mse_loss, huber_loss], ids=lambda f: f.__name__)
def test_a_weight_may_be_constant_or_differentiated_at_any_level(
    loss: Callable[..., Tensor], reduction: str, device: str
) -> None:
    """Its product with duals is not left to PyTorch where it is constant, and where it moves its tangent counts."""
    x, t, w, v = torch.randn(4, 3, 5, dtype=torch.float64, device=device).unbind()
    w = w.exp()

    def formula(x: Tensor, t: Tensor, w: Tensor) -> Tensor:
        size = (x - t).abs()
        terms = w * (size * size if loss is mse_loss else torch.where(size <= 1, 0.5 * size * size, size - 0.5))
        by = w.sum() if loss is mse_loss else w.numel()
        return terms if reduction == "none" else terms.sum() if reduction == "sum" else terms.sum() / by

    found: list[Any] = []
    for f in (lambda x, t, w: loss(x, t, reduction, weight=w), formula):
        for constant in (w, w.clone().requires_grad_()):
            found.append(torch.func.jvp(lambda x, c=constant, f=f: f(x, t, c), (x,), (v,)))
        found.append(torch.func.jvp(f, (x, t, w), (v, x, t)))
        found.append(torch.func.jvp(lambda w, f=f: f(x, t, w), (w,), (v,)))
        nested = lambda w, f=f: torch.func.jvp(lambda x: f(x, t, w), (x,), (v,))[1]  # noqa: E731
        found.append(torch.func.jvp(nested, (w,), (t,)))
        found.append(torch.vmap(nested)(torch.stack([w, 2 * w])))
        pulled = torch.func.grad(lambda x, w, f=f: f(x, t, w).square().sum(), argnums=(0, 1))
        found.append(torch.func.jvp(pulled, (x, w), (v, t)))
        leaf = x.clone().requires_grad_()
        with forward_ad.dual_level():
            for weight in (w, forward_ad.make_dual(w, t)):
                y = forward_ad.unpack_dual(f(forward_ad.make_dual(leaf, v), t, weight))
                found.append((*y, *torch.autograd.grad(y.primal.sum() + y.tangent.square().sum(), leaf)))
    half = len(found) // 2
    torch.testing.assert_close(found[:half], found[half:])


def test_a_jvp_with_a_constant_weight_multiplies_no_dual(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's rule for a product of a dual and a constant goes through its references, at many times the cost."""
    x, t, w, v = torch.rand(4, 3, 5).unbind()
    multiplied: list[Tensor] = []
    monkeypatch.setattr(Tensor, "__mul__", lambda a, b: multiplied.append(a) or torch.mul(a, b))
    with forward_ad.dual_level():
        mse_loss(forward_ad.make_dual(x, v), t, weight=w)
        assert multiplied and all(forward_ad.unpack_dual(a).tangent is None for a in multiplied)


@pytest.mark.compiled
@pytest.mark.parametrize("loss", [mse_loss, huber_loss], ids=lambda f: f.__name__)
def test_a_compiled_hessian_vector_product_takes_every_length(loss: Callable[..., Tensor]) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    product = lambda x, t, v: torch.func.jvp(torch.func.grad(loss), (x, t), (v, x))  # noqa: E731
    compiled = torch.compile(product, backend=counter, dynamic=True, fullgraph=True)
    for n in (4, 6, 7):
        x, t, v = (torch.rand(n, 5) for _ in range(3))
        torch.testing.assert_close(compiled(x, t, v), product(x, t, v))
    assert counter.frame_count == 1


@pytest.mark.usefixtures("interpreted")
def test_launches(device: str) -> None:
    from torch_jvpvjp.triton_kernels._launch import count_launches

    x, t = torch.rand(2, 3, 4, device=device)
    _, pull, *_ = torch.func.vjp(mse_loss, x, t)
    runs: list[Callable[[], object]] = [
        lambda: mse_loss(x, t),
        lambda: torch.func.jvp(mse_loss, (x, t), (t, x)),
        lambda: pull(torch.ones((), device=device)),
        lambda: torch.vmap(mse_loss)(x, t),
    ]
    for run in runs:
        with count_launches() as count:
            run()
        assert count.total == 1  # few elements: no parts to add


# ---- bad input -------------------------------------------------------------------------------------------------------

X = torch.rand(3, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mse_loss(X, X[0]), ValueError, r"mse_loss: target must have input's shape \(3, 4\), got \(4,\)"),
        (lambda: mse_loss(X, X.long()), TypeError, r"mse_loss: target must be float16, .* got torch.int64; use .to"),
        (lambda: mse_loss(X, X, "average"), ValueError, r"mse_loss: reduction must be one of .*, got 'average'"),
        (lambda: mse_loss(X, X, "batchmean"), ValueError, r"mse_loss: reduction must be one of .*, got 'batchmean'"),
        (lambda: mse_loss(X, X, weight=X[0]), ValueError, r"mse_loss: weight must have input's shape \(3, 4\)"),
        (lambda: mse_loss(X, X.to("meta")), ValueError, r"mse_loss: target must be on input's device cpu, got meta"),
        (lambda: mse_loss(X.long(), X.long()), TypeError, r"mse_loss: input must be float16, .* got torch.int64"),
        (lambda: mse_loss(X, 1.0), TypeError, r"mse_loss: target must be a Tensor, got float"),  # type: ignore[arg-type]
        (lambda: mse_loss(X, X, None), TypeError, r"mse_loss: reduction must be one of .*, got NoneType"),  # type: ignore[arg-type]
        (lambda: huber_loss(X, X, delta=0.0), ValueError, r"huber_loss: delta must be positive, got 0.0"),
        (lambda: huber_loss(X, X, delta="1"), TypeError, r"huber_loss: delta must be a positive number, got str"),  # type: ignore[arg-type]
        (lambda: kl_div(X, X, log_target=1), TypeError, r"kl_div: log_target must be a bool, got int"),  # type: ignore[arg-type]
        (lambda: js_div(X, X, log_target=1), TypeError, r"js_div: log_target must be a bool, got int"),  # type: ignore[arg-type]
    ],
)
def test_bad_input(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
