"""Products of structures: the right matrix, the right pattern, the right count, whatever the bracketing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structure_cases import SIZES, block_of, chains, plain_structures, structures, values_of

from torch_jvpvjp.accumulation.structure import (
    Banded,
    Block,
    BlockDiagonal,
    Dense,
    Diagonal,
    Gather,
    Identity,
    IdentityPlus,
    Kronecker,
    LowerTriangular,
    LowRank,
    Pattern,
    PlusLowRank,
    Pool,
    RowKronecker,
    ScaledIdentity,
    Scatter,
    Stacked,
    Structure,
    Transposed,
    UpperTriangular,
    WeightedGather,
    Zero,
    add,
    multiply,
    product,
    product_rule,
)
from torch_jvpvjp.accumulation.structures.algebra import joined_intervals

CHECKED = settings(derandomize=True, deadline=None, max_examples=400)
LIKE = torch.empty(0, dtype=torch.float64)


def _pattern(structure):
    return structure.pattern().toarray()


@CHECKED
@given(chains(structures, 2))
def test_product_of_any_two_structures_is_the_product_of_their_matrices(pair):
    left, right = (block_of(structure, seed) for seed, structure in enumerate(pair))
    if not (left.structure.constant and right.structure.constant):
        block = multiply(left, right)
        torch.testing.assert_close(block.dense(LIKE), left.dense(LIKE) @ right.dense(LIKE))


@CHECKED
@given(chains(plain_structures, 2))
def test_pattern_and_count_of_a_product_are_those_of_the_boolean_matrices(pair):
    left, right = pair
    a, b = _pattern(left), _pattern(right)
    found = product(left, right)
    np.testing.assert_array_equal(_pattern(found.result), (a.astype(int) @ b.astype(int)) > 0)
    assert found.fma == int(a.sum(0) @ b.sum(1))
    assert type(found.fma) is int


@CHECKED
@given(chains(plain_structures, 3))
def test_structure_of_three_factors_does_not_depend_on_the_bracketing(triple):
    a, b, c = triple
    one = product(product(a, b).result, c).result
    other = product(a, product(b, c).result).result
    assert one == other
    assert one.entries == other.entries


@CHECKED
@given(chains(structures, 3))
def test_matrix_of_three_factors_does_not_depend_on_the_bracketing(triple):
    a, b, c = (block_of(structure, seed) for seed, structure in enumerate(triple))
    if all(not block.structure.constant for block in (a, b, c)):
        one, other = multiply(multiply(a, b), c), multiply(a, multiply(b, c))
        torch.testing.assert_close(one.dense(LIKE), other.dense(LIKE))


@CHECKED
@given(chains(plain_structures, 2))
def test_entries_of_a_product_are_what_it_stores(pair):
    left, right = pair
    result = product(left, right).result
    stored = values_of(result, torch.Generator().manual_seed(0))
    if not result.constant:
        assert stored.numel() == result.entries == (1 if isinstance(result, ScaledIdentity) else result.nnz)


N = 10**30
HUGE = {
    "diagonal_dense": (Diagonal(N), Dense(N, 3 * N), Dense(N, 3 * N), 3 * N**2),
    "dense_dense": (Dense(N, N + 1), Dense(N + 1, 2), Dense(N, 2), 2 * N * (N + 1)),
    "identity_diagonal": (Identity(N), Diagonal(N), Diagonal(N), N),
    "scaled_scaled": (ScaledIdentity(N), ScaledIdentity(N), ScaledIdentity(N), N),
    "zero_dense": (Zero(N, N), Dense(N, 2), Zero(N, 2), 0),
    "blocks_blocks": (
        BlockDiagonal(10**10, N, N), BlockDiagonal(10**20, N, N), BlockDiagonal(10**10, N, N), N * 10**30,
    ),
    "pool_blocks": (Pool(10**10, N), BlockDiagonal(10**20, N, N), Pool(10**10, N), N * 10**10),
    "band_band": (Banded(N, N, 1, 0), Banded(N, N, 0, 1), Banded(N, N, 1, 1), 4 * N - 3),
    "lower_dense": (LowerTriangular(N, N), Dense(N, 5), Dense(N, 5), 5 * N * (N + 1) // 2),
    "lower_lower": (LowerTriangular(N, N), LowerTriangular(N, N), LowerTriangular(N, N), N * (N + 1) * (N + 2) // 6),
    "lower_upper": (
        LowerTriangular(N, N), UpperTriangular(N, N), Dense(N, N), N * (N + 1) * (2 * N + 1) // 6,
    ),
    "weight_dense": (Kronecker(Identity(N), Dense(3, 4)), Dense(4 * N, 2), Dense(3 * N, 2), 24 * N),
    "weight_diagonal": (Kronecker(Identity(N), Dense(3, 4)), Diagonal(4 * N), BlockDiagonal(N, 3 * N, 4 * N), 12 * N),
    "weights": (
        Kronecker(Identity(N), Dense(2, 3)), Kronecker(Identity(N), Dense(3, 5)),
        Kronecker(Identity(N), Dense(2, 5)), 30,
    ),
    "low_rank_dense": (LowRank(N, N, 3), Dense(N, 7), LowRank(N, 7, 3), 21 * N),
    "low_rank_low_rank": (LowRank(N, N, 3), LowRank(N, N, 2), LowRank(N, N, 2), 12 * N),
    "residuals": (IdentityPlus(Dense(N, N)), IdentityPlus(Dense(N, N)), IdentityPlus(Dense(N, N)), N**3),
    "rows": (Dense(2, 3 * N), RowKronecker(N, 3, 5), Dense(2, 15), 30 * N),
    "stacked": (Diagonal(3 * N), RowKronecker(N, 3, 5), Stacked(N, 3, 5), 15 * N),
}  # fmt: skip


@pytest.mark.parametrize(("left", "right", "result", "fma"), HUGE.values(), ids=HUGE)
def test_products_are_exact_beyond_every_machine_integer(left, right, result, fma):
    found = product(left, right)
    assert (found.result, found.fma) == (result, fma)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_closed_counts_agree_with_small_patterns(n):
    for left, right in [(LowerTriangular(n, n), UpperTriangular(n, n)), (Banded(n, n + 2, 1, 3), Dense(n + 2, 3))]:
        assert product(left, right).fma == int(_pattern(left).sum(0) @ _pattern(right).sum(1))


def test_low_rank_keeps_its_factors_apart():
    m, k, n = 7, 6, 5
    left, right = PlusLowRank(LowerTriangular(m, k), 2), PlusLowRank(Dense(k, n), 1)
    assert product(LowRank(m, k, 2), LowRank(k, n, 3)).result == LowRank(m, n, 2)
    assert product(LowRank(m, k, 2), right).result == LowRank(m, n, 2)
    assert product(left, LowRank(k, n, 3)).result == LowRank(m, n, 3)
    assert product(left, right).result == Dense(m, n)
    assert product(PlusLowRank(Diagonal(k), 1), PlusLowRank(Identity(k), 2)).result == PlusLowRank(Diagonal(k), 3)
    assert product(left, Diagonal(k)).result == PlusLowRank(LowerTriangular(m, k), 2)


@pytest.mark.parametrize("size", [(0, 3), (3, 0)], ids=str)
def test_low_rank_without_rows_or_columns(size):
    empty, full = block_of(LowRank(*size, 1)), block_of(PlusLowRank(Identity(3), 1))
    left, right = (empty, full) if size[1] else (full, empty)
    assert multiply(left, right).dense(torch.empty(0, dtype=torch.float64)).shape == size


def test_residual_blocks_stay_residual_where_they_can():
    n = 4
    assert product(IdentityPlus(Diagonal(n)), Diagonal(n)).result == Diagonal(n)
    assert product(IdentityPlus(LowRank(n, n, 1)), Identity(n)).result == IdentityPlus(LowRank(n, n, 1))
    assert product(IdentityPlus(LowRank(n, n, 1)), Diagonal(n)).result == PlusLowRank(Diagonal(n), 1)
    shared = IdentityPlus(Kronecker(Identity(3), Dense(n, n)))
    found = product(shared, shared)
    assert found.result == Kronecker(Identity(3), IdentityPlus(Dense(n, n)))
    assert found.fma == n**3


def test_weight_gradients_of_a_batch_form_gram_matrices():
    rows = RowKronecker(4, 2, 3)
    assert product(rows, rows.transposed())[:2] == (Kronecker(Dense(4, 4), Identity(2)), 48)
    assert product(rows.transposed(), rows)[:2] == (Kronecker(Identity(2), Dense(3, 3)), 36)
    assert product(BlockDiagonal(4, 12, 8), rows)[:2] == (Dense(12, 6), 12 * 2 * 3)
    assert product(Kronecker(Identity(4), Dense(3, 2)), rows)[:2] == (Dense(12, 6), 12 * 2 * 3)


def test_constants_stay_without_values():
    found = product(Gather(4, [3, 1]), Gather(5, [0, 4, 2, 2]))
    assert found.result == Gather(5, [2, 4])
    assert found.apply((), ()) == ()
    assert product(Scatter(3, [2, 2, 0]), Scatter(3, [1, 1])).result == Scatter(3, [2, 2])


def test_products_at_working_sizes_take_every_way_of_execution():
    rng = np.random.default_rng(0)
    sparse_ = Pattern.of(rng.random((300, 300)) < 0.01)
    denser = Pattern.of(rng.random((300, 300)) < 0.2)
    narrow = Banded(300, 300, 1, 2)
    for left, right in [
        (sparse_, Dense(300, 7)), (Dense(7, 300), sparse_), (denser, Dense(300, 7)), (Dense(7, 300), narrow),
        (sparse_, denser), (denser, denser), (narrow, sparse_), (narrow, narrow), (LowerTriangular(300, 300), narrow),
        (sparse_, sparse_),
    ]:  # fmt: skip
        a, b = block_of(left, 1), block_of(right, 2)
        torch.testing.assert_close(multiply(a, b).dense(), a.dense() @ b.dense())


IN_FRONT = {
    "weight": Kronecker(Identity(3), Dense(4, 2)),
    "blocks": BlockDiagonal(3, 12, 6),
    "diagonal": Diagonal(6),
    "scaled": ScaledIdentity(6),
}


@pytest.mark.parametrize("left", IN_FRONT.values(), ids=IN_FRONT)
def test_columns_that_stand_in_front_in_memory_stay_there(left):
    a, x = block_of(left, 1), torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).T
    found = multiply(a, Block(Dense(6, 5), x))
    torch.testing.assert_close(found.dense(), a.dense() @ x)
    assert found.values.T.is_contiguous()
    both = add(Block(Dense(6, 5), x.contiguous()), Block(Dense(6, 5), x))
    assert torch.equal(both.dense(), 2 * x)
    assert both.values.T.is_contiguous()


SPARSE_ROWS = {
    "gather": Gather(6, [0, 3, 4]),
    "scatter": Scatter(4, [1, 0, 1, 3, 3, 1]),
    "mean_over_samples": Pattern.of(np.tile(np.eye(2, dtype=bool), 3)),
    "two_of_a_block": Pattern.of(np.array([[1, 1, 0, 0, 1, 0]], dtype=bool)),
}


@pytest.mark.parametrize("left", SPARSE_ROWS.values(), ids=SPARSE_ROWS)
def test_sparse_rows_times_a_shared_weight_have_the_entries_and_the_count_of_the_product_multiplied_out(left):
    weight = Kronecker(Identity(3), Dense(2, 5))
    a, b = block_of(left, 1), block_of(weight, 2)
    found, blocks = product(left, weight), product(left, BlockDiagonal(3, 6, 15))
    assert found.result == blocks.result
    torch.testing.assert_close(multiply(a, b).dense(LIKE), a.dense(LIKE) @ b.dense())


def test_a_new_structure_is_multiplied_as_dense_and_by_its_own_rules():
    class Shift(Structure):
        name = "shift-for-this-test"

        def __init__(self, n):
            self.m = self.n = n

        entries = 0

        def dense(self, values, like=None):
            return torch.eye(self.n, dtype=torch.float64).roll(1, 0)

    shift, b = Shift(3), block_of(Dense(3, 2))
    found = product(shift, b.structure)
    assert found[:2] == (Dense(3, 2), 18)
    torch.testing.assert_close(found.apply((), b.values), b.values.roll(1, 0))

    @product_rule(Shift, Dense)
    def shifted(left, right):
        return product(Identity(left.n), right)._replace(apply=lambda a, b: b.roll(1, 0))

    found = product(shift, b.structure)
    assert found.fma == 6
    torch.testing.assert_close(found.apply((), b.values), b.values.roll(1, 0))


@settings(derandomize=True, deadline=None, max_examples=120)
@given(chains(structures, 2), st.integers(2, 3))
def test_products_run_under_vmap(pair, batch):
    left, right = pair
    samples = [(block_of(left, 2 * s).values, block_of(right, 2 * s + 1).values) for s in range(batch)]
    if any(_count(part) == 0 for part in samples[0]):
        return
    rule = product(left, right)
    together = torch.func.vmap(lambda a, b: rule.result.dense(rule.apply(a, b), LIKE))(
        _stacked([a for a, _ in samples]), _stacked([b for _, b in samples])
    )
    for s, (a, b) in enumerate(samples):
        torch.testing.assert_close(together[s], rule.result.dense(rule.apply(a, b), LIKE))


def _count(values):
    return 1 if isinstance(values, torch.Tensor) else sum(map(_count, values))


def _stacked(samples):
    if isinstance(samples[0], torch.Tensor):
        return torch.stack(samples)
    return tuple(_stacked(list(parts)) for parts in zip(*samples, strict=True))


GRADIENTS = {
    "blocks_dense": (BlockDiagonal(2, 4, 6), Dense(6, 2)),
    "pattern_pattern": (Pattern.of(np.eye(3, 4, k=1)), Banded(4, 3, 1, 1)),
    "gather_diagonal": (WeightedGather(3, [2, 0, 2]), Diagonal(3)),
    "low_rank": (PlusLowRank(Diagonal(3), 1), PlusLowRank(Banded(3, 3, 1, 0), 2)),
    "kronecker_dense": (Kronecker(Banded(2, 2, 1, 0), Dense(2, 3)), Dense(6, 2)),
    "residual": (IdentityPlus(Dense(3, 3)), Diagonal(3)),
    "row_gram": (RowKronecker(2, 2, 3), Transposed(RowKronecker(2, 2, 3))),
}


@pytest.mark.parametrize(("left", "right"), GRADIENTS.values(), ids=GRADIENTS)
def test_gradients_flow_through_products(left, right):
    rule, leaves = product(left, right), []

    def rebuild(values, found):
        if isinstance(values, torch.Tensor):
            return found.pop(0)
        return tuple(rebuild(part, found) for part in values)

    def collect(values):
        if isinstance(values, torch.Tensor):
            leaves.append(values.requires_grad_())
        else:
            for part in values:
                collect(part)

    pair = (block_of(left, 1).values, block_of(right, 2).values)
    collect(pair)

    def matrix(*tensors):
        found = list(tensors)
        return rule.result.dense(rule.apply(rebuild(pair[0], found), rebuild(pair[1], found)), LIKE)

    assert torch.autograd.gradcheck(matrix, leaves)


def test_products_are_traced_into_plain_operations():
    from torch.fx.experimental.proxy_tensor import make_fx

    left, right = block_of(Pattern.of(np.eye(4, 4, k=1) + np.eye(4)), 1), block_of(Banded(4, 4, 1, 1), 2)
    rule = product(left.structure, right.structure)
    traced = make_fx(rule.apply)(left.values, right.values)
    torch.testing.assert_close(traced(left.values, right.values), rule.apply(left.values, right.values))
    other = block_of(left.structure, 3).values
    torch.testing.assert_close(traced(other, right.values), rule.apply(other, right.values))


@pytest.mark.parametrize("size", SIZES)
def test_products_do_not_write_into_their_factors(size):
    for left, right in [(Dense(size, size), Dense(size, size)), (Identity(size), Diagonal(size))]:
        a, b = block_of(left, 1), block_of(right, 2)
        kept = b.values.clone()
        multiply(a, b)
        torch.testing.assert_close(b.values, kept, rtol=0, atol=0)


def _boolean_product(left, right):
    return (left.pattern().astype(np.int64) @ right.pattern().astype(np.int64)).toarray() > 0


@CHECKED
@given(st.data())
def test_rows_that_are_intervals_are_joined_without_multiplying(data):
    m, k, n = (data.draw(st.sampled_from(SIZES)) for _ in range(3))
    left, right = data.draw(plain_structures(m, k)), data.draw(plain_structures(k, n))
    joined = joined_intervals(left, right)
    if joined is not None:
        columns = np.arange(n)
        rows = (columns >= joined[0][:, None]) & (columns < joined[1][:, None])
        assert np.array_equal(rows, _boolean_product(left, right))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (LowerTriangular(900, 900), BlockDiagonal(90, 900, 900)),
        (BlockDiagonal(30, 900, 600), UpperTriangular(600, 900)),
        (Banded(900, 900, 1, 2), LowerTriangular(900, 900)),
        (UpperTriangular(900, 900), Pool(900, 1800)),
    ],
    ids=["triangle, blocks", "blocks, triangle", "band, triangle", "triangle, pool"],
)
def test_large_products_of_intervals_are_those_of_patterns(left, right):
    assert joined_intervals(left, right) is not None
    found = product(left, right)
    assert np.array_equal(found.result.pattern().toarray(), _boolean_product(left, right))
    assert found.fma == int(left.column_counts() @ right.row_counts()) > 2**18
