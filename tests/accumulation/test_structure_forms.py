"""What a structure tells of itself: matrix, pattern, transpose, colouring and file."""

import json

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from structure_cases import SIZES, block_of, plain_structures, structures

from torch_jvpvjp.accumulation.structure import (
    Banded,
    BlockDiagonal,
    Dense,
    Diagonal,
    Gather,
    Identity,
    IdentityPlus,
    Index,
    Kronecker,
    LowerTriangular,
    LowRank,
    Pattern,
    Pool,
    RowKronecker,
    ScaledIdentity,
    Scatter,
    Stacked,
    UpperTriangular,
    WeightedGather,
    WeightedScatter,
    Zero,
    structure_from_data,
)

CHECKED = settings(derandomize=True, deadline=None, max_examples=300)
LIKE = torch.empty(0, dtype=torch.float64)


def _shapes(of):
    return st.tuples(st.sampled_from(SIZES), st.sampled_from(SIZES)).flatmap(lambda shape: of(*shape))


@CHECKED
@given(_shapes(structures))
def test_pattern_holds_every_entry_and_its_counts_are_those_of_rows_and_columns(structure):
    pattern = structure.pattern().toarray()
    assert pattern.shape == (structure.m, structure.n)
    assert structure.nnz == pattern.sum()
    np.testing.assert_array_equal(structure.row_counts(), pattern.sum(1))
    np.testing.assert_array_equal(structure.column_counts(), pattern.sum(0))
    assert not block_of(structure).dense(LIKE)[torch.from_numpy(~pattern)].any()


@CHECKED
@given(_shapes(plain_structures))
def test_entries_of_a_plain_structure_fill_its_pattern(structure):
    filled = (block_of(structure).dense(LIKE) != 0).numpy()
    np.testing.assert_array_equal(filled, structure.pattern().toarray())


@CHECKED
@given(_shapes(plain_structures))
def test_values_are_read_back_out_of_the_matrix(structure):
    block = block_of(structure)
    read = structure.gather_values(block.dense(LIKE))
    torch.testing.assert_close(read, block.values, rtol=0, atol=0)


@CHECKED
@given(_shapes(structures))
def test_values_of_the_transpose_make_the_transposed_matrix(structure):
    block = block_of(structure)
    flipped = structure.transposed()
    matrix = flipped.dense(structure.transpose_values(block.values), LIKE)
    torch.testing.assert_close(matrix, block.dense(LIKE).mT, rtol=0, atol=0)
    assert (flipped.m, flipped.n, flipped.nnz) == (structure.n, structure.m, structure.nnz)
    np.testing.assert_array_equal(flipped.pattern().toarray(), structure.pattern().toarray().T)


@CHECKED
@given(_shapes(structures))
def test_columns_of_one_colour_share_no_row(structure):
    colour = structure.colouring()
    assert colour.shape == (structure.n,)
    assert (colour >= 0).all() and (colour < structure.colours).all()
    of_colour = np.eye(structure.colours, dtype=int)[colour]
    assert (structure.pattern().toarray().astype(int) @ of_colour).max(initial=0) <= 1


@CHECKED
@given(_shapes(plain_structures))
def test_a_tangent_for_each_colour_recovers_the_values(structure):
    block = block_of(structure)
    tangents = torch.eye(structure.colours, dtype=torch.float64)[torch.from_numpy(structure.colouring())]
    recovered = structure.decompress(block.dense(LIKE) @ tangents)
    torch.testing.assert_close(recovered, block.values, rtol=0, atol=0)


@CHECKED
@given(_shapes(structures))
def test_structures_go_through_files(structure):
    text = json.dumps(structure.to_data())
    again = structure_from_data(json.loads(text))
    assert again == structure
    assert hash(again) == hash(structure)
    assert isinstance(structure.name, str)


