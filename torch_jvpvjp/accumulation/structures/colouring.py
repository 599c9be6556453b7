"""Colourings of the columns of a pattern: columns of one colour share no row, so one tangent serves them all."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from .index import Integers

GREEDY_PAIRS = 2**20
"""The most pairs of meeting columns that the greedy colouring is given; beyond, colours repeat along the columns."""


def columns(indptr: Integers, indices: Integers, n: int) -> tuple[Integers, int]:
    """Colour the columns of a pattern greedily, the column that meets most others first.

    A greedy colouring is valid but not always the smallest: its number of colours is an upper bound. A row with c
    entries needs c colours, so a colouring with as many as the fullest row has entries is the smallest.

    Args:
        indptr: Row pointers of CSR, (m + 1,).
        indices: Columns of the entries, ascending in each row.
        n: Number of columns.

    Returns:
        The colour of every column, (n,), and the number of colours.
    """
    counts = np.diff(indptr)
    held = counts > 0
    # columns at least `span` apart share no row: a valid colouring repeats along the columns with that period
    span = int((indices[indptr[1:][held] - 1] - indices[indptr[:-1][held]]).max(initial=0)) + 1
    repeated = np.arange(n, dtype=np.int64) % span, min(span, n)
    fullest = int(counts.max(initial=0))
    if span <= fullest or int((counts * (counts - 1)).sum()) > GREEDY_PAIRS:
        return repeated
    colour = _greedy(indptr, indices, n)
    used = int(colour.max(initial=-1)) + 1
    return (colour, used) if used < repeated[1] else repeated


def _greedy(indptr: Integers, indices: Integers, n: int) -> Integers:
    """NetworkX's colouring of the graph in which two columns that share a row are neighbours."""
    pattern = sparse.csr_array((np.ones(indices.size, np.int64), indices, indptr), shape=(indptr.size - 1, n))
    meeting = sparse.coo_array(sparse.triu(pattern.T @ pattern, k=1))
    import networkx as nx  # slow to import, and seldom needed

    graph: nx.Graph = nx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from(zip(meeting.row.tolist(), meeting.col.tolist(), strict=True))
    colour = nx.greedy_color(graph, strategy="largest_first")
    return np.array([colour[column] for column in range(n)], dtype=np.int64)
