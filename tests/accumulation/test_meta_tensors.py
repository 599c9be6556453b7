"""Tensors on the meta device, which have no values: a plan needs sizes alone."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from torch_jvpvjp import nn as ours
from torch_jvpvjp.accumulation import jacobian, plan_jacobian

NETS = {
    "bottleneck": nn.Sequential(nn.Linear(50, 4), nn.Tanh(), nn.Linear(4, 30)),
    "norm": nn.Sequential(nn.Linear(50, 20), nn.LayerNorm(20), ours.GELU(), nn.Softmax(-1)),
}


@pytest.mark.parametrize("net", NETS.values(), ids=list(NETS))
@pytest.mark.parametrize("options", [{}, {"objective": "fma"}, {"memory_limit": "1MB"}, {"create_graph": True}])
def test_a_plan_is_that_of_tensors_with_values(net, options):
    x = torch.zeros(50)
    plan = plan_jacobian(net, x, **(options | {"objective": "fma"}))
    empty, nowhere = deepcopy(net).to("meta"), x.to("meta")
    found = plan_jacobian(empty, nowhere, **(options | {"objective": "fma"}))
    assert found.bracketing() == plan.bracketing()
    for _ in range(3):
        assert (found(nowhere).device.type, found(nowhere).shape) == ("meta", plan(x).shape)
        assert jacobian(empty, nowhere, **options).shape == plan(x).shape


def test_the_samples_of_a_batch_cannot_be_compared():
    net, x = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 4)).to("meta"), torch.zeros(3, 5, device="meta")
    assert plan_jacobian(net, x, batch_dims=1)(x).shape == (3, 4, 5)
    found = jacobian(net, x, batch_dims=1, wrt="parameters")
    assert {name: tuple(one.shape) for name, one in found.items()} == {
        "0.weight": (3, 4, 9, 5),
        "0.bias": (3, 4, 9),
        "2.weight": (3, 4, 4, 9),
        "2.bias": (3, 4, 4),
    }


@pytest.mark.parametrize("sparse", [True, "auto"])
def test_sparse_jacobians_have_the_entries_of_those_with_values(sparse):
    x = torch.zeros(5)
    expected = jacobian(torch.sin, x, sparse=sparse)
    for found in (
        jacobian(torch.sin, x.to("meta"), sparse=sparse),
        plan_jacobian(torch.sin, x.to("meta"), sparse=sparse)(x.to("meta")),
        plan_jacobian(torch.sin, x, sparse=sparse)(x.to("meta")),
    ):
        assert (found.device.type, found.shape, found.layout) == ("meta", expected.shape, torch.sparse_coo)
        assert found._nnz() == expected._nnz()
    assert torch.equal(plan_jacobian(torch.sin, x.to("meta"), sparse=sparse)(x).to_dense(), expected.to_dense())