COLOURS = {
    "diagonal": (Diagonal(5), 1),
    "dense": (Dense(3, 5), 5),
    "banded": (Banded(9, 9, 1, 2), 4),
    "wide_band": (Banded(4, 4, 9, 9), 4),
    "blocks": (BlockDiagonal(3, 6, 9), 3),
    "pool": (Pool(3, 12), 4),
    "gather": (Gather(5, [3, 3, 1]), 1),
    "scatter": (Scatter(5, [3, 3, 1]), 2),
    "lower": (LowerTriangular(3, 7), 3),
    "upper": (UpperTriangular(3, 7), 7),
    "stacked": (Stacked(4, 3, 2), 2),
    "arrow": (Pattern.of(np.eye(6) + np.eye(1, 6)), 2),
    "pentagon": (Pattern.of(np.eye(5) + np.roll(np.eye(5), 1, axis=1)), 3),
    "huge": (Banded(10**30, 10**30, 2, 2), 5),
    "samples": (Kronecker(Identity(4), Dense(2, 3)), 3),
}


@pytest.mark.parametrize(("structure", "colours"), COLOURS.values(), ids=COLOURS)
def test_colours_are_as_few_as_counted_by_hand(structure, colours):
    assert structure.colours == colours


FILES = {
    "dense": ({"kind": "dense", "m": 2, "n": 3}, Dense(2, 3)),
    "diag": ({"kind": "diag", "m": 3, "n": 3}, Diagonal(3)),
    "banded": ({"kind": "banded", "m": 4, "n": 5, "kl": 1, "ku": 2}, Banded(4, 5, 1, 2)),
    "block_diag": ({"kind": "block_diag", "m": 4, "n": 6, "b": 2}, BlockDiagonal(2, 4, 6)),
    "lower_tri": ({"kind": "lower_tri", "m": 4, "n": 4}, LowerTriangular(4, 4)),
    "pool": ({"kind": "pool", "m": 2, "n": 6}, Pool(2, 6)),
    "gather": ({"kind": "gather", "m": 2, "n": 6, "idx": [5, 0]}, Gather(6, [5, 0])),
    "diagonal": ({"kind": "diagonal", "n": 3}, Diagonal(3)),
}


@pytest.mark.parametrize(("data", "structure"), FILES.values(), ids=FILES)
def test_kinds_of_a_file_are_read(data, structure):
    assert structure_from_data(data) == structure
    assert structure_from_data(structure.to_data()) == structure


WRONG_FILES = {
    "unknown": ({"kind": "round"}, r"kind must be one of .*banded.*; got 'round'"),
    "missing": ({"kind": "banded", "m": 2, "n": 2}, r"a banded must have 'kl', got only 'kind', 'm', 'n'"),
    "not_square": ({"kind": "diag", "m": 2, "n": 3}, r"m of Diagonal\(n=3\) must be 3, got 2"),
    "rows": ({"kind": "gather", "m": 3, "n": 3, "idx": [0]}, r"m of Gather.* must be 1, got 3"),
}


