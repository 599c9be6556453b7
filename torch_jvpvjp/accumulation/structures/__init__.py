"""The kinds of structure, and how each is multiplied and added; `accumulation/structure.py` is their face.

Products of two plain kinds (`algebra.py` for sizes, `execution.py` for values) follow from their patterns. Each
factored kind has a file of rules of its own, which importing it registers.
"""

from . import kronecker_products, low_rank_products, residual_products, row_products

__all__ = ["kronecker_products", "low_rank_products", "residual_products", "row_products"]
