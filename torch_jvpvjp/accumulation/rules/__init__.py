"""Local derivatives: the Jacobian that each ATen op has in closed form, with its structure."""

from . import (
    batch_normalisation,
    batched_products,
    binary,
    binary_kinked,
    convolution,
    dropout,
    extrema,
    gated,
    group_normalisation,
    kinked,
    linear_entrywise,
    losses,
    max_pooling,
    movement,
    normalisation,
    products,
    reductions,
    resampling,
    smooth,
    softmax,
)
from .registry import LOCAL_RULES, Call, Local, Meta, Operand, local_derivatives, local_rule

# imported for the rules that they register
FAMILIES = (
    batch_normalisation, batched_products, binary, binary_kinked, convolution, dropout, extrema, gated,
    group_normalisation, kinked, linear_entrywise, losses, max_pooling, movement, normalisation, products, reductions,
    resampling, smooth, softmax,
)  # fmt: skip

__all__ = [
    "FAMILIES", "LOCAL_RULES", "Call", "Local", "Meta", "Operand", "local_derivatives", "local_rule",
]  # fmt: skip
