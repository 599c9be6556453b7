"""Losses of large logits in float32: as near the float64 reference as PyTorch's own, however large log Σ exp is.

A derivative reads p = exp(z − L). With L rounded to float32, at logits of 1000 every p is wrong by 3e-5; so the kernels
keep what L lacks, or the row's maximum and log Σ exp(z − max) apart.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from torch_jvpvjp import ops
from torch_jvpvjp.ops._native import without_native
from torch_jvpvjp.testing.budget import NEIGHBOURS, assert_in_budget, assert_within

Loss = Callable[[Tensor, Tensor], Tensor]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 0.01},
    "capped": {"softcap": 100.0},
    "weighted": {"weight": torch.rand(19, generator=torch.Generator().manual_seed(0))},
}
SCALES = pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1000.0])


def logits(scale: float, shifted: bool, rows: int = 5, n: int = 19) -> Tensor:
    """Logits far from one another but for the largest two, or near one another and all large."""
    drawn = torch.randn(rows, n, generator=torch.Generator().manual_seed(1))
    if shifted:
        return scale + drawn
    x = scale * drawn
    top, at = x.max(1, keepdim=True)
    return x.scatter(1, (at + 1) % n, top - 1)


def classes_of(x: Tensor) -> Tensor:
    """The likeliest class for every other row, else any."""
    return torch.where(torch.arange(len(x)) % 2 == 0, x.argmax(1), torch.arange(len(x)) % x.shape[1])


def theirs(options: dict[str, Any]) -> Loss:
    """PyTorch's, with a z-loss and a cap."""
    kappa, z_loss, weight = options.get("softcap"), options.get("z_loss", 0.0), options.get("weight")

    def loss(x: Tensor, target: Tensor) -> Tensor:
        z = x if kappa is None else kappa * torch.tanh(x / kappa)
        w = None if weight is None else weight.to(x)
        rows = F.cross_entropy(z, target, w, reduction="none", label_smoothing=options.get("label_smoothing", 0.0))
        return rows + z_loss * torch.logsumexp(z, 1).square() if z_loss else rows

    return loss


def everything(f: Loss, x: Tensor, target: Tensor, v: Tensor, c: Tensor) -> list[Tensor]:
    """Value, JVP, gradients, and the second order in each nesting."""
    pull = torch.func.grad(lambda t: (f(t, target) * c).sum())
    along = lambda t, d: torch.func.jvp(lambda s: f(s, target), (t,), (d,))[1]  # noqa: E731
    found = [f(x, target), along(x, v), pull(x), torch.func.jvp(pull, (x,), (v,))[1]]
    found += torch.func.grad(lambda t, d: (along(t, d) * c).sum(), argnums=(0, 1))(x, v)
    found.append(torch.func.grad(lambda t: (pull(t) * v).sum())(x))
    if target.is_floating_point():
        found.append(torch.func.grad(lambda q: (f(x, q) * c).sum())(target))
        found.append(torch.func.jvp(lambda q: f(x, q), (target,), (v,))[1])
    return found


def judge(ours: Loss, reference: Loss, x: Tensor, target: Tensor, device: str) -> None:
    """Ours in float32 err by no more than twice what PyTorch errs by in float32, and a rounding."""
    generator = torch.Generator().manual_seed(2)
    v, c = torch.randn(x.shape, generator=generator), torch.randn(len(x), generator=generator)
    low, high = [], []
    for factor in NEIGHBOURS:
        there = (factor * x, target, v, c)
        low.append(everything(reference, *there))
        high.append(everything(reference, *(t.double() if t.is_floating_point() else t for t in there)))
    with without_native():
        got = everything(ours, *(t.to(device) for t in (x, target, v, c)))
    assert_in_budget([t.cpu() for t in got], low, high, torch.float32)


@SCALES
@pytest.mark.parametrize("shifted", [False, True], ids=["spread", "shifted"])
@pytest.mark.parametrize("name", OPTIONS)
def test_cross_entropy_of_classes(name: str, shifted: bool, scale: float, device: str) -> None:
    options, x = OPTIONS[name], logits(scale, shifted)
    given = {k: o.to(device) if isinstance(o, Tensor) else o for k, o in options.items()}
    ours = lambda t, target: ops.cross_entropy(t, target, reduction="none", **given)  # noqa: E731
    judge(ours, theirs(options), x, classes_of(x), device)


@SCALES
@pytest.mark.parametrize("n", [19, 70])
def test_cross_entropy_of_probabilities(n: int, scale: float, device: str) -> None:
    x = logits(scale, True, n=n)
    q = torch.softmax(logits(1.0, False, n=n).flip(0), 1)
    ours = lambda t, target: ops.cross_entropy(t, target, reduction="none", label_smoothing=0.1)  # noqa: E731
    judge(ours, theirs({"label_smoothing": 0.1}), x, q, device)


@SCALES
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes in NumPy
@pytest.mark.parametrize("shifted", [False, True], ids=["spread", "shifted"])
def test_linear_cross_entropy_in_chunks(shifted: bool, scale: float, device: str) -> None:
    """Of the identity, whose products are exact: what is left are the losses and how chunks are joined."""
    x = logits(scale, shifted)
    options = {"label_smoothing": 0.1, "z_loss": 0.01}
    eye = torch.eye(len(x), dtype=x.dtype, device=device)

    def ours(t: Tensor, target: Tensor) -> Tensor:
        return ops.linear_cross_entropy(eye, t.mT, target, reduction="none", chunk_size=2, **options)  # pyright: ignore[reportArgumentType]

    judge(ours, theirs(options), x, classes_of(x), device)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes in NumPy
@pytest.mark.parametrize("first", [-1e4, -1e9, -3e38, -float("inf")])
def test_log_sum_exp_is_not_lost_beside_a_class_that_is_ruled_out(first: float, device: str) -> None:
    """L once was z − log p of the first class, where both are −1e9 and their difference is rounded away."""
    x = logits(1.0, False)
    x[:, 0] = first
    q = torch.zeros_like(x)
    q[torch.arange(len(x)), classes_of(x[:, 1:]) + 1] = 1.0
    for target in (classes_of(x[:, 1:]) + 1, q):
        got, expected = (
            torch.func.grad_and_value(lambda t, f=f: f(t, target))(s)  # noqa: B023
            for f, s in (
                (lambda t, y: ops.cross_entropy(t, y.to(t.device), z_loss=0.1), x.to(device)),
                (lambda t, y: theirs({"z_loss": 0.1})(t, y if y is not q else y.double()).mean(), x.double()),
            )
        )
        for a, b in zip(got, expected, strict=True):
            assert_within(a.cpu(), b, 1e-6)


def test_a_class_that_is_ruled_out_may_be_the_target(device: str) -> None:
    x = logits(1.0, False)
    x[:, 3] = -1e9
    target = torch.full((len(x),), 3)
    lse = torch.func.grad(lambda t: ops.cross_entropy(t, target.to(device), reduction="sum", z_loss=0.5))(x.to(device))
    p = torch.softmax(x.double(), 1)
    expected = p - F.one_hot(target, x.shape[1]) + torch.logsumexp(x.double(), 1, keepdim=True) * p
    assert_within(lse.cpu(), expected, 2e-6)
