"""Sums of structures: the right matrix in the union of the patterns."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structure_cases import SIZES, block_of, plain_structures, structures

from torch_jvpvjp.accumulation.structure import (
    Banded,
    BlockDiagonal,
    Dense,
    Diagonal,
    Identity,
    IdentityPlus,
    Kronecker,
    LowerTriangular,
    LowRank,
    PlusLowRank,
    ScaledIdentity,
    Zero,
    add,
    addition,
)

CHECKED = settings(derandomize=True, deadline=None, max_examples=300)
LIKE = torch.empty(0, dtype=torch.float64)


def _pairs(of):
    shapes = st.tuples(st.sampled_from(SIZES), st.sampled_from(SIZES))
    return shapes.flatmap(lambda shape: st.tuples(of(*shape), of(*shape)))


SAMPLES = Kronecker(Identity(3), Dense(2, 2))


@pytest.mark.parametrize("left", [Identity(6), SAMPLES], ids=str)
@pytest.mark.parametrize("right", [Identity(6), SAMPLES], ids=str)
def test_sums_of_the_same_matrix_for_every_sample_stay_that(left, right):
    one, other = block_of(left, 0), block_of(right, 1)
    both = add(one, other)
    assert isinstance(both.structure, Kronecker) or SAMPLES not in {left, right}
    torch.testing.assert_close(both.dense(LIKE), one.dense(LIKE) + other.dense(LIKE))


@CHECKED
@given(_pairs(structures))
def test_sum_of_any_two_structures_is_the_sum_of_their_matrices(pair):
    left, right = (block_of(structure, seed) for seed, structure in enumerate(pair))
    if not (left.structure.constant and right.structure.constant):
        total = add(left, right)
        torch.testing.assert_close(total.dense(LIKE), left.dense(LIKE) + right.dense(LIKE))


@CHECKED
@given(_pairs(plain_structures))
def test_pattern_of_a_sum_is_the_union_of_the_patterns(pair):
    left, right = pair
    a, b = (structure.pattern().toarray() for structure in pair)
    found = addition(left, right)
    np.testing.assert_array_equal(found.result.pattern().toarray(), a | b)
    assert found.fma == (0 if isinstance(found.result, IdentityPlus) else (a & b).sum())


N = 10**30
SUMS = {
    "bands": (Banded(N, N, 1, 3), Banded(N, N, 2, 0), Banded(N, N, 2, 3)),
    "band_diagonal": (Banded(N, N, 0, 3), Diagonal(N), Banded(N, N, 0, 3)),
    "blocks": (BlockDiagonal(10, N, N), BlockDiagonal(100, N, N), BlockDiagonal(10, N, N)),
    "scaled": (ScaledIdentity(N), Identity(N), ScaledIdentity(N)),
    "residual": (Identity(N), Dense(N, N), IdentityPlus(Dense(N, N))),
    "shared_residual": (
        Identity(6), Kronecker(Identity(2), Dense(3, 3)), Kronecker(Identity(2), IdentityPlus(Dense(3, 3))),
    ),
    "low_rank": (LowRank(N, N, 2), Diagonal(N), PlusLowRank(Diagonal(N), 2)),
    "low_ranks": (LowRank(N, N, 2), PlusLowRank(Identity(N), 1), PlusLowRank(Identity(N), 3)),
    "low_rank_dense": (PlusLowRank(Diagonal(3), 2), Dense(3, 3), Dense(3, 3)),
    "zero": (Zero(N, N), LowerTriangular(N, N), LowerTriangular(N, N)),
}  # fmt: skip


@pytest.mark.parametrize(("left", "right", "result"), SUMS.values(), ids=SUMS)
def test_sums_keep_their_structure_at_any_size(left, right, result):
    assert addition(left, right).result == result


def test_mixed_dtypes_are_promoted_in_sums():
    total = add(block_of(Diagonal(2), dtype=torch.float32), block_of(PlusLowRank(Diagonal(2), 1)))
    assert total.dense().dtype == torch.float64


def test_shapes_of_a_sum_must_agree():
    with pytest.raises(ValueError, match=r"shapes of left and right must be equal, got \(2, 3\) and \(3, 2\)"):
        addition(Dense(2, 3), Dense(3, 2))


def test_sums_run_under_vmap():
    rule = addition(Banded(4, 4, 1, 0), Banded(4, 4, 0, 2))
    samples = [(block_of(Banded(4, 4, 1, 0), s).values, block_of(Banded(4, 4, 0, 2), s + 9).values) for s in range(3)]
    a, b = (torch.stack(parts) for parts in zip(*samples, strict=True))
    torch.testing.assert_close(torch.func.vmap(rule.apply)(a, b), torch.stack([rule.apply(*pair) for pair in samples]))
