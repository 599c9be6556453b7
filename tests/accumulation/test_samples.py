"""Ops on stacks of matrices: without closed form, and block-diagonal all the same."""

import pytest
import torch
from jacobian_checks import F64, assert_same, check_jacobian, judged, quiet_judge, randn
from torch import linalg

from torch_jvpvjp.accumulation import plan_jacobian
from torch_jvpvjp.accumulation.structure import (
    BlockDiagonal,
    Dense,
    Diagonal,
    Gather,
    Identity,
    Kronecker,
    Pattern,
    Pool,
)
from torch_jvpvjp.accumulation.tracing.samples import keeps_to_samples

EYE = 4 * torch.eye(3, dtype=F64)
STACK = torch.randn(5, 3, 3, dtype=F64, generator=torch.Generator().manual_seed(0)) + EYE
TURNED = STACK.to(torch.complex128) + 1j

ONE_BY_ONE = {
    "cholesky": (lambda a: linalg.cholesky(a @ a.mT + EYE), (5, 3, 3)),
    "matrix_exp": (linalg.matrix_exp, (5, 3, 3)),
    "a stack of stacks": (linalg.matrix_exp, (2, 3, 2, 2)),
    "solve": (lambda a: linalg.solve(a + EYE, STACK[..., :2]), (5, 3, 3)),
    "solve, right side": (lambda b: linalg.solve(STACK, b), (5, 3, 2)),
    "solve, vectors": (lambda b: linalg.solve(STACK, b.sin()), (5, 3)),
    "solve, one matrix": (lambda b: linalg.solve(STACK[0], b.sin()), (5, 3, 1)),
    "solve, complex": (lambda b: linalg.solve(TURNED, torch.complex(b, b.sin())).abs(), (5, 3, 2)),
    "solve, both": (lambda a: linalg.solve(a + EYE, a * a), (5, 3, 3)),
    "det": (lambda a: linalg.det(a + EYE), (5, 3, 3)),
    "slogdet": (lambda a: linalg.slogdet(a + EYE)[1], (5, 3, 3)),
    "triangular": (lambda a: linalg.solve_triangular(a.tril() + EYE, STACK, upper=False), (5, 3, 3)),
    "cholesky_solve": (lambda b: torch.cholesky_solve(b, linalg.cholesky(STACK @ STACK.mT)), (5, 3, 1)),
    "eigenvalues": (lambda a: linalg.eigvalsh(a + a.mT + EYE * torch.arange(3)), (5, 3, 3)),
    "qr": (lambda a: linalg.qr(a + EYE)[1], (5, 3, 3)),
    "svd": (lambda a: linalg.svdvals(a + EYE * torch.arange(3)), (5, 3, 3)),
    "inverse": (lambda a: linalg.inv(a + EYE), (5, 3, 3)),
    "products of complex matrices": (lambda a: ((a + 1j) @ TURNED).imag, (5, 3, 3)),
}


@quiet_judge
@pytest.mark.parametrize(("f", "shape"), ONE_BY_ONE.values(), ids=ONE_BY_ONE)
def test_a_stack_of_matrices(f, shape):
    check_jacobian(f, 0.3 * randn(*shape), tolerance=1e-9)


@quiet_judge
@pytest.mark.parametrize("strategy", ["forward", "reverse"])
@pytest.mark.parametrize(("f", "shape"), ONE_BY_ONE.values(), ids=ONE_BY_ONE)
def test_it_is_right_by_tangents_and_by_adjoints(f, shape, strategy):
    x = 0.3 * randn(*shape)
    assert_same(plan_jacobian(f, x, strategy=strategy, objective="fma")(x), judged(f, x), 1e-9)
    assert_same(plan_jacobian(f, x, strategy=strategy, matrix_free=False)(x), judged(f, x), 1e-9)


@quiet_judge
@pytest.mark.parametrize(("f", "shape"), ONE_BY_ONE.values(), ids=ONE_BY_ONE)
def test_its_jacobian_has_the_gradient_of_jacrev(f, shape):
    x = (0.3 * randn(*shape)).requires_grad_()
    expected = torch.func.jacrev(f, chunk_size=1)(x).sin().sum() + 0 * x.sum()
    found = plan_jacobian(f, x, create_graph=True, matrix_free=False)(x).sin().sum() + 0 * x.sum()
    assert_same(torch.autograd.grad(found, x), torch.autograd.grad(expected, x), 1e-7)


@pytest.mark.parametrize("name", ["matrix_exp", "a stack of stacks", "solve, right side", "qr", "svd", "triangular"])
def test_its_factor_is_block_diagonal(name):
    f, shape = ONE_BY_ONE[name]
    factors = plan_jacobian(f, torch.zeros(shape, dtype=F64)).factors
    assert any(isinstance(factor.structure, BlockDiagonal) and factor.structure.b > 1 for factor in factors)


def test_a_tangent_carries_a_column_of_every_sample():
    x = randn(5, 3, 3)
    (factor,) = plan_jacobian(linalg.matrix_exp, x, objective="fma").factors
    assert factor.structure == BlockDiagonal(5, 45, 45)
    assert factor.forming_cost == 9 * factor.jvp_cost


def test_it_is_priced_by_its_arithmetic_and_by_what_its_derivative_launches():
    x = randn(5, 3, 3)
    (exponentials,) = plan_jacobian(linalg.matrix_exp, x).factors
    assert exponentials.jvp_cost == 48 * 5 * 27
    (solves,) = plan_jacobian(lambda b: linalg.solve(STACK, b), x).factors
    assert solves.vjp_cost == 5 * 27
    triangles = max(plan_jacobian(lambda a: linalg.qr(a)[1], x).factors, key=lambda factor: factor.launches)
    assert triangles.launches > solves.launches > 3
    assert triangles.pull_launches is not None


@quiet_judge
def test_a_matrix_that_all_samples_share_is_no_sample():
    def f(a):
        return linalg.solve(a + EYE, STACK)

    check_jacobian(f, randn(3, 3))


KEEP = [
    Identity(6), Diagonal(6), BlockDiagonal(3, 6, 9), BlockDiagonal(6, 6, 12), Pool(3, 6),
    Gather(3, [0, 0, 1, 1, 2, 2]),
    Kronecker(Identity(3), Dense(2, 4)), Pattern(3, 3, [0, 1, 1, 2], [0, 2]),
]  # fmt: skip
MIX = [
    Dense(6, 6), BlockDiagonal(2, 6, 6), Kronecker(Dense(3, 3), Identity(2)), Identity(4),
    Gather(3, [1, 1, 0, 0, 2, 2]),
]  # fmt: skip


@pytest.mark.parametrize("structure", KEEP, ids=lambda one: one.name)
def test_a_structure_keeps_to_three_samples(structure):
    assert keeps_to_samples(structure, 3)


@pytest.mark.parametrize("structure", MIX, ids=lambda one: one.name)
def test_a_structure_mixes_three_samples(structure):
    assert not keeps_to_samples(structure, 3)
