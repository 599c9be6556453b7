"""Shapes that launchers make without PyTorch."""

import itertools

import pytest
import torch

from torch_jvpvjp.ops._shapes import broadcast

SIZES = [(), (1,), (3,), (0,), (2, 1), (1, 3), (2, 3), (4, 1, 1), (4, 2, 3), (1, 0), (2,)]


def test_shapes_are_those_of_pytorch() -> None:
    agreed = 0
    for shapes in itertools.chain(itertools.combinations(SIZES, 2), itertools.product(SIZES, repeat=3)):
        try:
            expected = torch.broadcast_shapes(*shapes)
        except RuntimeError as error:
            with pytest.raises(RuntimeError, match=type(error).__name__ and "[Bb]roadcast|mismatch"):
                broadcast(*shapes)
        else:
            assert broadcast(*map(torch.Size, shapes)) == tuple(expected), shapes
            agreed += 1
    assert agreed > 500
