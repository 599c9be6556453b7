"""Functions whose results have sizes that depend on data: repeated slices and distinct numbers."""

import pytest
import torch
from jacobian_checks import F64, assert_same, judged, randn

from torch_jvpvjp.accumulation import plan_jacobian

N = 6


def _counts():
    return torch.tensor([1, 0, 2, 3, 1, 1])


def _labels():
    return torch.tensor([3, 1, 3, 2, 1, 7])


def _repeated(v, counts=None):
    return v.sin().repeat_interleave(_counts() if counts is None else counts)


def _repeated_columns(v):
    return torch.repeat_interleave(torch.outer(v, v), _counts(), dim=1).sin()


def _repeated_by_sign(v):
    return v.sin().repeat_interleave((v > 0).long() + 1)


def _with_size(v):
    return v.repeat_interleave(_counts(), output_size=8)


def _by_label(v, labels=None):
    labels = _labels() if labels is None else labels
    return torch.stack([(v * v)[labels == label].sum() for label in torch.unique(labels)])


def _means_by_label(v):
    labels, places, counts = torch.unique(_labels(), return_inverse=True, return_counts=True)
    return torch.zeros(len(labels), dtype=v.dtype).index_add(0, places, v * v) / counts


def _by_bin(v):
    bins, places = (3 * v).floor().long().clamp(-2, 2).unique(return_inverse=True)
    return torch.zeros(len(bins), dtype=v.dtype).index_add(0, places, v.exp())


def _by_truth(v):
    return torch.unique(v > 0).sum() * v


FUNCTIONS = [
    _repeated, _repeated_columns, _repeated_by_sign, _with_size, _by_label, _means_by_label, _by_bin, _by_truth,
]  # fmt: skip


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
def test_the_jacobian_is_that_of_the_size_at_each_point(f):
    x = randn(N)
    plan = plan_jacobian(f, x)
    assert not plan.runtime.refusals()
    for scale in (1, -1, 0.3, 1, -0.5):
        found, expected = plan(scale * x), judged(f, scale * x)
        assert found.shape == expected.shape
        assert_same(found, expected)


@pytest.mark.parametrize(("f", "whole"), [(_repeated, _counts()), (_by_label, _labels())], ids=["counts", "labels"])
def test_a_write_into_whole_numbers_from_outside_is_seen(f, whole):
    x = randn(N)
    plan = plan_jacobian(lambda v: f(v, whole), x)
    for _ in range(2):
        assert_same(plan(x), judged(lambda v: f(v, whole), x))
    whole[0] = 5
    for _ in range(2):
        assert_same(plan(x), judged(lambda v: f(v, whole), x))
    plan = plan_jacobian(f, (x, whole), wrt=0)
    for change in (0, 1, 0):
        given = whole + change
        assert_same(plan((x, given)), judged(lambda v, given=given: f(v, given), x))


def test_what_pytorch_refuses_is_refused():
    x = randn(N)
    for repeats in (torch.tensor([1, 2]), torch.tensor([-1, 1, 1, 1, 1, 1]), torch.ones(N, dtype=F64)):
        with pytest.raises((RuntimeError, ValueError), match="repeat"):
            plan_jacobian(lambda v, repeats=repeats: v.repeat_interleave(repeats), x)(x)
    with pytest.raises((RuntimeError, ValueError), match="size"):
        plan_jacobian(lambda v: v.repeat_interleave(_counts(), output_size=3), x)(x)
    plan = plan_jacobian(lambda v: v * torch.unique(_labels(), sorted=False).sum(), x)
    assert_same(plan(x), 13 * torch.eye(N, dtype=F64))


def test_a_fraction_that_python_gets_is_a_constant_of_each_call():
    def f(v):
        return v.sin() * float(v.detach().max())

    x = randn(N)
    plan = plan_jacobian(f, x)
    for scale in (1, 2, -1):
        assert_same(plan(scale * x), torch.diag((scale * x).cos() * (scale * x).max()))
