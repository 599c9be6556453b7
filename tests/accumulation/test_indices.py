"""Reads and writes at indices: gathers and scatters where the indices are known, right where they change."""

from dataclasses import replace

import pytest
import torch
from jacobian_checks import assert_same, judged, randn
from local_rule_checks import Case, aten, check, take
from torch import tensor

from torch_jvpvjp.accumulation import jacobian, plan_jacobian
from torch_jvpvjp.accumulation.rules import LOCAL_RULES, local_derivatives
from torch_jvpvjp.accumulation.structure import Diagonal, Gather, Identity, Pattern, Scatter, WeightedScatter

X = torch.linspace(-1, 2, 12, dtype=torch.float64).reshape(4, 3)
V = torch.linspace(1, 3, 6, dtype=torch.float64).reshape(2, 3)
ROWS, TWICE = tensor([3, 1]), tensor([2, 2])
PLACES = tensor([[1, 0, 2], [3, 0, -1 % 4]])

CASES = {
    "index": Case(aten.index.Tensor, (X, [tensor([2, -1, 2])]), kind=Gather),
    "index_of_columns": Case(aten.index.Tensor, (X, [None, tensor([2, 0])]), kind=Gather),
    "index_by_two": Case(aten.index.Tensor, (X, [ROWS, tensor([0, 2])]), kind=Gather),
    "index_select": Case(aten.index_select.default, (X, 1, tensor([1, 1])), kind=Gather),
    "gather": Case(aten.gather.default, (X, 0, PLACES), kind=Gather),
    "take": Case(aten.take.default, (X, tensor([11, 0])), kind=Gather),
    "embedding": Case(aten.embedding.default, (X, ROWS), kind=Gather),
    "index_add": Case(aten.index_add.default, (X, 0, TWICE, V), active=(0, 2), kind=Identity),
    "index_add_of_source": Case(aten.index_add.default, (X, 0, TWICE, V), active=(2,), kind=Scatter),
    "index_add_times": Case(aten.index_add.default, (X, 0, ROWS, V), {"alpha": -2}, (2,), WeightedScatter),
    "index_copy": Case(aten.index_copy.default, (X, 0, ROWS, V), active=(0, 2), kind=Diagonal),
    "index_put": Case(aten.index_put.default, (X, [ROWS], V), active=(0, 2), kind=Diagonal),
    "index_put_adding": Case(aten.index_put.default, (X, [TWICE], V, True), active=(0, 2), kind=Identity),
    "scatter": Case(aten.scatter.src, (X, 0, tensor([[3, 0, 1], [1, 2, 0]]), V), active=(0, 2), kind=Diagonal),
    "scatter_add": Case(aten.scatter_add.default, (X, 0, PLACES, V), active=(0, 2), kind=Identity),
}
OPEN = {
    "padding": Case(aten.embedding.default, (X, ROWS, 1)),
    "written twice": Case(aten.index_put.default, (X, [TWICE], V)),
    "broadcast": Case(aten.index_put.default, (X, [ROWS], V[0])),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_local_derivatives_at_known_indices(case):
    check(case)


@pytest.mark.parametrize("case", OPEN.values(), ids=OPEN)
def test_what_is_no_gather_or_scatter_is_left_to_autograd(case):
    assert case.op in LOCAL_RULES
    assert take(case).locals == {}


def test_without_the_values_of_the_indices_there_is_no_closed_form():
    call = take(CASES["gather"]).call
    assert local_derivatives(call).keys() == {0}
    assert local_derivatives(replace(call, known={})) == {}


EDGES = torch.stack([torch.arange(19), torch.arange(19) + 1], 1)


def _assembled(u):
    ends = u[EDGES]
    force = (ends[:, 1] - ends[:, 0]).pow(3)
    return torch.zeros_like(u).index_add(0, EDGES[:, 0], force).index_add(0, EDGES[:, 1], -force)


def test_an_assembly_over_elements_is_banded():
    x = randn(20)
    for objective in ("time", "fma", "memory"):
        assert_same(plan_jacobian(_assembled, x, objective=objective)(x), judged(_assembled, x))
    found = jacobian(_assembled, x, sparse="auto")
    assert found.is_sparse and found._nnz() == 58
    assert_same(found.to_dense(), judged(_assembled, x))


def test_indices_made_inside_are_known():
    def function(u):
        index = (torch.arange(u.numel()) + 3) % u.numel()
        return u[index] * u

    x = randn(12)
    structure = plan_jacobian(function, x, sparse=True).factors[0].jacobian
    assert isinstance(structure, Pattern) and structure.nnz == 24
    assert_same(jacobian(function, x, sparse=True).to_dense(), judged(function, x))


def test_indices_written_into_are_read_again():
    index = torch.arange(6).flip(0)

    def function(u):
        return u[index].sin()

    x = randn(6)
    plan = plan_jacobian(function, x)
    for _ in range(2):
        assert_same(plan(x), judged(function, x))
    for place in (2, 5):
        index.numpy()[0] = place  # no version of the tensor counts that
        for _ in range(3):
            assert_same(jacobian(function, x), judged(function, x))
            assert_same(plan(x), judged(function, x))
        assert plan.verify(x)


def test_indices_that_are_arguments_may_be_others_in_each_call():
    def function(u, index):
        return u[index].sin()

    x = randn(6)
    plan = plan_jacobian(function, (x, tensor([0, 3, 3])), wrt=0)
    for index in (tensor([0, 3, 3]), tensor([5, 4, 1]), tensor([2, 2, 2])):
        expected = torch.func.jacrev(function)(x, index)
        assert_same(plan((x, index)), expected)
        assert_same(jacobian(function, (x, index), wrt=0), expected)
