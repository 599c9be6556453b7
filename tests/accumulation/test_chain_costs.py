"""What a chain of callables knows of itself: sizes, costs, tapes and structures."""

import pytest
import torch
from torch import nn

from torch_jvpvjp.accumulation import Chain, Dense, Diagonal, Factor


def _factors(functions, shape):
    return Chain(functions).plan(torch.ones(shape, dtype=torch.float64)).factors


def test_linear_and_elementwise_are_known_in_closed_form():
    net = nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 2)).double()
    assert _factors(net, (6,)) == (
        Factor(6, 4, 24, 24, 0, Dense(4, 6), "Linear"),
        Factor(4, 4, 4, 4, 4, Diagonal(4), "GELU"),
        Factor(4, 2, 8, 8, 0, Dense(2, 4), "Linear"),
    )


def test_rows_share_a_weight_and_so_the_jacobian_is_not_given_dense():
    (factor,) = _factors([nn.Linear(6, 4).double()], (5, 6))
    assert factor == Factor(30, 20, 120, 120, 0, None, "Linear")


W = torch.ones(3, 4, dtype=torch.float64)
BLACK_BOXES = {
    # name: (function, jvp, vjp, tape); W is 3 x 4
    "matrix-vector": (lambda v: W @ v, 12 + 3, 12, 3),  # PyTorch adds the zero tangent of W
    "matrix-matrix": (lambda v: v.reshape(2, 2) @ torch.ones(2, 5, dtype=v.dtype), 20 + 10, 20, 20),
    "view": (lambda v: v.reshape(2, 2).T, 0, 0, 0),
    "product rule": (lambda v: v * v.flip(0), 12, 12, 8),
    "shared slope": (lambda v: torch.sin(v), 4, 4, 4),  # one product; cos(x) is common to all tangents
    "sum": (lambda v: v.sum(), 4, 0, 1),
}


@pytest.mark.parametrize(("function", "jvp", "vjp", "tape"), BLACK_BOXES.values(), ids=BLACK_BOXES)
def test_black_boxes_are_counted_op_by_op(function, jvp, vjp, tape):
    (factor,) = _factors([function], (4,))
    assert factor.structure is None
    assert (factor.jvp_cost, factor.vjp_cost, factor.tape) == (jvp, vjp, tape)


def test_jvp_and_vjp_costs_are_kept_apart():
    (factor,) = _factors([lambda v: torch.softmax(v, 0).cumsum(0)], (10,))
    assert factor.jvp_cost != factor.vjp_cost


def test_planning_runs_on_fake_tensors_where_it_can():
    kinds = []

    def spying(v):
        kinds.append(type(v).__name__)
        return v.sin()

    Chain([spying]).plan(torch.ones(3))
    assert kinds and set(kinds) <= {"FakeTensor", "Tensor"} and kinds[0] == "FakeTensor"


def test_data_dependent_functions_are_measured_on_real_tensors():
    def branching(v):
        return v.repeat(2) if v.sum() > 0 else v

    assert [f.m for f in _factors([torch.exp, branching], (3,))] == [3, 6]


def test_a_stage_that_recurs_is_measured_once():
    calls = []

    def step(v):
        calls.append(1)
        return v + v.sin()

    Chain([step]).plan(torch.ones(3))
    once = len(calls)
    calls.clear()
    Chain([step] * 7).plan(torch.ones(3))
    assert len(calls) == once


def test_planning_draws_no_random_number():
    stages = [nn.Linear(3, 3), nn.Dropout(0.5), nn.LayerNorm(3)]
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    Chain(stages).plan(torch.ones(2, 3))
    assert torch.equal(torch.rand(2), expected)


def test_chain_shows_what_it_is():
    assert repr(Chain.from_sizes([3, 2, 1])) == "Chain.from_sizes([3, 2, 1])"
    assert repr(Chain([torch.sin, nn.Tanh()])) == "Chain([sin, Tanh])"
    assert len(Chain([torch.sin, nn.Tanh()])) == 2
