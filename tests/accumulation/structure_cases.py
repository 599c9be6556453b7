"""Random structures of every kind, of given shapes, and random values for them."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import strategies as st

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
    Transposed,
    UpperTriangular,
    WeightedGather,
    WeightedScatter,
    Zero,
)

SIZES = (1, 2, 3, 4, 6)


def _divisors(*sizes):
    return [b for b in range(1, min(sizes) + 1) if all(size % b == 0 for size in sizes)]


@st.composite
def plain_structures(draw, m, n):
    """A plain structure of the shape (m, n)."""
    kinds = ["dense", "block", "band", "lower", "upper", "gather", "weighted_gather", "scatter", "weighted_scatter"]
    kinds += ["pattern", "pattern", "zero"]
    kinds += ["pool"] if n % m == 0 else []
    kinds += ["diagonal", "identity", "scaled"] if m == n else []
    kinds += ["stacked"] if any(m % o == 0 for o in _divisors(n)) else []
    match draw(st.sampled_from(kinds)):
        case "dense":
            return Dense(m, n)
        case "block":
            return BlockDiagonal(draw(st.sampled_from(_divisors(m, n))), m, n)
        case "band":
            return Banded(m, n, draw(st.integers(0, m)), draw(st.integers(0, n)))
        case "lower":
            return LowerTriangular(m, n)
        case "upper":
            return UpperTriangular(m, n)
        case "gather":
            return Gather(n, draw(st.lists(st.integers(0, n - 1), min_size=m, max_size=m)))
        case "weighted_gather":
            return WeightedGather(n, draw(st.lists(st.integers(0, n - 1), min_size=m, max_size=m)))
        case "scatter":
            return Scatter(m, draw(st.lists(st.integers(0, m - 1), min_size=n, max_size=n)))
        case "weighted_scatter":
            return WeightedScatter(m, draw(st.lists(st.integers(0, m - 1), min_size=n, max_size=n)))
        case "pattern":
            bits = draw(st.lists(st.booleans(), min_size=m * n, max_size=m * n))
            return Pattern.of(np.array(bits).reshape(m, n))
        case "zero":
            return Zero(m, n)
        case "pool":
            return Pool(m, n)
        case "diagonal":
            return Diagonal(n)
        case "identity":
            return Identity(n)
        case "scaled":
            return ScaledIdentity(n)
        case "stacked":
            o = draw(st.sampled_from([o for o in _divisors(n) if m % o == 0]))
            return Stacked(m // o, o, n // o)


@st.composite
def structures(draw, m, n):
    """Any structure of the shape (m, n), plain or factored."""
    kinds = ["plain", "plain", "low_rank", "plus_low_rank", "kronecker", "kronecker"]
    kinds += ["identity_plus", "identity_plus"] if m == n else []
    kinds += ["row_kronecker"] if any(m % o == 0 for o in _divisors(n)) else []
    kinds += ["transposed"] if any(n % o == 0 for o in _divisors(m)) else []
    match draw(st.sampled_from(kinds)):
        case "plain":
            return draw(plain_structures(m, n))
        case "low_rank":
            return LowRank(m, n, draw(st.integers(1, 3)))
        case "plus_low_rank":
            return PlusLowRank(draw(plain_structures(m, n)), draw(st.integers(1, 2)))
        case "kronecker":
            p, q = draw(st.sampled_from(_divisors(m))), draw(st.sampled_from(_divisors(n)))
            return Kronecker(draw(plain_structures(p, q)), draw(plain_structures(m // p, n // q)))
        case "identity_plus":
            if draw(st.booleans()):
                return IdentityPlus(Dense(n, n))
            inner = draw(structures(m, n))
            return inner if isinstance(inner, IdentityPlus) else IdentityPlus(inner)
        case "row_kronecker":
            o = draw(st.sampled_from([o for o in _divisors(n) if m % o == 0]))
            return RowKronecker(m // o, o, n // o)
        case "transposed":
            o = draw(st.sampled_from([o for o in _divisors(m) if n % o == 0]))
            return Transposed(draw(st.sampled_from([Stacked, RowKronecker]))(n // o, o, m // o))


@st.composite
def chains(draw, of, length):
    """Structures of matching inner sizes, left to right."""
    dims = [draw(st.sampled_from(SIZES)) for _ in range(length + 1)]
    return [draw(of(m, n)) for m, n in pairwise(dims)]


def values_of(structure, generator, dtype=torch.float64):
    """Random values of a structure."""

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    match structure:
        case Identity() | Zero() | Gather() | Scatter():
            return ()
        case ScaledIdentity():
            return normal()
        case Kronecker():
            return values_of(structure.left, generator, dtype), values_of(structure.right, generator, dtype)
        case PlusLowRank():
            base = values_of(structure.base, generator, dtype)
            return base, normal(structure.m, structure.rank), normal(structure.rank, structure.n)
        case IdentityPlus() | Transposed():
            return values_of(structure.inner, generator, dtype)
        case RowKronecker():
            return normal(structure.b, structure.k)
        case WeightedScatter():
            return normal(structure.n)
        case _:
            return normal(*structure.value_shape())


def block_of(structure, seed=0, dtype=torch.float64):
    """A block of random values."""
    return Block(structure, values_of(structure, torch.Generator().manual_seed(seed), dtype))
