"""Constants that a program has made lie as what they meet entry by entry; others stay, and nothing else changes."""

import pytest
import torch
from jacobian_checks import assert_same, judged
from replay_checks import program_of, recorded
from torch import nn

from torch_jvpvjp.accumulation import plan_jacobian

N = 80
GENERATOR = torch.Generator().manual_seed(0)
X, GIVEN = torch.randn(2, N, N, generator=GENERATOR)

CASES = {  # a function of a matrix, and whether a constant of it is laid out anew
    "sum": (lambda x: (x * 2).t() + torch.eye(N), True),
    "of the input": (lambda x: x.t() - torch.triu(torch.ones(N, N)), True),
    "product, twice": (lambda x: (x.cos().t() * torch.eye(N)) * (x.sin().t() * torch.eye(N)), True),
    "lies alike": (lambda x: x.sin() + torch.eye(N), False),
    "a row": (lambda x: x.sin().t() + torch.arange(N, dtype=x.dtype) * 2, False),
    "with gaps": (lambda x: x.sin().t()[:, ::2] + torch.eye(N)[:, ::2], False),
    "broadcast": (lambda x: x.sin().t()[:1] + torch.eye(N), False),
    "from outside": (lambda x: x.sin().t() + GIVEN, False),
    "constant first": (lambda x: torch.triu(torch.ones(N, N)) - x.sin().t(), False),  # the result lies as it does
}


@pytest.mark.parametrize(("function", "relaid"), CASES.values(), ids=CASES)
def test_a_constant_lies_as_what_it_meets(function, relaid):
    program = recorded(function, X)
    strides = {tensor.stride() for tensor in program.fixed.values() if tensor.dim() == 2 and tensor is not GIVEN}
    assert ((1, N) in strides) is relaid
    for point in (X, X + 1):
        (found,) = program(point)
        assert found.stride() == function(point).stride()
        assert torch.equal(found, function(point))


def test_the_identity_beside_a_residual_layer_is_laid_out_once():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(N, N), nn.Tanh(), nn.Linear(N, N))

    def residual(v):
        rows = v + GIVEN[:3]  # of all, the tangents are those of v
        return rows + inner(rows)

    x = torch.randn(N, generator=GENERATOR)
    plan = plan_jacobian(residual, x, strategy="forward")
    program = program_of(plan, x)
    met = [tensor for tensor in program.fixed.values() if tensor.shape == (3 * N, N)]
    assert met and all(tensor.stride() == (1, 3 * N) for tensor in met)
    assert_same(plan(x), judged(residual, x), 1e-5)
