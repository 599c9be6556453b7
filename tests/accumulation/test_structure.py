"""Structures multiply as matrices do, and count what they do."""

import pytest
import torch

from torch_jvpvjp.accumulation import Block, Dense, Diagonal, product
from torch_jvpvjp.accumulation.structure import multiply


def _block(structure, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (structure.m, structure.n) if isinstance(structure, Dense) else (structure.n,)
    return Block(structure, torch.randn(shape, generator=generator, dtype=torch.float64))


PAIRS = {
    "dense_dense": (Dense(3, 4), Dense(4, 5), Dense(3, 5), 60),
    "diagonal_dense": (Diagonal(4), Dense(4, 5), Dense(4, 5), 20),
    "dense_diagonal": (Dense(3, 4), Diagonal(4), Dense(3, 4), 12),
    "diagonal_diagonal": (Diagonal(4), Diagonal(4), Diagonal(4), 4),
}


@pytest.mark.parametrize(("left", "right", "result", "fma"), PAIRS.values(), ids=PAIRS)
def test_product_of_blocks_is_the_product_of_their_matrices(left, right, result, fma):
    a, b = _block(left, 1), _block(right, 2)
    block = multiply(a, b)
    torch.testing.assert_close(block.dense(), a.dense() @ b.dense())
    assert block.structure == result
    assert block.values.numel() == result.entries
    assert product(left, right).fma == fma


@pytest.mark.parametrize("middle", [Dense(4, 4), Diagonal(4)], ids=["dense", "diagonal"])
def test_structure_of_a_product_does_not_depend_on_the_bracketing(middle):
    left, right = Diagonal(4), Diagonal(4)
    one = product(product(left, middle).result, right).result
    other = product(left, product(middle, right).result).result
    assert one == other


def test_mixed_dtypes_are_promoted():
    block = multiply(Block(Diagonal(2), torch.ones(2)), Block(Dense(2, 3), torch.ones(2, 3, dtype=torch.float64)))
    assert block.values.dtype == torch.float64


def test_inner_sizes_must_agree():
    with pytest.raises(ValueError, match=r"inner sizes of \(3, 4\) and \(5, 2\) must be equal, got 4 and 5"):
        product(Dense(3, 4), Dense(5, 2))
