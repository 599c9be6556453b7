"""The structure of a Jacobian: which of its entries can differ from zero, and what that makes a product cost.

A `Structure` knows sizes only, so that planning never touches a tensor; a `Block` is a structure with the values of
its stored entries. The kinds and their products live in `structures/`; this is their face. To add a structure, write
one class and one `@product_rule` for each neighbour it multiplies cheaply: any pair without a rule is multiplied as
two dense matrices, which is right, if dear.

Laws: `multiply(a, b).dense() == a.dense() @ b.dense()`; the cost of A B is Σ_l nnz(A[:, l]) · nnz(B[l, :]), an exact
integer at any size, or for factored kinds (low rank, Kronecker, I + J) that of the factored product; and `product` is
associative in its result: the structure of a block of plain kinds does not depend on the bracketing. A factored block
is held as the bracketing made it (U V B is of low rank or dense), though its matrix is the same.
"""

from __future__ import annotations

from .structures.addition import Sum, add, addition
from .structures.bands import Banded, LowerTriangular, UpperTriangular
from .structures.base import Structure, Transposed, Values
from .structures.blocks import BlockDiagonal, Pool, Stacked
from .structures.data import structure_from_data
from .structures.dense import Dense, Diagonal, Identity, ScaledIdentity, Zero
from .structures.factored import IdentityPlus, Kronecker, LowRank, PlusLowRank, RowKronecker
from .structures.index import Index, IndexLike
from .structures.product import Block, Product, multiply, product, product_rule
from .structures.selection import Gather, Scatter, WeightedGather, WeightedScatter
from .structures.sparse import Pattern

__all__ = [
    "Banded", "Block", "BlockDiagonal", "Dense", "Diagonal", "Gather", "Identity", "IdentityPlus", "Index", "IndexLike",
    "Kronecker", "LowRank", "LowerTriangular", "Pattern", "PlusLowRank", "Pool", "Product", "RowKronecker",
    "ScaledIdentity", "Scatter", "Stacked", "Structure", "Sum", "Transposed", "UpperTriangular", "Values",
    "WeightedGather", "WeightedScatter", "Zero", "add", "addition", "multiply", "product", "product_rule",
    "structure_from_data",
]  # fmt: skip
