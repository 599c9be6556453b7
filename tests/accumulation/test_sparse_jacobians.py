"""Jacobians as sparse tensors: the same numbers, and only where the structure says that there are any."""

import pytest
import torch
from jacobian_checks import F64, assert_same, judged, randn
from torch import nn
from torch.utils._pytree import tree_flatten

from torch_jvpvjp.accumulation import jacobian, plan_jacobian


def _stencil(v):
    return (v.roll(1) - 2 * v + v.roll(-1)) * v.square()


def _sliced(v):
    return v[1:] * v[:-1] - v[1:].sin()


FUNCTIONS = {
    "periodic stencil": (_stencil, (12,)),
    "slices": (_sliced, (12,)),
    "elementwise": (torch.sin, (4, 3)),
    "rows": (lambda v: v.square().sum(-1), (6, 4)),
    "two layers of stencils": (lambda v: _sliced(_sliced(v)), (16,)),
    "permuted": (lambda v: v.T.reshape(-1), (3, 4)),
}


@pytest.mark.parametrize("sparse", [True, "auto"])
@pytest.mark.parametrize(("function", "shape"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_sparse_jacobians_are_the_dense_ones(function, shape, sparse):
    x = randn(*shape)
    plan = plan_jacobian(function, x, sparse=sparse)
    for point in (x, x, x + 0.5):
        expected = judged(function, point)
        for found in (plan(point), jacobian(function, point, sparse=sparse)):
            assert found.is_sparse and found.is_coalesced() and found.shape == expected.shape
            torch.testing.assert_close(found.to_dense(), expected)
            assert found._nnz() <= expected.numel() / 2
            assert torch.equal(found.indices(), found.detach().clone().coalesce().indices())


def test_auto_is_dense_where_nothing_is_saved():
    net, x = nn.Linear(4, 3).to(F64), randn(4)
    for _ in range(2):
        found = jacobian(net, x, sparse="auto")
        assert not found.is_sparse
        torch.testing.assert_close(found, net.weight.detach())
        torch.testing.assert_close(jacobian(net, x, sparse=True).to_dense(), net.weight.detach())


def _of_trees(given):
    a, b = given
    return {"differences": a.diff().float(), "products": (a[:4].reshape(2, 2) * b, b.sum(0))}


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("sparse", [True, "auto"])
def test_trees_have_a_sparse_tensor_for_each_output_in_each_input(sparse, create_graph):
    for _ in range(3):
        given = (randn(9), randn(2, 2))
        leaves, spec = tree_flatten(jacobian(_of_trees, (given,), sparse=sparse, create_graph=create_graph))
        judges, judged_spec = tree_flatten(torch.func.jacrev(_of_trees, argnums=(0,))(given))
        assert spec == judged_spec and len(leaves) == 6
        for leaf, judge in zip(leaves, judges, strict=True):
            assert leaf.is_sparse and leaf.is_coalesced()
            assert torch.equal(leaf.indices(), leaf.detach().clone().coalesce().indices())
            torch.testing.assert_close(leaf.to_dense().to(judge.dtype), judge)


def test_parameters_have_sparse_tensors():
    table = nn.Embedding(7, 2).to(F64)
    rows = torch.tensor([1, 3, 3])
    found = jacobian(_Lookup(table, rows), randn(2), wrt="parameters", sparse="auto")["table.weight"]
    assert found.is_sparse and found._nnz() == 6
    expected = torch.func.jacrev(lambda weight: weight[rows])(table.weight.detach())
    assert torch.equal(found.to_dense(), expected)


class _Lookup(nn.Module):
    def __init__(self, table, rows):
        super().__init__()
        self.table, self.rows = table, rows

    def forward(self, x):
        return self.table(self.rows) + x


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="sparse must be True, False or 'auto', got 'csr'"):
        jacobian(torch.sin, randn(3), sparse="csr")


def test_a_jacobian_kept_as_factors_has_its_entries_read_out():
    """Y = X Wᵀ has the Jacobian I ⊗ W, of which W alone is stored."""
    x, weight = randn(6, 1), randn(5, 1)

    def function(v):
        return v @ weight.t()

    for _ in range(3):
        found = jacobian(function, x, sparse="auto")
        assert found.layout is torch.sparse_coo
        assert found._nnz() == 30
        assert_same(found.to_dense(), judged(function, x))
