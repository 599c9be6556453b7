"""What classifiers end in: the softmax along any axis, and losses of classes for each sample."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from jacobian_checks import F64

import torch_jvpvjp as tj

X, IMAGE = torch.randn(6, 5, dtype=F64), torch.randn(2, 3, 4, 2, dtype=F64)
CLASSES, WEIGHT = torch.tensor([0, 3, -100, 1, 4, 4]), torch.rand(5, dtype=F64)
PIXELS = torch.randint(0, 3, (2, 4, 2))
FUNCTIONS = {
    "softmax of columns": (lambda x: torch.softmax(x, 0), X),
    "softmax of channels": (lambda x: F.softmax(x, dim=1), IMAGE),
    "softmax as a method": (lambda x: x.softmax(-2), IMAGE),
    "log_softmax of channels": (lambda x: F.log_softmax(x, 1), IMAGE),
    "log_softmax of another dtype": (lambda x: torch.log_softmax(x, 0, dtype=torch.float32), X),
    "losses": (lambda x: F.cross_entropy(x, CLASSES, reduction="none"), X),
    "weighted losses": (lambda x: F.cross_entropy(x, CLASSES, WEIGHT, reduction="none"), X),
    "another class is ignored": (
        lambda x: F.cross_entropy(x, CLASSES.clamp(0), WEIGHT, ignore_index=4, reduction="none"),
        X,
    ),
    "of one sample": (lambda x: F.cross_entropy(x, CLASSES[1], reduction="none"), X[0]),
    "of pixels": (lambda x: F.cross_entropy(x, PIXELS, reduction="none"), IMAGE),
    "of weighted pixels": (lambda x: F.nll_loss(x, PIXELS, WEIGHT[:3], reduction="none"), IMAGE),
}


@pytest.mark.parametrize(("f", "x"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_it_is_known_in_closed_form(f, x):
    plan = tj.plan_jacobian(f, x, objective="fma")
    assert all(factor.structure is not None or factor.forming_cost == 0 for factor in plan.factors)
    assert plan.cost <= x.numel() * min(x.numel(), f(x).numel())  # of what one sweep carries
    for point in (x, x, 2 * x + 1):
        torch.testing.assert_close(plan(point), torch.func.jacrev(f)(point).to(f(x).dtype))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_one_loss_of_all_samples(reduction):
    f = lambda x: F.cross_entropy(x, CLASSES, WEIGHT, reduction=reduction)  # noqa: E731
    torch.testing.assert_close(tj.plan_jacobian(f, X)(X), torch.func.grad(f)(X))


def test_classes_that_are_an_argument_or_change():
    f = lambda x, classes: F.cross_entropy(x, classes, reduction="none")  # noqa: E731
    plan = tj.plan_jacobian(f, (X, CLASSES), wrt=0)
    classes = CLASSES.clone()
    closed = tj.plan_jacobian(lambda x: f(x, classes), X)
    for other in (CLASSES, CLASSES.flip(0)):
        expected = torch.func.jacrev(f)(X, other)
        torch.testing.assert_close(plan((X, other)), expected)
        classes.copy_(other)
        torch.testing.assert_close(closed(X), expected)


def test_a_softmax_of_a_batch():
    f = lambda x: torch.softmax(x, 1)  # noqa: E731 (of channels)
    expected = torch.func.vmap(torch.func.jacrev(lambda x: torch.softmax(x, 0)))(IMAGE)
    torch.testing.assert_close(tj.plan_jacobian(f, IMAGE, batch_dims=1)(IMAGE), expected)


def test_a_softmax_that_is_written_somewhere_is_not_recorded_wrongly():
    f = lambda x: torch.softmax(x, 0, out=None) * x  # noqa: E731
    torch.testing.assert_close(tj.plan_jacobian(f, X)(X), torch.func.jacrev(f)(X))
    with pytest.raises(IndexError, match="Dimension out of range"):
        tj.plan_jacobian(lambda x: torch.softmax(x, 2), X)


OTHER_DTYPES = {
    "by a number": lambda x: x.sum() / torch.tensor(11),
    "by whole numbers": lambda x: x / torch.tensor([3, 7, 11, 13, 17]),
    "by float32": lambda x: x / torch.tensor([3.0, 7.0, 11.0, 13.0, 17.0]),
    "a power of whole numbers": lambda x: torch.tensor([3, 7, 11, 13, 17]) ** x,
    "a mean of those that count": lambda x: F.cross_entropy(x, CLASSES, label_smoothing=0.2),
}


@pytest.mark.parametrize("f", OTHER_DTYPES.values(), ids=OTHER_DTYPES)
def test_other_dtypes_on_the_way_take_no_digits(f):
    plan, expected = tj.plan_jacobian(f, X), torch.func.jacrev(f)(X)
    for _ in range(2):
        torch.testing.assert_close(plan(X), expected, rtol=1e-13, atol=1e-14 * float(expected.abs().max()))
