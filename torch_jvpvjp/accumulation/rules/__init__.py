"""Local derivatives: the Jacobian that each ATen op has in closed form, with its structure."""

from . import (
    batch_normalisation,
    batched_products,
    binary,
    binary_kinked,
    complex_entrywise,
    complex_linear,
    convolution,
    distances,
    dropout,
    extrema,
    fourier,
    gated,
    group_normalisation,
    indexed,
    kinked,
    linear_entrywise,
    losses,
    max_pooling,
    movement,
    normalisation,
    products,
    reductions,
    resampling,
    small_matrices,
    smooth,
    softmax,
)
from .registry import COMPLEX_RULES, LOCAL_RULES, Call, Local, Meta, Operand, local_derivatives, local_rule

# imported for the rules that they register
FAMILIES = (
    batch_normalisation, batched_products, binary, binary_kinked, complex_entrywise, complex_linear, convolution,
    distances, dropout, extrema, fourier, gated, group_normalisation, indexed, kinked, linear_entrywise, losses,
    max_pooling, movement, normalisation, products, reductions, resampling, small_matrices, smooth, softmax,
)  # fmt: skip

__all__ = [
    "COMPLEX_RULES", "FAMILIES", "LOCAL_RULES", "Call", "Local", "Meta", "Operand", "local_derivatives", "local_rule",
]  # fmt: skip
