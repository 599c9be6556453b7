"""Linear cross-entropy: that logits are never in memory at once, and the facts particular to it."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torch_jvpvjp import ops
from torch_jvpvjp.ops.linear_cross_entropy.chunks import chunk_classes, chunk_rows

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
N, D, V = 12, 3, 40


@pytest.fixture
def xwb(device: str) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(s, dtype=torch.float64, device=device) for s in ((N, D), (V, D), (V,)))  # pyright: ignore[reportReturnType]


@pytest.fixture
def target(device: str) -> Tensor:
    found = torch.randint(0, V, (N,), device=device)
    found[3] = -100
    return found


class Largest(TorchDispatchMode):
    """Note the most elements that a tensor made by any op has."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(returned):
            if isinstance(leaf, Tensor):
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // leaf.element_size())
        return returned


def points(f: Callable[..., Tensor], xs: tuple[Tensor, ...]) -> dict[str, Callable[[], Any]]:
    """Value, JVP, gradient and the second order in every nesting."""
    every = tuple(range(len(xs)))
    gradient = torch.func.grad(f, argnums=every)
    along = lambda *ts: torch.func.jvp(f, ts, xs)[1]  # noqa: E731
    inner = lambda *ts: sum((g * t.detach()).sum() for g, t in zip(gradient(*ts), ts, strict=True))  # noqa: E731
    return {
        "value": lambda: f(*xs),
        "jvp": lambda: torch.func.jvp(f, xs, xs),
        "grad": lambda: gradient(*xs),
        "jvp∘grad": lambda: torch.func.jvp(gradient, xs, xs),
        "grad∘jvp": lambda: torch.func.grad(along, argnums=every)(*xs),
        "grad∘grad": lambda: torch.func.grad(inner, argnums=every)(*xs),  # pyright: ignore[reportArgumentType]
    }


POINTS = ("value", "jvp", "grad", "jvp∘grad", "grad∘jvp", "grad∘grad")


@pytest.mark.parametrize("point", POINTS)
def test_logits_are_never_in_memory_at_once(point: str, xwb: tuple[Tensor, ...], target: Tensor) -> None:
    ours = lambda x, w, b: ops.linear_cross_entropy(x, w, target, b, chunk_size=2, z_loss=0.1)  # noqa: E731
    theirs = lambda x, w, b: F.cross_entropy(F.linear(x, w, b), target)  # noqa: E731
    run = points(ours, xwb)[point]
    run()  # the first run of a formula is watched by a mode of its own
    with Largest() as largest:
        run()
    assert V <= largest.elements < N * V / 2
    with Largest() as largest:
        points(theirs, xwb)[point]()
    assert largest.elements >= N * V


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("chunk_size", [1, 5, 12, 100, None])
def test_chunks_change_nothing(point: str, chunk_size: int | None, xwb: tuple[Tensor, ...], target: Tensor) -> None:
    options: dict[str, Any] = {"label_smoothing": 0.1, "softcap": 3.0, "reduction": "sum"}
    ours = lambda x, w, b: ops.linear_cross_entropy(x, w, target, b, chunk_size=chunk_size, **options)  # noqa: E731
    whole = lambda x, w, b: ops.cross_entropy(F.linear(x, w, b), target, **options)  # noqa: E731
    torch.testing.assert_close(points(ours, xwb)[point](), points(whole, xwb)[point]())


@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_every_batch_as_in_pytorch(shape: tuple[int, ...], reduction: str, device: str) -> None:
    x, w = torch.randn(*shape, D, device=device, requires_grad=True), torch.randn(V, D, device=device)
    target = torch.randint(0, V, shape, device=device)
    got = ops.linear_cross_entropy(x, w, target, reduction=reduction)
    expected = F.cross_entropy(F.linear(x, w).reshape(-1, V), target.reshape(-1), reduction=reduction)
    torch.testing.assert_close(got, expected.reshape(got.shape), equal_nan=True)
    pulled = [torch.autograd.grad(y.sum(), x)[0] for y in (got, expected)]
    torch.testing.assert_close(*pulled, equal_nan=True)


def test_low_precision_sums_are_float32(device: str) -> None:
    x = torch.randn(64, D, device=device).bfloat16()
    w = torch.randn(V, D, device=device).bfloat16().requires_grad_()
    target = torch.randint(0, V, (64,), device=device)
    (ours,) = torch.autograd.grad(ops.linear_cross_entropy(x, w, target, chunk_size=1, reduction="sum"), w)
    exact = w.detach().double().requires_grad_()
    (theirs,) = torch.autograd.grad(F.cross_entropy(x.double() @ exact.mT, target, reduction="sum"), exact)
    assert ours.dtype == torch.bfloat16
    # 64 chunks: sums in bfloat16 would be wrong by several times this.
    assert (ours.double() - theirs).abs().max() <= 2e-2 * theirs.abs().max()


