"""Cross-entropy: the facts particular to it (every property is checked in test_every_op)."""

import itertools
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from torch_jvpvjp import ops
from torch_jvpvjp.ops._devices import triton_devices
from torch_jvpvjp.ops._native import without_native

INF = float("inf")
SHAPES = ((5,), (3, 5), (2, 5, 3), (2, 4, 2, 2))
INTERPRETED = "cpu" in triton_devices()


def logits_and_classes(shape: tuple[int, ...], device: str) -> tuple[Tensor, Tensor]:
    axis = min(len(shape) - 1, 1)
    target = torch.randint(0, shape[axis], (*shape[:axis], *shape[axis + 1 :]), device=device)
    return 3 * torch.randn(shape, dtype=torch.float64, device=device), target


def gradient(loss: Callable[..., Tensor], x: Tensor) -> Tensor:
    return torch.func.grad(lambda t: loss(t).square().sum())(x)


# ---- as in PyTorch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["classes", "one ignored", "probabilities"])
def test_everything_as_in_pytorch(shape: tuple[int, ...], kind: str, device: str) -> None:
    x, target = logits_and_classes(shape, device)
    if kind == "one ignored":
        target.view(-1)[0] = -100
    elif kind == "probabilities":
        target = torch.rand_like(x)
    w = torch.rand(shape[min(len(shape) - 1, 1)], dtype=torch.float64, device=device)
    for weight, reduction, smoothing in itertools.product((None, w), ("none", "mean", "sum"), (0.0, 0.2)):
        compare(x, target, weight=weight, reduction=reduction, label_smoothing=smoothing)


def compare(x: Tensor, target: Tensor, **options: Any) -> None:
    """Value, JVP and gradient equal PyTorch's."""
    ours, theirs = (lambda t, f=f: f(t, target, **options) for f in (ops.cross_entropy, F.cross_entropy))
    v = torch.randn_like(x)
    for got, expected in zip(torch.func.jvp(ours, (x,), (v,)), torch.func.jvp(theirs, (x,), (v,)), strict=True):
        torch.testing.assert_close(got, expected, equal_nan=True)
    torch.testing.assert_close(gradient(ours, x), gradient(theirs, x), equal_nan=True)


def test_ignored_classes_may_be_any_class(device: str) -> None:
    x, target = logits_and_classes((6, 4), device)
    for reduction in ("none", "mean", "sum"):
        got = ops.cross_entropy(x, target, ignore_index=2, reduction=reduction)
        torch.testing.assert_close(got, F.cross_entropy(x, target, ignore_index=2, reduction=reduction))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes in NumPy
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_an_ignored_row_has_no_derivative_whatever_stands_in_it(softcap: float | None, device: str) -> None:
    x = torch.randn(3, 4, device=device)
    x[0, 1], x[1, 2] = float("nan"), INF
    target = torch.tensor([-100, -100, 2], device=device)
    f = lambda t: ops.cross_entropy(t, target, softcap=softcap, z_loss=0.1)  # noqa: E731
    x_bar, x_bar_dot = torch.func.jvp(torch.func.grad(f), (x,), (torch.ones_like(x),))
    pulled = torch.func.grad(lambda t, d: torch.func.jvp(f, (t,), (d,))[1], argnums=(0, 1))(x, torch.ones_like(x))
    for got in (x_bar, x_bar_dot, *pulled):
        assert got[2].isfinite().all() and torch.equal(got[:2], torch.zeros_like(got[:2]))


