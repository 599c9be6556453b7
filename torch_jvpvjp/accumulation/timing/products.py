"""Seconds of a product of two structured matrices, by the way in which it is computed."""

from __future__ import annotations

from ..structure import Structure, product
from .model import DeviceModel

# Each entry is met once, by a scaling or by an index: a matter of bytes alone.
_SCALINGS = {"diagonal", "scaled-identity"}
_SELECTIONS = {"gather": 1, "weighted-gather": 2, "scatter": 1, "weighted-scatter": 2}  # with the ops that they launch
# Kept as factors: several products, each of fma that run as a GEMM does.
_FACTORED = {"kronecker": 4, "low-rank": 5, "identity-plus": 2, "row-kronecker": 4, "stacked": 2, "transposed": 1}
_DENSE_IS_FASTER = 32  # a sparse operand of more than one entry in so many is multiplied as a dense matrix
_INDEXED_OPS = 8  # entries in order, two look-ups, a product, a sum by index, and their views
_DENSIFYING_OPS = 8
_SUMS = 4  # the sum by index alone does so many entries in the time in which all four do one


def by_entries(structure: Structure) -> bool:
    """Return whether a structure is multiplied entry by entry of a list, or else through a dense matrix."""
    kinds = _SCALINGS | _SELECTIONS.keys() | _FACTORED.keys() | {"dense", "identity", "zero", "block-diagonal"}
    return structure.name not in kinds


def product_seconds(model: DeviceModel, left: Structure, right: Structure, count: int = 1) -> float:
    """The seconds of A B, computed in the structure of its operands.

    Args:
        model: The device.
        left: Structure of A.
        right: Structure of B.
        count: How many such products are computed at once.

    Returns:
        Seconds.
    """
    kinds = {left.name, right.name}
    if kinds == {"dense"}:
        return model.gemm(left.m, left.n, right.n, count)
    found = product(left, right)
    entries = (left.entries + right.entries + found.result.entries) * count
    fma = found.fma * count
    if fma == 0 or kinds & _SCALINGS:
        return model.move(entries, 1 if kinds <= {"dense"} | _SCALINGS else _INDEXED_OPS)
    selections = [ops for name, ops in _SELECTIONS.items() if name in kinds]
    if selections:
        # Rows looked up by a gather from the left are read; those that a scatter puts there are added, one by one.
        adds = left.name.endswith("scatter") or right.name.endswith("gather")
        return model.move(entries, max(selections)) + (fma / (_SUMS * model.irregular) if adds else 0.0)
    factored = [ops for name, ops in _FACTORED.items() if name in kinds]
    if factored:
        launches = model.gemm_launch * max(factored)
        return launches + _flowing(model, fma, entries, (left.m, left.n, right.n))
    if "block-diagonal" in kinds:
        return model.gemm_launch + _flowing(model, fma, entries, _piece(left, right))
    return _sparse(model, left, right, fma, entries, count)


def _sparse(model: DeviceModel, left: Structure, right: Structure, fma: int, entries: int, count: int) -> float:
    """Bands, triangles and patterns: through dense matrices, unless they are so empty that index lists are faster."""
    m, k, n = left.m, left.n, right.n
    if fma * _DENSE_IS_FASTER >= m * k * n * count:
        sparse = [side for side in (left, right) if side.name != "dense"]
        put = count * sum(side.entries for side in sparse) / (_SUMS * model.irregular)
        return model.gemm(m, k, n, count) + model.move(entries) + put + len(sparse) * _DENSIFYING_OPS * model.launch
    if "dense" in {left.name, right.name}:
        return model.move(2 * fma, _INDEXED_OPS)  # whole rows, or columns, are looked up and added
    return model.move(entries, _INDEXED_OPS) + fma / model.irregular


def _flowing(model: DeviceModel, fma: int, entries: int, sides: tuple[int, int, int]) -> float:
    """Return the seconds of fma that run as a GEMM does, or of their traffic if that takes longer."""
    return max(fma * model.gemm_slowness(*sides), model.move(entries) - model.launch)


def _piece(left: Structure, right: Structure) -> tuple[int, int, int]:
    """Return the sides of one of the dense products of blocks along the diagonal."""
    one, two = _blocks(left), _blocks(right)
    rows = left.m // one
    columns = right.n // two
    return max(rows, 1), max(left.n // max(one, two), 1), max(columns, 1)


def _blocks(structure: Structure) -> int:
    return max(getattr(structure, "b", 1), 1)