def test_autocast_computes_products_in_its_dtype() -> None:
    x, w, target = torch.randn(4, D, requires_grad=True), torch.randn(V, D), torch.randint(0, V, (4,))
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = ops.linear_cross_entropy(x, w, target), F.cross_entropy(F.linear(x, w), target)
        mixed = ops.linear_cross_entropy(x.bfloat16(), w, target)
    assert ours.dtype == mixed.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)
    (gradient,) = torch.autograd.grad(ours, x)
    assert gradient.dtype == torch.float32


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("chunk_size", [2, 12])
def test_first_order_is_one_launch_for_a_chunk_of_classes(
    chunk_size: int, xwb: tuple[Tensor, ...], target: Tensor
) -> None:
    from torch_jvpvjp.triton_kernels._launch import count_launches

    ours = lambda x, w, b: ops.linear_cross_entropy(x, w, target, b, chunk_size=chunk_size)  # noqa: E731
    chunks = -(-V // chunk_classes(N, V, chunk_size))
    leaves = tuple(t.clone().requires_grad_() for t in xwb)
    with count_launches() as forward:
        loss = ours(*leaves)
    with count_launches() as backward:
        torch.autograd.grad(loss, leaves)
    with count_launches() as push:
        torch.func.jvp(ours, xwb, xwb)
    assert forward.total == backward.total == push.total == chunks == (1 if chunk_size == N else 7)


@pytest.mark.usefixtures("interpreted")
def test_tangents_of_one_point_share_its_logits(xwb: tuple[Tensor, ...], target: Tensor) -> None:
    from torch_jvpvjp.triton_kernels._launch import count_launches

    x, w, b = xwb
    push = lambda d: torch.func.jvp(lambda t: ops.linear_cross_entropy(t, w, target, b), (x,), (d,))[1]  # noqa: E731
    with count_launches() as launches:
        torch.func.vmap(push)(torch.stack((x, -x, x + 1)))
    assert launches.total == 1


def test_chunks_hold_about_as_many_logits() -> None:
    assert chunk_rows(8192, 131072, None) == 256
    assert chunk_rows(10, 131072, None) == 10 and chunk_rows(10, 1 << 30, None) == 1
    assert chunk_rows(0, 5, None) == 1 and chunk_rows(10, 5, 3) == 3
    assert chunk_classes(8192, 262144, None) == 4096 and chunk_classes(8, 262144, None) == 262144
    assert chunk_classes(12, 40, 2) == 6 and chunk_classes(0, 5, None) == 5 and chunk_classes(100, 5, 1) == 1


X, W, T = torch.randn(2, 3), torch.randn(4, 3), torch.tensor([0, 2])


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((X.long(), W, T), {}, TypeError, r"input must be float16, .* got torch.int64"),
        ((X, [1.0], T), {}, TypeError, r"weight must be a Tensor, got list"),
        ((X, W.mT, T), {}, ValueError, r"weight must have shape \(V, D\) .* \(2, 3\), got \(3, 4\)"),
        ((X, W[:0], T), {}, ValueError, r"weight must have at least one row, one for each class, got \(0, 3\)"),
        ((X, W[0], T), {}, ValueError, r"weight must have shape \(V, D\) .* got \(3,\)"),
        ((X, W.double(), T), {}, ValueError, r"weight must have input's dtype torch.float32 .* got torch.float64"),
        ((X, W.to("meta"), T), {}, ValueError, r"device cpu, got torch.float32 on meta"),
        ((X, W, T.float()), {}, TypeError, r"target must be an integer Tensor of classes, got torch.float32"),
        ((X, W, T[:1]), {}, ValueError, r"target must have shape \(2,\), .* got \(1,\)"),
        ((X, W, T, torch.ones(3)), {}, ValueError, r"bias must have shape \(4,\), as weight has, got \(3,\)"),
        ((X, W, T, torch.ones(4).half()), {}, ValueError, r"bias must have input's dtype torch.float32"),
        ((X, W, T), {"chunk_size": 0}, ValueError, r"chunk_size must be at least 1, got 0"),
        ((X, W, T), {"chunk_size": 1.5}, TypeError, r"chunk_size must be an int or None, got 1.5"),
        ((X, W, T), {"reduction": "max"}, ValueError, r"reduction must be 'none', 'mean' or 'sum', got 'max'"),
        ((X, W, T), {"softcap": -1.0}, ValueError, r"softcap must be positive and finite, or None, got -1.0"),
    ],
)
def test_bad_input(args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^linear_cross_entropy: .*{message}"):
        ops.linear_cross_entropy(*args, **options)


@pytest.mark.skipif(INTERPRETED, reason="kernels give NaN instead, as nothing waits for a GPU")
@pytest.mark.parametrize("chunk_size", [None, 1], ids=["native", "op"])
@pytest.mark.parametrize("wrong", [4, -1])
def test_a_class_that_does_not_exist(wrong: int, chunk_size: int | None) -> None:
    def loss(x: Tensor) -> Tensor:
        return ops.linear_cross_entropy(x, W, torch.tensor([0, wrong]), chunk_size=chunk_size)

    for transform in (lambda f: f(X), lambda f: torch.func.jvp(f, (X,), (X,)), lambda f: torch.func.grad(f)(X)):
        with pytest.raises(IndexError, match=rf"^linear_cross_entropy: target must be .* from 0 to 3 .*, got {wrong}"):
            transform(loss)


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value) encountered:RuntimeWarning")  # NumPy, of log 0
@pytest.mark.usefixtures("interpreted")
def test_a_chunk_of_impossible_classes_adds_nothing(device: str) -> None:
    x, weight, bias = (torch.randn(*shape, device=device) for shape in ((3, 8), (40, 8), (40,)))
    target, dead = torch.tensor([25, 30, 39], device=device), torch.arange(40, device=device) < 20
    primals, dots = (x, weight, bias.masked_fill(dead, -torch.inf)), (x.cos(), weight.cos(), bias.cos())
    ours = torch.func.jvp(lambda x, w, b: ops.linear_cross_entropy(x, w, target, b, chunk_size=1), primals, dots)
    theirs = torch.func.jvp(lambda x, w, b: F.cross_entropy(x @ w.mT + b, target), primals, dots)
    torch.testing.assert_close(ours, theirs)