@pytest.mark.parametrize(("data", "message"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_wrong_files_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        structure_from_data(data)


WRONG = {
    "size": (lambda: Dense(-1, 2), ValueError, r"Dense: m must be at least 0, got -1"),
    "type": (lambda: Diagonal(2.0), TypeError, r"Diagonal: n must be an int, got float"),
    "blocks": (lambda: BlockDiagonal(2, 3, 4), ValueError, r"multiples of b ≥ 1, got b=2, m=3, n=4"),
    "pool": (lambda: Pool(2, 3), ValueError, r"n must be a multiple of m ≥ 1, got m=2, n=3"),
    "index": (lambda: Gather(3, [0, 3]), ValueError, r"0 ≤ index < n = 3, got 0 to 3"),
    "scatter": (lambda: WeightedScatter(2, [-1]), ValueError, r"0 ≤ index < m = 2, got -1 to -1"),
    "real_index": (lambda: Index([0.5]), ValueError, r"integers in one dimension, got float64 of shape \(1,\)"),
    "indptr": (lambda: Pattern(2, 2, [0, 1], [0]), ValueError, r"m \+ 1 = 3 ascending integers from 0 to 1"),
    "columns": (lambda: Pattern(1, 2, [0, 1], [2]), ValueError, r"0 ≤ index < n = 2, got 2 to 2"),
    "unsorted": (lambda: Pattern(1, 2, [0, 2], [1, 0]), ValueError, r"ascend in each row"),
    "residual": (lambda: IdentityPlus(Dense(2, 3)), ValueError, r"inner must be square, got \(2, 3\)"),
    "matrix": (lambda: Diagonal(2).gather_values(torch.ones(2, 3)), ValueError, r"shape \(2, 2\) .* got \(2, 3\)"),
    "factored": (lambda: LowRank(2, 2, 1).gather_values(torch.ones(2, 2)), ValueError, r"must not be factored"),
    "compressed": (lambda: Diagonal(2).decompress(torch.ones(2, 2)), ValueError, r"shape \(2, 1\) .* got \(2, 2\)"),
    "packed": (lambda: LowRank(2, 2, 1).decompress(torch.ones(2, 2)), ValueError, r"must not be factored"),
    "listing": (lambda: Banded(10**12, 10**12, 1, 1).pattern(), ValueError, r"at most \d+ rows, columns and entries"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "error", "message"), WRONG.values(), ids=WRONG)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_factored_structures_that_can_be_read_out_of_a_matrix_are():
    for structure in (IdentityPlus(Dense(3, 3)), RowKronecker(2, 3, 4)):
        block = block_of(structure)
        torch.testing.assert_close(structure.gather_values(block.dense()), block.values)


def test_indices_compare_by_value_and_know_their_slices():
    one, other = Index([2, 4, 6]), Index(np.array([2, 4, 6], dtype=np.int32))
    assert one == other and hash(one) == hash(other) and one != Index([2, 4, 7])
    assert one.progression == (2, 2) and Index([3]).progression == (3, 1) and Index([1, 0]).progression is None
    rows = torch.arange(8.0)
    torch.testing.assert_close(one.take(rows, 0), torch.tensor([2.0, 4.0, 6.0]))
    torch.testing.assert_close(Index([1, 2]).take(rows.reshape(2, 4), 1), torch.tensor([[1.0, 2.0], [5.0, 6.0]]))
    assert Gather(9, torch.tensor([2, 4, 6])) == Gather(9, range(2, 7, 2))


def test_an_index_does_not_follow_the_array_it_was_made_of():
    array = np.array([0, 1])
    index = Index(array)
    array[0] = 7
    assert index == Index([0, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_without_values_take_the_dtype_of_a_neighbour(dtype):
    like = torch.ones(1, dtype=dtype)
    for structure in (Identity(3), Zero(3, 3), Gather(3, [1, 0, 2]), Scatter(3, [1, 0, 2])):
        assert structure.dense((), like).dtype == dtype


@CHECKED
@given(_shapes(plain_structures))
def test_matrices_differentiate_into_their_values(structure):
    assume(not structure.constant)
    values = block_of(structure).values.requires_grad_()
    structure.dense(values).sum().backward()
    count = structure.n if isinstance(structure, ScaledIdentity) else 1
    torch.testing.assert_close(values.grad, torch.full_like(values, float(count)))


def test_weighted_scatters_hold_values_column_by_column():
    block = WeightedScatter(3, [2, 0, 2]), torch.tensor([1.0, 2.0, 3.0])
    expected = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 3.0]])
    torch.testing.assert_close(block[0].dense(block[1]), expected)
    gathered = WeightedGather(3, [2, 0, 2])
    torch.testing.assert_close(gathered.dense(block[1]), expected.mT)


def test_long_indices_that_differ_in_one_swap_are_told_apart():
    order = np.arange(1000)
    swapped = order.copy()
    swapped[[1, 2]] = 2, 1  # the same sum, and no entry that the hash samples
    assert hash(Index(order)) == hash(Index(swapped))
    assert Index(order) != Index(swapped)
    assert Index(order) == Index(order.copy())


def test_an_index_does_not_follow_the_array_that_it_was_made_of():
    order = np.arange(5)
    view = order.view()
    view.flags.writeable = False
    index = Index(view)
    order[0] = 4
    assert index.array.tolist() == [0, 1, 2, 3, 4]