def test_a_mean_over_nothing_is_nan_and_a_sum_is_zero(device: str) -> None:
    x, target = torch.randn(2, 3, device=device), torch.full((2,), -100, device=device)
    assert ops.cross_entropy(x, target).isnan() and F.cross_entropy(x, target).isnan()
    assert ops.cross_entropy(x, target, reduction="sum", z_loss=0.1) == 0
    assert ops.cross_entropy(x[:0], target[:0]).isnan() and F.cross_entropy(x[:0], target[:0]).isnan()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "row", [[-INF, 1.0, 0.0], [1.0, -INF, 0.0], [-INF] * 3, [INF, 1.0, 0.0], [float("nan"), 1.0, 0.0]], ids=str
)
def test_nan_and_infinity_propagate_as_in_pytorch(row: list[float], device: str) -> None:
    x = torch.tensor([row], device=device)
    for target in (torch.tensor([0], device=device), torch.tensor([1], device=device)):
        got = ops.cross_entropy(x, target, reduction="none")
        torch.testing.assert_close(got, F.cross_entropy(x, target, reduction="none"), equal_nan=True)
        pulled = [gradient(lambda t, f=f: f(t, target), x) for f in (ops.cross_entropy, F.cross_entropy)]  # noqa: B023
        torch.testing.assert_close(*pulled, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_dtypes(dtype: torch.dtype, device: str) -> None:
    x, target = logits_and_classes((4, 7), device)
    low = x.to(dtype).requires_grad_()
    loss = ops.cross_entropy(low, target.int(), label_smoothing=0.1)
    (x_bar,) = torch.autograd.grad(loss, low)
    assert loss.dtype == x_bar.dtype == dtype
    exact = F.cross_entropy(low.detach().double(), target, label_smoothing=0.1)
    torch.testing.assert_close(loss.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_autocast_gives_float32_as_in_pytorch() -> None:
    x, target = torch.randn(3, 4).bfloat16(), torch.tensor([0, 3, 1])
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = ops.cross_entropy(x, target), F.cross_entropy(x, target)
    assert ours.dtype == theirs.dtype == torch.float32
    torch.testing.assert_close(ours, theirs)


# ---- facts -----------------------------------------------------------------------------------------------------------


def test_the_gradient_sums_to_zero_and_a_shift_changes_nothing(device: str) -> None:
    x, target = logits_and_classes((4, 6), device)
    f = lambda t: ops.cross_entropy(t, target, label_smoothing=0.3)  # noqa: E731
    torch.testing.assert_close(torch.func.grad(f)(x).sum(-1), torch.zeros(4, dtype=x.dtype, device=x.device))
    torch.testing.assert_close(f(x + 1000), f(x))


def test_large_logits_do_not_cancel(device: str) -> None:
    x = torch.tensor([[3e4, 3e4 - 1, -3e4]], device=device)
    target = torch.tensor([1], device=device)
    exact = F.cross_entropy(x.double(), target)
    torch.testing.assert_close(ops.cross_entropy(x, target).double(), exact, rtol=1e-6, atol=0)


def test_z_loss_is_that_of_the_logsumexp(device: str) -> None:
    x, target = logits_and_classes((4, 6), device)
    target[1] = -100
    w = torch.rand(6, dtype=x.dtype, device=x.device)
    lse = torch.logsumexp(x, 1)[target != -100]
    for reduction, extra in (("mean", lse.square().mean()), ("sum", lse.square().sum())):
        got = ops.cross_entropy(x, target, w, reduction=reduction, z_loss=0.3)
        torch.testing.assert_close(got, F.cross_entropy(x, target, w, reduction=reduction) + 0.3 * extra)
    rows = ops.cross_entropy(x, target, reduction="none", z_loss=0.3)
    assert rows[1] == 0 and rows.shape == (4,)


def test_softcap_bounds_the_logits(device: str) -> None:
    x, target = logits_and_classes((4, 6), device)
    capped = F.cross_entropy(2 * torch.tanh(x / 2), target)
    torch.testing.assert_close(ops.cross_entropy(x, target, softcap=2.0), capped)
    assert ops.cross_entropy(100 * x, target, softcap=2.0) <= 4 + torch.tensor(6.0).log() + 1e-6


def test_the_hessian_is_the_covariance(device: str) -> None:
    x = torch.randn(5, dtype=torch.float64, device=device)
    target = torch.tensor(2, device=device)
    p = torch.softmax(x, 0)
    hessian = torch.func.hessian(lambda t: ops.cross_entropy(t, target))(x)
    torch.testing.assert_close(hessian, p.diag() - p.outer(p))


def test_probabilities_get_a_gradient(device: str) -> None:
    x, _ = logits_and_classes((3, 4), device)
    q = torch.rand_like(x)
    pulled = [
        torch.func.grad(lambda t, f=f: f(x, t, label_smoothing=0.2))(q) for f in (ops.cross_entropy, F.cross_entropy)
    ]
    torch.testing.assert_close(*pulled)


def test_logits_are_not_written_into_and_no_softmax_is_kept() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    before = x.detach().clone()
    with without_native():
        losses = ops.cross_entropy(x, torch.tensor([0, 1, 2]), reduction="none")
    node: Any = losses.grad_fn
    while not hasattr(node, "saved_tensors"):
        node = node.next_functions[0][0]
    wide = [t for t in node.saved_tensors if t is not None and t.numel() == x.numel()]
    assert [t.data_ptr() for t in wide] == [x.data_ptr()]
    losses.sum().backward()
    assert torch.equal(x.detach(), before)


@pytest.mark.parametrize("dims", [(0, 0, 0), (0, None, None), (None, 0, None), (None, None, 0)], ids=str)
def test_vmap_over_logits_classes_and_weights(dims: tuple[int | None, ...], device: str) -> None:
    x, target = logits_and_classes((2, 3, 5), device)[0], torch.randint(0, 5, (2, 3), device=device)
    w = torch.rand(2, 5, dtype=x.dtype, device=x.device)
    args = [t if d == 0 else t[0] for t, d in zip((x, target, w), dims, strict=True)]

    def push(a: Tensor, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        y, y_dot, *_ = torch.func.jvp(lambda s: ops.cross_entropy(s, t, u, label_smoothing=0.1), (a,), (a,))
        return y, y_dot

    looped = [push(*(t[i] if d == 0 else t for t, d in zip(args, dims, strict=True))) for i in range(2)]
    for got, expected in zip(torch.func.vmap(push, in_dims=dims)(*args), zip(*looped, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(expected))


# ---- launches --------------------------------------------------------------------------------------------------------


def launches(run: Callable[[], object]) -> int:
    from torch_jvpvjp.triton_kernels._launch import count_launches

    with count_launches() as count:
        run()
    return count.total


@pytest.mark.usefixtures("interpreted")
def test_launches(device: str) -> None:
    x, target = torch.randn(3, 4, device=device), torch.tensor([0, 1, -100], device=device)
    f = lambda t: ops.cross_entropy(t, target, z_loss=0.1)  # noqa: E731
    assert launches(lambda: f(x)) == 1
    assert launches(lambda: torch.func.jvp(f, (x,), (x,))) == 1
    tangents = torch.randn(5, 3, 4, device=device)
    assert launches(lambda: torch.func.vmap(lambda t: torch.func.jvp(f, (x,), (t,)))(tangents)) == 1
    assert launches(lambda: torch.func.grad(f)(x)) == 2
    assert launches(lambda: torch.func.jvp(torch.func.grad(f), (x,), (x,))) == 2  # a Hessian-vector product
    along = lambda t, d: torch.func.jvp(f, (t,), (d,))[1]  # noqa: E731
    assert launches(lambda: torch.func.grad(along, argnums=(0, 1))(x, x)) == 2


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_a_class_is_not_taken_for_the_ignored_one_in_a_narrow_dtype(dtype: torch.dtype, device: str) -> None:
    wrong = 156 if dtype == torch.uint8 else 5  # what ignore_index wraps to
    x, weight = torch.randn(2, 3, device=device), torch.randn(200, 3, device=device)
    target, ignored = torch.tensor([wrong, 7], dtype=dtype, device=device), -100 if dtype == torch.uint8 else 2**16 + 5
    expected = F.cross_entropy(x @ weight.mT, target.long())
    for transform in (lambda f: f(x), lambda f: torch.func.jvp(f, (x,), (x,))[0], lambda f: torch.func.vjp(f, x)[0]):
        loss = transform(lambda t: ops.cross_entropy(t @ weight.mT, target, ignore_index=ignored))
        chunked = transform(lambda t: ops.linear_cross_entropy(t, weight, target, ignore_index=ignored, chunk_size=1))
        torch.testing.assert_close((loss, chunked), (expected, expected))


# ---- bad input -------------------------------------------------------------------------------------------------------

X, T = torch.randn(2, 3), torch.tensor([0, 2])


@pytest.mark.skipif(INTERPRETED, reason="kernels give NaN instead, as nothing waits for a GPU")
@pytest.mark.parametrize("wrong", [3, -1])
def test_a_class_that_does_not_exist(wrong: int) -> None:
    with pytest.raises(
        IndexError, match=rf"cross_entropy: target must be classes from 0 to 2 or ignore_index, got {wrong}"
    ):
        ops.cross_entropy(X, torch.tensor([0, wrong]))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("wrong", [3, -1])
def test_a_class_that_does_not_exist_is_nan_in_kernels(wrong: int, device: str) -> None:
    target = torch.tensor([0, wrong], device=device)
    rows = ops.cross_entropy(X.to(device), target, reduction="none")
    assert rows[0].isfinite() and rows[1].isnan()
    x_bar = torch.func.grad(lambda t: ops.cross_entropy(t, target, reduction="sum"))(X.to(device))
    assert x_bar[0].isfinite().all() and x_bar[1].isnan().all()


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((X.long(), T), {}, TypeError, r"input must be float16, .* got torch.int64"),
        (([1.0], T), {}, TypeError, r"input must be a Tensor, got list"),
        ((torch.tensor(1.0), T), {}, ValueError, r"input must have an axis of classes"),
        ((X[:, :0], T), {}, ValueError, r"input must have at least one class along axis 1, got \(2, 0\)"),
        ((X[0, :0], X[0, :0]), {}, ValueError, r"input must have at least one class along axis 0, got \(0,\)"),
        ((X, [0, 1]), {}, TypeError, r"target must be an integer Tensor of classes, got list"),
        ((X, T.bool()), {}, TypeError, r"target must be an integer Tensor of classes, got torch.bool"),
        ((X, T[:1]), {}, ValueError, r"target must have shape \(2,\), one class for each row of input, got \(1,\)"),
        ((X, X[:1]), {}, ValueError, r"probabilities must have input's shape \(2, 3\), got \(1, 3\)"),
        ((X, X), {"ignore_index": 1}, ValueError, r"ignore_index=1 needs a target of classes"),
        ((X, T.to("meta")), {}, ValueError, r"target must be on input's device cpu, got meta"),
        ((X, X.to("meta")), {}, ValueError, r"target must be on input's device cpu, got meta"),
        ((X, T, torch.ones(2)), {}, ValueError, r"weight must have shape \(3,\), one for each class, got \(2,\)"),
        ((X, T, T), {}, TypeError, r"weight must be float16, .* got torch.int64"),
        ((X, T, X[0].to("meta")), {}, ValueError, r"weight must be on input's device cpu, got meta"),
        ((X, T), {"reduction": "average"}, ValueError, r"reduction must be 'none', 'mean' or 'sum', got 'average'"),
        ((X, T), {"label_smoothing": 1.5}, ValueError, r"label_smoothing must be from 0 to 1, got 1.5"),
        ((X, T), {"label_smoothing": "1"}, TypeError, r"label_smoothing must be a number, got str"),
        ((X, T), {"z_loss": -0.1}, ValueError, r"z_loss must be at least 0 and finite, got -0.1"),
        ((X, T), {"softcap": 0.0}, ValueError, r"softcap must be positive and finite, or None, got 0.0"),
        ((X, T), {"softcap": X}, TypeError, r"softcap must be a number, got Tensor"),
        ((X, T), {"ignore_index": 1.0}, TypeError, r"ignore_index must be an int, got 1.0"),
    ],
)
def test_bad_input(args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^cross_entropy: .*{message}"):
        ops.cross_entropy(*args, **options)


def test_class_weights_have_no_derivative() -> None:
    with pytest.raises(NotImplementedError, match=r"'weight' is declared non-differentiable"):
        ops.cross_entropy(X, T, torch.ones(3, requires_grad=True))


@pytest.mark.parametrize("transform", ["autograd", "grad", "jvp", "vmap"])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_the_jvp_of_a_mean_is_that_of_a_sum_over_the_count_and_calls_no_python_of_pytorchs(
    transform: str, z_loss: float, device: str
) -> None:
    x, target = logits_and_classes((5, 4), device)
    target[1] = -100
    v, w = torch.randn_like(x), torch.randn_like(x)

    def run(reduction: str, share: float) -> tuple[Tensor, ...]:
        loss = lambda x: share * ops.cross_entropy(x, target, reduction=reduction, z_loss=z_loss)  # noqa: E731
        push = lambda x: torch.func.jvp(loss, (x,), (v,))  # noqa: E731
        both = lambda x: sum(push(x))  # noqa: E731
        if transform == "autograd":
            leaf = x.clone().requires_grad_()
            return torch.autograd.grad(both(leaf), leaf)
        if transform == "grad":
            return (torch.func.grad(both)(x),)
        if transform == "jvp":
            return torch.func.jvp(both, (x,), (w,))
        return torch.func.vmap(push)(torch.stack((x, w)))

    torch.testing.assert_close(run("mean", 1), run("sum", 1 / 4))
    references = lambda reduction: frames_in("torch/_refs/", lambda: run(reduction, 1))  # noqa: E731
    if transform != "jvp":  # an outer level divides by the count as PyTorch does
        assert references("mean") == references("sum")


def frames_in(folder: str, run: Callable[[], object]) -> int:
    """How many calls go to Python functions in files of a folder."""
    count = 0

    def profile(frame: Any, event: str, _: object) -> None:
        nonlocal count
        count += event == "call" and folder in frame.f_code.co_filename

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_compiled_jvp_with_z_loss_serves_every_length(reduction: str) -> None:
    compilations: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        compilations.append(0)
        return graph

    def push(x: Tensor, x_dot: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        loss = lambda x: ops.cross_entropy(x, t, z_loss=0.1, reduction=reduction)  # noqa: E731
        return torch.func.jvp(loss, (x,), (x_dot,))

    torch.compiler.reset()
    compiled = torch.compile(push, fullgraph=True, dynamic=True, backend=backend)
    for length in (6, 9, 33):
        x, x_dot = (torch.randn(length, 7, dtype=torch.float64) for _ in range(2))
        t = torch.arange(length) % 7
        torch.testing.assert_close(compiled(x, x_dot, t), push(x, x_dot, t))
    assert len(compilations) == 1
