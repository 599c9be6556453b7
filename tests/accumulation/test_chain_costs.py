"""What a chain of callables knows of itself: sizes, costs, tapes and structures."""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from torch_jvpvjp.accumulation import Chain, Dense, Diagonal, Factor
from torch_jvpvjp.accumulation.structure import Gather, Identity, Kronecker


def _factors(functions, shape):
    return Chain(functions).plan(torch.ones(shape, dtype=torch.float64)).factors


def test_linear_and_elementwise_are_known_in_closed_form():
    net = nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 2)).double()
    assert _factors(net, (6,)) == (
        Factor(6, 4, 24, 24, 4, Dense(4, 6), "linear", shared=True),
        Factor(4, 4, 4, 4, 4, Diagonal(4), "gelu", launches=2),  # its slopes, and their product
        Factor(4, 2, 8, 8, 2, Dense(2, 4), "linear", shared=True),
    )


def test_rows_share_a_weight():
    (factor,) = _factors([nn.Linear(6, 4).double()], (5, 6))
    assert factor.structure == Kronecker(Identity(5), Dense(4, 6))
    assert (factor.given, factor.shared, factor.jvp_cost) == (True, True, 5 * 4 * 6)


W = torch.ones(3, 4, dtype=torch.float64)
FUNCTIONS = {
    # name: (function, structure, jvp, vjp, to form); W is 3 x 4, None for a Jacobian that is known
    "matrix-vector": (lambda v: W @ v, Dense(3, 4), 12, 12, None),
    "rows by a matrix": (lambda v: v.reshape(2, 2) @ W[:2], Kronecker(Identity(2), Dense(4, 2)), 16, 16, None),
    "permutation": (lambda v: v.reshape(2, 2).T, Gather(4, [0, 2, 1, 3]), 0, 0, None),
    "entrywise": (lambda v: torch.sin(v), Diagonal(4), 4, 4, None),
    "two entrywise": (lambda v: torch.sin(v) * torch.exp(v), Diagonal(4), 20, 20, 12),
    "sum": (lambda v: v.sum(), Dense(1, 4), 4, 4, None),
}


@pytest.mark.parametrize(("function", "structure", "jvp", "vjp", "forming"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_stages_that_are_found_have_structure_and_costs(function, structure, jvp, vjp, forming):
    (factor,) = _factors([function], (4,))
    assert factor.structure == structure
    assert (factor.jvp_cost, factor.vjp_cost) == (jvp, vjp)
    assert (factor.given, factor.forming_cost) == (forming is None, forming)


def test_a_view_belongs_to_a_neighbour_and_a_residual_block_is_one_stage():
    linear = nn.Linear(4, 4).double()
    factors = _factors([lambda v: v + torch.tanh(linear(v)).reshape(4), torch.exp], (4,))
    assert [(factor.n, factor.m) for factor in factors] == [(4, 4), (4, 4)]
    assert "3 ops" in factors[0].label or "∘" in factors[0].label


def test_black_boxes_are_counted_op_by_op():
    def branching(v):
        return torch.sin(v) if float(v.detach().sum()) > -100 else v

    (factor,) = _factors([branching], (4,))
    assert (factor.structure, factor.jvp_cost is not None, factor.vjp_cost is not None) == (None, True, True)
    assert factor.vjp_cost == 4  # one product; cos(x) is common to all cotangents


class _Seen(TorchFunctionMode):
    """Sees what sines are taken of; a list that the function wrote into would be put back."""

    def __init__(self):
        super().__init__()
        self.kinds = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.sin:
            self.kinds.append(type(args[0]).__name__)
        return func(*args, **(kwargs or {}))


def test_planning_runs_on_fake_tensors_where_it_can():
    with _Seen() as seen:
        Chain([lambda v: torch.sin(v)]).plan(torch.ones(3))
    assert seen.kinds
    assert set(seen.kinds) <= {"FakeTensor", "Tensor"}
    assert seen.kinds[0] == "FakeTensor"


def test_data_dependent_functions_are_measured_on_real_tensors():
    def branching(v):
        return v.repeat(2) if float(v.detach().sum()) > 0 else v

    assert [f.m for f in _factors([torch.exp, branching], (3,))] == [3, 6]


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
